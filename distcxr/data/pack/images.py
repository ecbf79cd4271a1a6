"""One image of a pack: made from its file, and checked against it.

Shapes: H, W.
"""

from __future__ import annotations

import os
from typing import Any, Literal, NamedTuple

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from distcxr.data.built import look
from distcxr.data.pack.files import PACKED, UNREADABLE, PackError, entry_type
from distcxr.data.pack.shards import Shard
from distcxr.data.pixels.decode import decode_grey
from distcxr.data.pixels.files import UnreadableImage, read_file
from distcxr.data.pixels.htj2k import decode_htj2k, encode_htj2k

Verdict = Literal["right", "touched", "alone", "changed", "damaged", "lost"]
"""Of an image in a shard: `touched`, its file has another time and the same bytes; `alone`, the codestream is right and
the file is not there; `lost`, neither is."""
GOOD: tuple[Verdict, ...] = ("right", "touched", "alone")

_GONE = [-1, -1]


class Item(NamedTuple):
    """One image for a shard: `entry_type` [1], its codestream, why it has none or "", and whether it was made now."""

    entry: NDArray[Any]
    stream: bytes
    reason: str
    is_made: bool


class Images:
    """The image files below a root. Any thread may call."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = os.fsencode(root)

    def file(self, path: bytes) -> bytes:
        """The file of a path that is relative to the root."""
        return os.path.join(self._root, path)

    def make(self, path: bytes) -> Item:
        """Read, decode, encode and verify one source file; never raises for the file's own fault."""
        size, mtime_ns = look(self.file(path))
        crc, entry = 0, np.zeros(1, dtype=entry_type(len(path)))
        try:
            data, state = read_file(os.fsdecode(self.file(path)))
            size, mtime_ns, crc = state.st_size, state.st_mtime_ns, isal_zlib.crc32(data)
            image = decode_grey(data)
        except UnreadableImage as error:
            entry[0] = (path, size, mtime_ns, crc, 0, 0, 0, 0, 0, 0, UNREADABLE)
            return Item(entry, b"", str(error), is_made=True)
        stream = encode_htj2k(image)
        if not np.array_equal(decode_htj2k(stream), image):
            raise PackError(
                f"{os.fsdecode(self.file(path))}: HTJ2K gives other pixels than the file, and a pack has to be "
                "lossless: install another version of imagecodecs, or use the files (data.source=png)"
            )
        height, width = image.shape
        entry[0] = (path, size, mtime_ns, crc, 0, 0, len(stream), isal_zlib.crc32(stream), height, width, PACKED)
        return Item(entry, stream, "", is_made=True)

    def judge(self, shard: Shard, row: int) -> Verdict:
        """Whether an image of a shard is right; puts a new modification time into its entry."""
        entry = shard.entries[row]
        path = bytes(entry["path"])
        before, now = [entry["size"], entry["mtime_ns"]], look(self.file(path))
        if now == _GONE:
            return "alone" if entry["state"] == UNREADABLE or shard.stream(row) is not None else "lost"
        if entry["state"] == UNREADABLE:  # perhaps it was the system's fault, and is mended
            made = self.make(path)
            if made.reason != shard.reasons[os.fsdecode(path)]:
                return "changed"
            shard.entries["source_crc"][row] = made.entry["source_crc"][0]
        elif now[0] != before[0] or (now != before and self._source_crc(path) != entry["source_crc"]):
            return "changed"
        elif shard.stream(row) is None:
            return "damaged"
        shard.entries["size"][row], shard.entries["mtime_ns"][row] = now
        return "right" if now == before else "touched"

    def _source_crc(self, path: bytes) -> int | None:
        try:
            return int(isal_zlib.crc32(read_file(os.fsdecode(self.file(path)))[0]))
        except UnreadableImage:
            return None
