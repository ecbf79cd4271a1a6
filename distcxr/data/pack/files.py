"""The files of a pack: names, settings, what is known of each image, and a shard's own index."""

from __future__ import annotations

import io
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from distcxr.data.built import read_json
from distcxr.recipe.data import Data

FORMAT = 1
"""Version of the files' layout."""
CODEC = 1
"""Version of `decode_grey`'s pixels: a change in what it returns makes older packs wrong. Raise it then."""

PACKED, UNREADABLE = 1, 2
"""States of an entry. An unreadable image has no codestream."""

FOLDER = "distcxr-pack"
"""In the data root, unless `data.pack.path` says another."""

COMMAND = "`distcxr pack RECIPE` (with the recipe and the key=value of the training command)"

UNFINISHED = ("pack.part", "shard-*.j2k.part")
"""What a build that was stopped may leave. No other `.part` is ours: the folder may hold someone's downloads."""

_END = struct.Struct("<QQI8s")  # bytes of the entries, bytes of the reasons, CRC-32 of both, mark
_MARK = b"distcxr" + bytes([16 * FORMAT + CODEC])


class PackError(ValueError):
    """There is no pack that can be used, or it can't be written; the message tells why and what to do."""


def entry_type(path_bytes: int) -> np.dtype[Any]:
    """What is known of one image.

    path: relative to the data root, as in the index; size, mtime_ns: of the source file, -1 = it could not be looked
    at; source_crc: CRC-32 of its bytes; shard: row of pack.json's list; offset, num_bytes: the codestream in it; crc:
    CRC-32 of that; height, width: pixels; state: see `PACKED`.
    """
    return np.dtype(
        [
            ("path", f"S{path_bytes}"), ("size", "<i8"), ("mtime_ns", "<i8"), ("source_crc", "<u4"), ("shard", "<u4"),
            ("offset", "<i8"), ("num_bytes", "<i8"), ("crc", "<u4"), ("height", "<u4"), ("width", "<u4"),
            ("state", "u1"),
        ]
    )  # fmt: skip


def pack_folder(data: Data, root: Path) -> Path:
    """Where the pack of a recipe's `data` section is: `data.pack.path`, or a folder in the data root."""
    return data.pack.path.expanduser() if data.pack.path is not None else root / FOLDER


def read_meta(folder: Path) -> dict[str, Any]:
    """What pack.json says.

    Raises:
        PackError: there is no pack, an unfinished one, or one of another version.
    """
    try:
        meta = read_json(folder / "pack.json")
        version = (meta["format"], meta["codec"])
    except FileNotFoundError as error:
        if next(folder.glob("shard-*"), None) is not None:
            raise PackError(f"the pack in {folder} is not finished: {COMMAND} goes on with it") from error
        raise PackError(f"there is no pack in {folder}: build it with {COMMAND}") from error
    except OSError as error:
        raise unusable(folder, f"pack.json can't be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise unusable(folder, "pack.json is damaged") from error
    if version != (FORMAT, CODEC):
        raise unusable(folder, f"it was built by another version of distcxr ({version}, this one has {FORMAT, CODEC})")
    return meta


def unusable(folder: Path, why: str) -> PackError:
    return PackError(f"the pack in {folder} can't be used: {why}. Bring it up to date with {COMMAND}")


def remove_files(folder: Path, keep: tuple[str, ...]) -> None:
    """Remove the files of packs and builds except those named."""
    for pattern in ("pack.json", *UNFINISHED, "shard-*.j2k", "entries-*.npy"):
        for file in folder.glob(pattern):
            if file.name not in keep:
                file.unlink()


def to_bytes(entries: NDArray[Any]) -> bytes:
    """Entries as a .npy file has them."""
    buffer = io.BytesIO()
    np.save(buffer, entries)
    return buffer.getvalue()


def from_bytes(data: bytes) -> NDArray[Any]:
    """What `to_bytes` made; ValueError when it is none of that."""
    entries: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    if not entries.dtype.names or entries.dtype != entry_type(entries.dtype["path"].itemsize):
        raise ValueError("these are no entries of a pack")
    return entries


def shard_end(entries: NDArray[Any], reasons: dict[str, str]) -> bytes:
    """What follows the codestreams in a shard: the entries of its images, and why the unreadable ones are that."""
    first, second = to_bytes(entries), json.dumps(reasons).encode()
    return first + second + _END.pack(len(first), len(second), isal_zlib.crc32(first + second), _MARK)


def read_shard_end(fd: int) -> tuple[NDArray[Any], dict[str, str]]:
    """Entries and reasons of a shard.

    Raises:
        ValueError: it is not whole, or of another version.
        OSError: it can't be read.
    """
    size = os.fstat(fd).st_size
    tail = os.pread(fd, _END.size, max(0, size - _END.size))
    if len(tail) < _END.size:
        raise ValueError("a shard's end is missing")
    num_first, num_second, crc, mark = _END.unpack(tail)
    if mark != _MARK or num_first + num_second + _END.size > size:
        raise ValueError("a shard's end is missing, or of another version")
    both = os.pread(fd, num_first + num_second, size - _END.size - num_first - num_second)
    if len(both) < num_first + num_second or isal_zlib.crc32(both) != crc:
        raise ValueError("a shard's end is damaged")
    return from_bytes(both[:num_first]), json.loads(both[num_first:])
