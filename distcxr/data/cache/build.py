"""Making a decoded cache, and bringing one up to date.

    index ──► check what an earlier cache holds ──► nothing to do
                                               └──► new files: rows taken over, the others decoded ──► cache.json

cache.json is replaced last, after everything it names has reached the disk.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import secrets
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from distcxr.data.built import Report, flush, in_threads, locked, look, shown_size, write_json
from distcxr.data.cache.files import CODEC, DECODED, FORMAT, UNREADABLE, CacheError, read_meta, remove_files
from distcxr.data.cache.read import DecodedCache
from distcxr.data.cache.unfinished import Unfinished
from distcxr.data.index import SampleIndex
from distcxr.data.pixels.decode import decode_grey, load_kernels
from distcxr.data.pixels.files import UnreadableImage, read_file
from distcxr.data.pixels.resize import resize_grey

logger = logging.getLogger(__name__)

_Verdict = Literal["right", "touched", "changed", "damaged"]


@dataclass
class Built:
    """What `build_cache` did.

    Attributes:
        num_images: in the cache now.
        num_bytes: of its pixels.
        num_decoded: images read from their files; the others were taken over.
        num_changed: of an earlier cache, images whose file has changed, or can be read now.
        num_damaged: of an earlier cache, images whose pixels have changed.
        num_new: images that an earlier cache did not have.
        num_resumed: images taken over from a build that was cut short.
        unreadable: reason by path of the images that can't be read.
    """

    num_images: int = 0
    num_bytes: int = 0
    num_decoded: int = 0
    num_changed: int = 0
    num_damaged: int = 0
    num_new: int = 0
    num_resumed: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)


def build_cache(
    index: SampleIndex, folder: Path, image_size: int, *, workers: int, report: Report = lambda *_: None
) -> Built:
    """Make the cache of all images of `index` in `folder`, or bring the one there up to date.

    Each image of an earlier cache is checked: its pixels' checksum, its file's size and modification time, and where
    only the time differs, the file's checksum. If all are right no pixels are written; otherwise a new file is, and
    running jobs keep the old one. Running it again after it was stopped, in whatever way, goes on.

    Args:
        workers: threads; a file is decoded without the GIL.

    Raises:
        CacheError: another process builds it, the disk is full, or the folder can't be written.
    """
    load_kernels()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "lock", wait=None):
            if (folder / "pack.json").exists() or any(folder.glob("shard-*.j2k")):
                raise CacheError(f"{folder} holds a pack: set data.cache.path to a folder of its own")
            return _Builder(index, folder, image_size, workers, report).run()
    except BlockingIOError as error:
        raise CacheError(f"{folder}: another process is building this cache; let it finish") from error
    except OSError as error:
        there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
        needed, free = len(index) * image_size**2, shutil.disk_usage(there).free
        raise CacheError(
            f"{folder}: the cache can't be written: {error.strerror}. It takes {shown_size(needed)} and "
            f"{shown_size(free)} is free there; make room or set data.cache.path to another folder, and run the same "
            "command again: what is done is kept"
        ) from error


class _Row(NamedTuple):
    """One image as it was read now: what its entry says of the file, pixels [S*S], and why it can't be read."""

    size: int
    mtime_ns: int
    source_crc: int
    pixels: NDArray[np.uint8]
    reason: str | None


class _Builder:
    """One call of `build_cache`, with the lock held."""

    def __init__(self, index: SampleIndex, folder: Path, image_size: int, workers: int, report: Report) -> None:
        self._folder, self._image_size, self._row_bytes = folder, image_size, image_size**2
        self._workers, self._report = workers, report
        self._root = os.fspath(index.root)
        self._names = np.unique(index.path)  # sorted
        self._reasons: dict[str, str] = {}
        self._lock = threading.Lock()
        self._built = Built()

    def run(self) -> Built:
        try:
            old = DecodedCache(self._folder, self._image_size)
        except CacheError as error:
            if (self._folder / "cache.json").exists():
                logger.info("%s", error)
            self._build(None, np.zeros(0, dtype=bool))
            return self._built
        try:
            self._reasons = dict(old.meta["unreadable"])
            verdicts = self._check(old)
            wrong = np.isin(verdicts, ["changed", "damaged"])
            self._built.num_changed = int((verdicts == "changed").sum())
            self._built.num_damaged = int((verdicts == "damaged").sum())
            self._built.num_new = int((~np.isin(self._names, old.entries["path"])).sum())
            if wrong.any() or self._built.num_new:
                self._build(old, wrong)
            else:
                if (verdicts == "touched").any():  # a copied dataset, for one: only the entries are written
                    self._write_meta(old.entries, old.pixels_file.name)
                self._tidy(old.entries)
        finally:
            old.close()
        return self._built

    def _check(self, old: DecodedCache) -> NDArray[np.str_]:
        """Verdict on each row of an earlier cache; puts new modification times into `old.entries`."""
        verdicts = np.full(len(old.entries), "right", dtype="<U8")

        def check(row: int) -> None:
            verdicts[row] = self._judge(old, row)

        self._in_threads("checking", check, np.arange(len(old.entries)))
        return verdicts

    def _judge(self, old: DecodedCache, row: int) -> _Verdict:
        entry, path = old.entries[row], old.path(row)
        before = [entry["size"], entry["mtime_ns"]]
        if entry["state"] == UNREADABLE:  # perhaps it was the system's fault, and is mended
            made = self._read(path)
            if made.reason != self._reasons[path]:
                return "changed"
            now = [made.size, made.mtime_ns]
            old.entries["source_crc"][row] = made.source_crc
        else:
            now = look(f"{self._root}/{path}")
            if now[0] != before[0] or (now != before and self._source_crc(path) != entry["source_crc"]):
                return "changed"
        if not _copied(old, row, np.empty(self._row_bytes, dtype=np.uint8)):
            return "damaged"
        old.entries["size"][row], old.entries["mtime_ns"][row] = now
        return "right" if now == before else "touched"

    def _build(self, old: DecodedCache | None, wrong: NDArray[np.bool_]) -> None:
        """Write a new file: rows of `old` that are right are copied, the others are decoded."""
        building = Unfinished(self._folder, self._names, self._image_size, self._whole_files())
        entries = building.entries
        right = {} if old is None else {bytes(old.entries["path"][row]): row for row in np.flatnonzero(~wrong).tolist()}

        def recheck(row: int) -> None:
            building.recheck(row, f"{self._root}/{os.fsdecode(bytes(entries['path'][row]))}")

        def make(row: int) -> None:
            name = bytes(entries["path"][row])
            if old is not None and name in right:
                pixels = np.empty(self._row_bytes, dtype=np.uint8)
                if _copied(old, right[name], pixels):
                    entry = old.entries[right[name]]
                    building.put(row, [entry[key] for key in ("size", "mtime_ns", "source_crc", "state")], pixels)
                    return
            path = os.fsdecode(name)
            made = self._read(path)
            state = DECODED if made.reason is None else UNREADABLE
            building.put(row, (made.size, made.mtime_ns, made.source_crc, state), made.pixels)
            with self._lock:
                self._built.num_decoded += 1
                if made.reason is not None:
                    self._reasons[path] = made.reason

        try:
            self._in_threads("checking what was done before", recheck, np.flatnonzero(building.done))
            self._built.num_resumed = int(building.done.sum())
            self._in_threads("decoding", make, np.flatnonzero(~building.done))
            building.flush()
        finally:
            building.close()
        self._write_meta(entries, building.pixels_name)
        self._tidy(entries)

    def _write_meta(self, entries: NDArray[Any], pixels_name: str) -> None:
        """Write the entries, then cache.json: from here on it is a whole cache."""
        buffer = io.BytesIO()
        np.save(buffer, entries)
        name = f"entries-{secrets.token_hex(4)}.npy"
        (self._folder / name).write_bytes(buffer.getvalue())
        flush(self._folder / name)
        flush(self._folder)
        unreadable = [os.fsdecode(path) for path in entries["path"][entries["state"] == UNREADABLE].tolist()]
        sources = [entries[column].tobytes() for column in ("path", "size", "source_crc")]
        write_json(
            self._folder / "cache.json",
            {
                "format": FORMAT, "codec": CODEC, "image_size": self._image_size, "num_images": len(entries),
                "pixels": pixels_name, "entries": name,
                "entries_sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
                "sources_sha256": hashlib.sha256(b"".join(sources)).hexdigest(),
                "unreadable": {path: self._reasons[path] for path in unreadable},
            },
        )  # fmt: skip

    def _tidy(self, entries: NDArray[Any]) -> None:
        """Remove what the whole cache does not name, and say what it holds."""
        remove_files(self._folder, self._whole_files())
        self._built.num_images, self._built.num_bytes = len(entries), len(entries) * self._row_bytes
        self._built.unreadable = dict(read_meta(self._folder)["unreadable"])

    def _whole_files(self) -> tuple[str, ...]:
        """What belongs to a whole cache and has to stay."""
        try:
            meta = read_meta(self._folder)
        except CacheError:
            return ()
        return ("cache.json", str(meta["pixels"]), str(meta["entries"]))

    def _read(self, path: str) -> _Row:
        """Decode one source file; never raises for the file's own fault."""
        file = f"{self._root}/{path}"
        size, mtime_ns = look(file)
        crc = 0
        try:
            data, state = read_file(file)
            size, mtime_ns, crc = state.st_size, state.st_mtime_ns, isal_zlib.crc32(data)
            return _Row(size, mtime_ns, crc, resize_grey(decode_grey(data), self._image_size).reshape(-1), None)
        except UnreadableImage as error:
            return _Row(size, mtime_ns, crc, np.zeros(self._row_bytes, dtype=np.uint8), str(error))

    def _source_crc(self, path: str) -> int | None:
        try:
            return int(isal_zlib.crc32(read_file(f"{self._root}/{path}")[0]))
        except UnreadableImage:
            return None

    def _in_threads(self, what: str, work: Callable[[int], None], rows: NDArray[np.int64]) -> None:
        in_threads(what, work, rows, workers=self._workers, report=self._report)


def _copied(cache: DecodedCache, row: int, out: NDArray[np.uint8]) -> bool:
    """Copy a row's pixels to `out` [S*S]; False when they are damaged."""
    try:
        cache.gather_checked(np.array([row]), out[None])
    except RuntimeError:
        return False
    return True
