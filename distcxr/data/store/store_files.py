"""The files of a store's folder: the JSON file that names the others, the table of images, the lock."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import logging
import os
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distcxr.regular import read_regular
from distcxr.runfolder.whole import flush, write_whole

logger = logging.getLogger(__name__)

MADE, UNREADABLE = 1, 2
"""States of an entry; 0 is not done yet. An unreadable image has black pixels in a cache and no bytes in a pack."""

GONE = [-1, -1]
"""What `look` returns for a file that is not there."""


class StoreError(ValueError):
    """There is no store that can be used, or it can't be written; the message has the reason and what to do."""


@dataclass(eq=False)
class Format:
    """What distinguishes one format of a store from the other."""

    name: str  # as in `distcxr NAME`, `data.NAME.path` and `NAME.json`
    title: str  # for messages
    version: int  # of the files' layout
    # Version of the pixels. Raise it with any change in what `decode_grey` (of the cache, `resize_grey`, too) returns:
    # that makes older stores wrong.
    codec: int
    columns: list[tuple[str, str]]  # of an entry, besides those of `entry_type`
    content: str  # key of the JSON file that names the file, or the files, with the images
    patterns: tuple[str, ...]  # of the files of its own, whole or not
    begun: str  # a file that is there once a build has begun
    stands_alone: bool  # it serves without the image files, too

    @property
    def json_name(self) -> str:
        return f"{self.name}.json"

    @property
    def command(self) -> str:
        """What builds it, for messages."""
        return f"`distcxr {self.name} RECIPE` (with the recipe and the key=value of the training command)"

    def entry_type(self, path_bytes: int) -> np.dtype[Any]:
        """What is known of one image.

        path: relative to the data root, as in the index; size, mtime_ns: of the source file, -1 = it could not be
        looked at; source_crc: CRC-32 of its bytes; then `columns`; state: see `MADE`.
        """
        source = [("path", f"S{path_bytes}"), ("size", "<i8"), ("mtime_ns", "<i8"), ("source_crc", "<u4")]
        return np.dtype([*source, *self.columns, ("state", "u1")])

    def is_begun(self, folder: Path) -> bool:
        """Whether the folder has a store of this format, whole or not."""
        return (folder / self.json_name).exists() or next(folder.glob(self.begun), None) is not None

    def read_settings(self, folder: Path) -> dict[str, Any]:
        """The content of the JSON file.
        Raises StoreError: there is no store, an unfinished one, or one of another version."""
        try:
            settings = read_json(folder / self.json_name)
            version = (settings["format"], settings["codec"])
            damaged = self._damaged(settings) if version == (self.version, self.codec) else ""
        except FileNotFoundError as error:
            if self.is_begun(folder):
                raise StoreError(f"the {self.name} in {folder} is not finished: {self.command} resumes it") from error
            raise StoreError(f"there is no {self.title} in {folder}: build it with {self.command}") from error
        except OSError as error:
            raise self.unusable(folder, f"{self.json_name} can't be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise self.unusable(folder, f"{self.json_name} is damaged") from error
        if version != (self.version, self.codec):
            ours = (self.version, self.codec)
            raise self.unusable(folder, f"it was built by another version of distcxr ({version}, this one has {ours})")
        if damaged:
            raise self.unusable(folder, f"{self.json_name} is damaged: {damaged}")
        return settings

    def _damaged(self, settings: dict[str, Any]) -> str:
        """What in the JSON file no build has written, or "". A checksum is made by whoever writes the file: what it
        names is read, and removed by a later build, so it must be in the folder."""
        names = self.content_files(settings)
        is_kind = isinstance(settings[self.content], list if self.content == "shards" else str)
        if not is_kind or not all(map(is_plain_name, [settings["entries"], *names])):
            return "it names files outside of its folder"
        if not isinstance(settings["entries_sha256"], str):
            return "it has no checksum of its table"
        counts = [settings["num_images"], *([settings["image_size"]] if "image_size" in settings else [])]
        if not all(type(count) is int and count >= 0 for count in counts):
            return f"{counts} are not counts"
        reasons = settings["unreadable"]
        is_reasons = isinstance(reasons, dict) and all(isinstance(reason, str) for reason in reasons.values())
        return "" if is_reasons else "`unreadable` does not hold reasons"

    def read_entries(self, folder: Path, settings: dict[str, Any]) -> NDArray[Any]:
        """The table of images, `entry_type` [N]. Raises StoreError: it is not there or damaged."""
        try:
            data, _ = read_regular(folder / settings["entries"])
        except OSError as error:
            raise self.unusable(folder, f"{error.filename} can't be read: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != settings["entries_sha256"]:
            raise self.unusable(folder, f"{settings['entries']} is damaged")
        try:
            entries = self.entries_of(data)
        except ValueError as error:
            raise self.unusable(folder, f"{settings['entries']} is damaged: {error}") from error
        if outside := [path for path in _suspicious(entries["path"]) if path[:1] == b"/" or b".." in path.split(b"/")]:
            raise self.unusable(folder, f"{settings['entries']} names {outside[0]!r}, which is not below the data root")
        if len(entries) != settings["num_images"]:
            raise self.unusable(folder, f"{settings['entries']} has {len(entries)} rows, not {settings['num_images']}")
        return entries

    def entries_of(self, data: bytes) -> NDArray[Any]:
        """The entries in the bytes of a .npy file; ValueError for any other array."""
        try:
            stream = io.BytesIO(data)
            np.lib.format.read_magic(stream)
            (num,), _, dtype = np.lib.format.read_array_header_1_0(stream)
            if dtype == self.entry_type(dtype["path"].itemsize) and num * dtype.itemsize == len(data) - stream.tell():
                return np.frombuffer(data, dtype, offset=stream.tell()).copy()
        except Exception as error:  # numpy documents few of what it raises for damaged headers
            raise ValueError(f"these are not the entries of a {self.name} ({type(error).__name__})") from error
        raise ValueError(f"these are not the entries of a {self.name}")

    def write(self, folder: Path, entries: NDArray[Any], reasons: dict[str, str], **settings: Any) -> None:
        """Write the table, then the JSON file: from here on it is a whole store. `reasons`, by path, why images can't
        be read, may have other images, too."""
        data, name = npy_bytes(entries), f"entries-{secrets.token_hex(4)}.npy"
        (folder / name).write_bytes(data)
        flush(folder / name)
        flush(folder)
        unreadable = [os.fsdecode(path) for path in entries["path"][entries["state"] == UNREADABLE].tolist()]
        content = {
            "format": self.version, "codec": self.codec, "num_images": len(entries), **settings,
            "entries": name, "entries_sha256": hashlib.sha256(data).hexdigest(),
            "unreadable": {path: reasons[path] for path in unreadable},
        }  # fmt: skip
        write_json(folder / self.json_name, content)

    def content_files(self, settings: dict[str, Any]) -> list[str]:
        """Names of the files with the images, as the JSON file has them."""
        names = settings[self.content]
        return [names] if isinstance(names, str) else names

    def whole_files(self, folder: Path) -> list[str]:
        """Names of the files that belong to the whole store in a folder; none where there is none."""
        try:
            settings = self.read_settings(folder)
        except StoreError:
            return []
        return [self.json_name, settings["entries"], *self.content_files(settings)]

    def remove_files(self, folder: Path, keep: Collection[str]) -> None:
        """Remove the files of stores and builds except those named; the JSON file first: without it nothing counts as
        whole. A `.part` of another name is not ours: the folder may hold someone's downloads."""
        ours = (self.json_name, f".{self.json_name}.*.part", f"{self.name}.part", *self.patterns, "entries-*.npy")
        for pattern in ours:
            for file in folder.glob(pattern):
                if file.name not in keep:
                    file.unlink()

    def unusable(self, folder: Path, why: str) -> StoreError:
        return StoreError(f"the {self.title} in {folder} can't be used: {why}. Bring it up to date with {self.command}")


CACHE = Format(
    "cache", "decoded cache", version=1, codec=1, columns=[("pixels_crc", "<u4")], content="pixels",
    patterns=("building.json", ".building.json.*.part", "building.part", "building.entries", "pixels-*.u8"),
    begun="building.json", stands_alone=False,
)  # fmt: skip
"""pixels_crc: CRC-32 of the S*S pixels."""

PACK = Format(
    "pack", "pack", version=1, codec=1, content="shards", patterns=("shard-*.j2k.part", "shard-*.j2k"),
    columns=[
        ("shard", "<u4"), ("offset", "<i8"), ("num_bytes", "<i8"), ("crc", "<u4"), ("height", "<u4"), ("width", "<u4"),
    ],
    begun="shard-*", stands_alone=True,
)  # fmt: skip
"""shard: number in the JSON file's list; offset, num_bytes: the codestream in it; crc: CRC-32 of that; height, width:
pixels."""


def read_json(file: Path) -> dict[str, Any]:
    """What `write_json` wrote; ValueError, KeyError or TypeError for anything else."""
    data, _ = read_regular(file)
    try:
        whole = json.loads(data)
        content: dict[str, Any] = whole["content"]
        if whole["sha256"] != _digest(content) or not isinstance(content, dict):
            raise ValueError("its content does not have its sha256")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return content


def is_plain_name(name: object) -> bool:
    """Whether this is the name of a file in a folder, which leads to no other folder."""
    try:
        return isinstance(name, str) and not {b"", b".", b".."} & {os.fsencode(name)} and not {"/", "\0"} & set(name)
    except UnicodeEncodeError:
        return False


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Replace a file, together with the checksum of its content, in one step that a power cut can't split."""
    write_whole(file, json.dumps({"sha256": _digest(content), "content": content}, indent=1))


def _suspicious(paths: NDArray[np.bytes_]) -> list[bytes]:
    """Those of a few that may lead out of their folder: 20 ms for 112,120."""
    chosen: list[bytes] = paths[np.char.startswith(paths, b"/") | (np.char.find(paths, b"..") >= 0)].tolist()
    return chosen


def npy_bytes(entries: NDArray[Any]) -> bytes:
    """An array as a .npy file has it."""
    buffer = io.BytesIO()
    np.save(buffer, entries)
    return buffer.getvalue()


def look(file: str | bytes) -> list[int]:
    """Size and modification time of a source file in ns; `GONE` for one that can't be looked at."""
    try:
        state = os.stat(file)
    except OSError:
        return GONE
    return [state.st_size, state.st_mtime_ns]


def shown_size(num_bytes: int) -> str:
    """For messages: `5.63 GB`, `17.96 MB`."""
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.2f} MB"


@contextmanager
def locked(file: Path, *, wait: str | None) -> Iterator[None]:
    """Hold the lock file, which the system gives back when the process ends in whatever way. When another process holds
    it, `wait` is logged and that is waited for; without it, BlockingIOError is raised."""
    with file.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if wait is None:
                raise
            logger.info(wait)
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems are mounted without locks
            logger.warning("%s can't be locked (%s): let one process alone use this folder", file, error.strerror)
        yield


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
