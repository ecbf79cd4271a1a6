"""Shards as they lie in a folder, and writing new ones in one step each."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from distcxr.data.built import flush
from distcxr.data.pack.files import PackError, entry_type, from_bytes, read_meta, read_shard_end, shard_end
from distcxr.data.pack.read import Pack

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Shard:
    """A whole shard, open.

    Attributes:
        entries: `entry_type` of its images, which may be changed; their `shard` means nothing here.
        reasons: why, by path, for its unreadable images.
        is_new: pack.json does not name it: it is of a build that was stopped.
    """

    name: str
    fd: int
    entries: NDArray[Any]
    reasons: dict[str, str]
    is_new: bool

    @property
    def number(self) -> int:
        """As its name has it."""
        return int(self.name.split("-")[1])

    def stream(self, row: int) -> bytes | None:
        """The codestream of an image, None when it is damaged or can't be read."""
        entry = self.entries[row]
        try:
            data = os.pread(self.fd, int(entry["num_bytes"]), int(entry["offset"]))
        except OSError:
            return None
        return data if len(data) == entry["num_bytes"] and isal_zlib.crc32(data) == entry["crc"] else None

    def close(self) -> None:
        os.close(self.fd)


def find_shards(folder: Path) -> list[Shard]:
    """All whole shards of a folder, those of an unfinished build first: what they hold is newer."""
    try:
        pack = Pack(folder)
    except PackError as error:
        if (folder / "pack.json").exists():
            logger.info("%s", error)
        return _unnamed(folder, but=())
    pack.close()
    found = _unnamed(folder, but=pack.shards)
    for number, name in enumerate(pack.shards):
        entries = pack.entries[pack.entries["shard"] == number]
        reasons: dict[str, str] = pack.meta["unreadable"]
        found.append(Shard(name, os.open(folder / name, os.O_RDONLY), entries, reasons, is_new=False))
    return found


def missing_shards(folder: Path) -> tuple[list[str], list[bytes]]:
    """Names of shards that pack.json names and that are not there, and the paths of the images in them.

    Nothing where pack.json or its table can't be read: then nobody knows what there was.
    """
    try:
        meta = read_meta(folder)
        data = (folder / meta["entries"]).read_bytes()
    except (PackError, OSError):
        return [], []
    numbers = [number for number, name in enumerate(meta["shards"]) if not (folder / name).exists()]
    if hashlib.sha256(data).hexdigest() != meta["entries_sha256"]:
        return [], []
    entries = from_bytes(data)
    paths: list[bytes] = entries["path"][np.isin(entries["shard"], numbers)].tolist()
    return [meta["shards"][number] for number in numbers], paths


def _unnamed(folder: Path, but: Collection[str]) -> list[Shard]:
    found = []
    for file in sorted(folder.glob("shard-*.j2k")):
        if file.name in but:
            continue
        fd = os.open(file, os.O_RDONLY)
        try:
            found.append(Shard(file.name, fd, *read_shard_end(fd), is_new=True))
        except (OSError, ValueError):
            os.close(fd)
    return found


class NewShard:
    """A shard that is being written: images one after another, then `finish`. It has its name only then."""

    def __init__(self, folder: Path, number: int, num_images: int, path_bytes: int) -> None:
        self.name = f"shard-{number:05d}-{secrets.token_hex(4)}.j2k"
        self.entries = np.zeros(num_images, dtype=entry_type(path_bytes))
        self.reasons: dict[str, str] = {}
        self._folder, self._part = folder, folder / f"{self.name}.part"
        self._stream: IO[bytes] = self._part.open("wb")
        self._done = self._offset = 0

    def put(self, entry: NDArray[Any], stream: bytes, reason: str) -> None:
        """Append an image: `entry_type` [1], its codestream, and why it has none, or ""."""
        self._stream.write(stream)
        self.entries[self._done] = entry[0]
        self.entries["offset"][self._done] = self._offset
        if reason:
            self.reasons[os.fsdecode(bytes(entry["path"][0]))] = reason
        self._done, self._offset = self._done + 1, self._offset + len(stream)

    def finish(self) -> None:
        """Wait until it is on disk and give it its name."""
        assert self._done == len(self.entries)
        with self._stream as stream:
            stream.write(shard_end(self.entries, self.reasons))
            stream.flush()
            os.fsync(stream.fileno())
        self._part.replace(self._folder / self.name)
        flush(self._folder)

    def give_up(self) -> None:
        """Remove what is written, as far as the system lets that."""
        try:
            self._part.unlink(missing_ok=True)
            self._stream.close()
        except OSError:  # what is still in the buffer has no room
            pass
