"""The files of a decoded cache: names, settings, and what is known of each image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from distcxr.data.built import read_json
from distcxr.recipe.data import Data

FORMAT = 1
"""Version of the files' layout."""
CODEC = 1
"""Version of `decode_grey` and `resize_grey`: a change in what they return makes older caches wrong. Raise it then."""

DECODED, UNREADABLE = 1, 2
"""States of an entry; 0 is not done yet. Pixels of an unreadable image are 0."""

_UNFINISHED = ("building.json", "building.part", "building.entries")

_COMMAND = "`distcxr cache RECIPE` (with the recipe and the key=value of the training command)"


class CacheError(ValueError):
    """There is no cache that can be used, or it can't be written; the message tells why and what to do."""


def entry_type(path_bytes: int) -> np.dtype[Any]:
    """What is known of one image.

    path: relative to the data root, as in the index; size, mtime_ns: of the source file, -1 = it could not be looked
    at; source_crc: CRC-32 of its bytes; pixels_crc: CRC-32 of its S*S pixels; state: see `DECODED`.
    """
    return np.dtype(
        [
            ("path", f"S{path_bytes}"), ("size", "<i8"), ("mtime_ns", "<i8"), ("source_crc", "<u4"),
            ("pixels_crc", "<u4"), ("state", "u1"),
        ]
    )  # fmt: skip


def cache_folder(data: Data, root: Path) -> Path:
    """Where the cache of a recipe's `data` section is: `data.cache.path`, or a folder in the data root."""
    path = data.cache.path
    return path.expanduser() if path is not None else root / "distcxr-cache" / f"{data.image_size}px"


def read_meta(folder: Path) -> dict[str, Any]:
    """What cache.json says.

    Raises:
        CacheError: there is no cache, an unfinished one, or one of another version.
    """
    try:
        meta = read_json(folder / "cache.json")
        version = (meta["format"], meta["codec"])
    except FileNotFoundError as error:
        if (folder / "building.json").exists():
            raise CacheError(f"the cache in {folder} is not finished: {_COMMAND} goes on with it") from error
        raise CacheError(f"there is no decoded cache in {folder}: build it with {_COMMAND}") from error
    except OSError as error:
        raise unusable(folder, f"cache.json can't be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise unusable(folder, "cache.json is damaged") from error
    if version != (FORMAT, CODEC):
        raise unusable(folder, f"it was built by another version of distcxr ({version}, this one has {FORMAT, CODEC})")
    return meta


def remove_files(folder: Path, keep: tuple[str, ...]) -> None:
    """Remove the files of caches and builds except those named; cache.json first: without it nothing is taken for
    whole."""
    for pattern in ("cache.json", "cache.part", *_UNFINISHED, "pixels-*.u8", "entries-*.npy"):
        for file in folder.glob(pattern):
            if file.name not in keep:
                file.unlink()


def unusable(folder: Path, why: str) -> CacheError:
    return CacheError(f"the decoded cache in {folder} can't be used: {why}. Bring it up to date with {_COMMAND}")
