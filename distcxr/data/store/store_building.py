"""What building a cache and building a pack have in common: who may, what is still right, why it can't be written.

    index ──► check what an earlier store holds ──► all right: nothing to do
                                               └──► new files: rows taken over, the others made ──► the JSON file

The JSON file is replaced last, after everything it names has reached the disk.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from distcxr.data.index import SampleIndex
from distcxr.data.pixels.decode import decode_grey, load_kernels
from distcxr.data.pixels.image_bytes import UnreadableImage, read_file
from distcxr.data.store.cache_format import DecodedCache
from distcxr.data.store.pack_shards import Shard
from distcxr.data.store.store_files import CACHE, GONE, PACK, UNREADABLE, Format, StoreError, locked, look, shown_size

Report = Callable[[str, int, int], None]
"""(what is being done, images done, images in all); called from the thread that builds."""

Condition = Literal["right", "touched", "alone", "changed", "damaged", "lost"]
"""Of an image of a store: `touched`, its file has another time and the same bytes; `alone`, the store's bytes are right
and the file is not there; `lost`, neither is."""
GOOD: tuple[Condition, ...] = ("right", "touched", "alone")

_CHUNK = 16
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass
class Built:
    """What a build did."""

    num_images: int = 0  # in the store now
    num_bytes: int = 0  # of their pixels or codestreams
    num_shards: int = 0  # that hold them, of a pack
    num_made: int = 0  # images read from their files; the others were taken over
    num_changed: int = 0  # of an earlier store, images of which the file has changed, or can be read now
    num_damaged: int = 0  # of an earlier store, images of which the stored bytes have changed
    num_new: int = 0  # images that an earlier store did not have
    num_resumed: int = 0  # images taken over from a build that was stopped
    num_without_file: int = 0  # of a pack, images of which the file is not there: the codestream alone was checked
    unreadable: dict[str, str] = field(default_factory=dict)  # reason by path of the images that can't be read


class SourceImage(NamedTuple):
    """An image file as it was read now; `image`, uint8 [H, W], is None where it can't be, for the reason."""

    size: int
    mtime_ns: int
    crc: int
    image: NDArray[np.uint8] | None
    reason: str


Holder = DecodedCache | Shard
"""What holds images that were made before."""


@contextmanager
def building_in(folder: Path, format: Format, num_bytes: int | None = None) -> Iterator[None]:
    """Hold the folder's lock while a store is built there, which takes `num_bytes`, if known.
    Raises StoreError: another process builds it, the folder holds a store of the other format, or an OSError came
    up."""
    load_kernels()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "lock", wait=None):
            for other in (CACHE, PACK):
                if other is not format and other.is_begun(folder):
                    raise StoreError(
                        f"{folder} holds a {other.title}: set data.{format.name}.path to a folder of its own"
                    )
            yield
    except BlockingIOError as error:
        raise StoreError(f"{folder}: another process is building this {format.name}; let it finish") from error
    except OSError as error:
        advice = f"Set data.{format.name}.path to another folder"
        if error.errno in _FULL:
            there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
            takes = f"It takes {shown_size(num_bytes)} and " if num_bytes is not None else ""
            free = shown_size(shutil.disk_usage(there).free)
            advice = f"{takes}{free} is free there; free some, or set data.{format.name}.path to another folder"
        raise StoreError(
            f"{folder}: the {format.name} can't be written: {error.strerror}. {advice}, and run the same command "
            "again: what is done is kept"
        ) from error


def check_space(folder: Path, format: Format, num_bytes: int, *, estimated: bool = False) -> None:
    """StoreError when what has to be written will not fit."""
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        size = f"about {shown_size(num_bytes)}, going by its image files," if estimated else shown_size(num_bytes)
        raise StoreError(
            f"{folder}: the {format.name} takes {size} and {shown_size(free)} is free there: free some, or set "
            f"data.{format.name}.path to another folder"
        )


class StoreBuilder:
    """One build, with the lock held. Any thread may call `read`."""

    def __init__(self, format: Format, index: SampleIndex, folder: Path, workers: int, report: Report) -> None:
        self._format, self._folder, self._workers, self._report = format, folder, workers, report
        self.file = index.locate  # of a path that is relative to the root
        self._built = Built()

    def read(self, path: bytes) -> SourceImage:
        """Read and decode one source file; never raises for the file's own fault."""
        size, mtime_ns = look(self.file(path))
        crc = 0
        try:
            data, state = read_file(os.fsdecode(self.file(path)))
            size, mtime_ns, crc = state.st_size, state.st_mtime_ns, isal_zlib.crc32(data)
            return SourceImage(size, mtime_ns, crc, decode_grey(data), "")
        except UnreadableImage as error:
            return SourceImage(size, mtime_ns, crc, None, str(error))

    def each(self, what: str, work: Callable[[int], None], rows: NDArray[np.int64]) -> None:
        """Run `work` on every row in threads, in any order; the first error ends it."""
        stop = threading.Event()

        def run(part: list[int]) -> int:
            for row in part:
                if stop.is_set():
                    break
                work(row)
            return len(part)

        done, starts = 0, range(0, len(rows), _CHUNK)
        with ThreadPoolExecutor(self._workers, thread_name_prefix="build") as pool:
            try:
                futures = [pool.submit(run, rows[start : start + _CHUNK].tolist()) for start in starts]
                for future in as_completed(futures):
                    done += future.result()
                    self._report(what, done, len(rows))
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def check(self, held: Sequence[tuple[Holder, int]]) -> NDArray[np.str_]:
        """The `Condition` of each image (holder, row); puts new modification times into the holders' entries."""
        conditions = np.full(len(held), "right", dtype="<U8")

        def check(number: int) -> None:
            conditions[number] = self._condition(*held[number])

        self.each("checking", check, np.arange(len(held)))
        return conditions

    def finish(self) -> Built:
        """Remove what the whole store does not name; what the build did."""
        settings = self._format.read_settings(self._folder)
        self._format.remove_files(self._folder, keep=self._format.whole_files(self._folder))
        self._built.num_images, self._built.unreadable = settings["num_images"], settings["unreadable"]
        return self._built

    def _condition(self, holder: Holder, row: int) -> Condition:
        entry, content = holder.entries[row], holder.content
        path = bytes(entry["path"])
        before, now = [entry["size"], entry["mtime_ns"]], look(self.file(path))
        if now == GONE and self._format.stands_alone:
            return "alone" if content(row) is not None else "lost"
        if entry["state"] == UNREADABLE:  # perhaps it was the system's fault, and is mended
            source = self.read(path)
            if source.reason != holder.reason(row):
                return "changed"
            holder.entries["source_crc"][row] = source.crc
        elif now[0] != before[0] or (now != before and self._source_crc(path) != entry["source_crc"]):
            return "changed"
        if content(row) is None:
            return "damaged"
        holder.entries["size"][row], holder.entries["mtime_ns"][row] = now
        return "right" if now == before else "touched"

    def _source_crc(self, path: bytes) -> int | None:
        try:
            return int(isal_zlib.crc32(read_file(os.fsdecode(self.file(path)))[0]))
        except UnreadableImage:
            return None
