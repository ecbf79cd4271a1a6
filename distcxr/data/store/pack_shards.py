"""Shards: files of about 1,024 HTJ2K codestreams in a row, then what is known of them.

A shard has all that is known of its images in itself, and has its name only once it is whole. So a build that was
stopped resumes with the shards it has, and even without pack.json nothing need be encoded again.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import struct
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from distcxr.data.store.store_files import PACK, StoreError, npy_bytes
from distcxr.regular import open_regular
from distcxr.runfolder.whole import flush

logger = logging.getLogger(__name__)

_END = struct.Struct("<QQI8s")  # bytes of the entries, bytes of the reasons, CRC-32 of both, mark


@dataclass(frozen=True, eq=False)
class Shard:
    """A whole shard, open."""

    name: str
    fd: int
    entries: NDArray[Any]  # `Format.entry_type` of its images, which may be changed; their `shard` means nothing here
    reasons: dict[str, str]  # why, by path, for its unreadable images
    is_new: bool  # pack.json does not name it: it is of a build that was stopped

    @property
    def number(self) -> int:
        """As its name has it."""
        return int(self.name.split("-")[1])

    def reason(self, row: int) -> str:
        """Why an unreadable image can't be read."""
        path = os.fsdecode(bytes(self.entries["path"][row]))
        return self.reasons.get(path, "it could not be read, for a reason not noted")

    def content(self, row: int) -> bytes | None:
        """The codestream of an image, compared with its checksum; None when it is damaged or can't be read."""
        entry = self.entries[row]
        try:
            num_bytes, offset = int(entry["num_bytes"]), int(entry["offset"])
            if offset < 0 or not 0 <= num_bytes <= os.fstat(self.fd).st_size - offset:  # forged, or cut short
                return None
            data = os.pread(self.fd, num_bytes, offset)
        except OSError:
            return None
        return data if len(data) == entry["num_bytes"] and isal_zlib.crc32(data) == entry["crc"] else None

    def close(self) -> None:
        os.close(self.fd)


def find_shards(folder: Path) -> tuple[list[Shard], dict[str, list[bytes]]]:
    """All whole shards of a folder, those of an unfinished build first: what they hold is newer.

    And, by name, those that pack.json names and that are not there, with the paths of their images; nobody knows of any
    where pack.json or its table can't be read.
    """
    try:
        settings = PACK.read_settings(folder)
        table = PACK.read_entries(folder, settings)
    except StoreError as error:
        if (folder / PACK.json_name).exists():
            logger.info("%s", error)
        return _unnamed(folder, but=()), {}
    found, missing = _unnamed(folder, but=settings["shards"]), {}
    for number, name in enumerate(settings["shards"]):
        entries = table[table["shard"] == number]
        try:
            fd, _ = open_regular(folder / name)
        except FileNotFoundError:
            missing[name] = entries["path"].tolist()
        else:
            found.append(Shard(name, fd, entries, settings["unreadable"], is_new=False))
    return found, missing


def _unnamed(folder: Path, but: Collection[str]) -> list[Shard]:
    found = []
    for file in sorted(folder.glob("shard-*.j2k")):
        if file.name in but:
            continue
        fd, _ = open_regular(file)
        try:
            found.append(Shard(file.name, fd, *read_shard_end(fd), is_new=True))
        except (OSError, ValueError):
            os.close(fd)
    return found


class NewShard:
    """A shard that is being written: images one after another, then `finish`. It has its name only then."""

    def __init__(self, folder: Path, number: int, num_images: int, path_bytes: int) -> None:
        self.name = f"shard-{number:05d}-{secrets.token_hex(4)}.j2k"
        self.entries = np.zeros(num_images, dtype=PACK.entry_type(path_bytes))
        self.reasons: dict[str, str] = {}
        self._folder, self._part = folder, folder / f"{self.name}.part"
        self._stream: IO[bytes] = self._part.open("wb")
        self._done = self._offset = 0

    def put(self, entry: NDArray[Any], stream: bytes, reason: str) -> None:
        """Append an image: its entry [1], its codestream, and why it has none, or ""."""
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
            entries, reasons = npy_bytes(self.entries), json.dumps(self.reasons).encode()
            end = _END.pack(len(entries), len(reasons), isal_zlib.crc32(entries + reasons), _mark())
            stream.write(entries + reasons + end)
        flush(self._part)
        self._part.replace(self._folder / self.name)
        flush(self._folder)

    def give_up(self) -> None:
        """Remove what is written, as far as the system lets that."""
        with suppress(OSError):  # what is still in the buffer may have no space on the disk
            self._part.unlink(missing_ok=True)
            self._stream.close()


def read_shard_end(fd: int) -> tuple[NDArray[Any], dict[str, str]]:
    """Entries and reasons of a shard. Raises ValueError where it is not whole or of another version, and OSError."""
    size = os.fstat(fd).st_size
    tail = os.pread(fd, _END.size, max(0, size - _END.size))
    if len(tail) < _END.size:
        raise ValueError("a shard's end is missing")
    num_first, num_second, crc, mark = _END.unpack(tail)
    if mark != _mark() or num_first + num_second + _END.size > size:
        raise ValueError("a shard's end is missing, or of another version")
    both = os.pread(fd, num_first + num_second, size - _END.size - num_first - num_second)
    if len(both) < num_first + num_second or isal_zlib.crc32(both) != crc:
        raise ValueError("a shard's end is damaged")
    try:
        reasons = json.loads(both[num_first:])
    except RecursionError:
        reasons = None
    if not isinstance(reasons, dict) or not all(isinstance(reason, str) for reason in reasons.values()):
        raise ValueError("a shard's reasons are damaged")
    return PACK.entries_of(both[:num_first]), reasons


def _mark() -> bytes:
    return b"distcxr" + bytes([16 * PACK.version + PACK.codec])
