"""Making a pack, and bringing one up to date."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from distcxr.data.index import SampleIndex
from distcxr.data.pixels.htj2k import check_available, decode_htj2k, encode_htj2k
from distcxr.data.store.pack_shards import NewShard, Shard, find_shards
from distcxr.data.store.store_building import GOOD, Built, Report, StoreBuilder, building_in, check_space
from distcxr.data.store.store_files import GONE, MADE, PACK, UNREADABLE, StoreError, look

SHARD_IMAGES = 1024

_AHEAD = 4  # images per thread that wait to be written
_SAMPLED = 256  # source files that the space is estimated from
_PER_JPEG = 3  # bytes of lossless HTJ2K for one of a JPEG: 3.1 for X-rays saved at quality 90, 2.0 at 95
_SHOWN = 3


class _Item(NamedTuple):
    """One image for a shard: its entry [1], its codestream, why it has none or "", and whether it was made now."""

    entry: NDArray[Any]
    stream: bytes
    reason: str
    is_made: bool


def build_pack(index: SampleIndex, folder: Path, *, workers: int, report: Report = lambda *_: None) -> Built:
    """Make the pack of all images of `index` in `folder`, or bring the one there up to date, with `workers` threads.

    Every codestream is decoded again as it is made and compared with the pixels. Each image of an earlier pack is
    checked: its codestream's checksum, its file's size and modification time, and where only the time differs, the
    file's checksum. Shards of which the images are all right stay as they are; of the others, what is right is copied.
    An image of which the file is not there any more stays. Running it again after it was stopped, in whatever way,
    resumes it.

    Raises:
        StoreError: another process builds it, the disk is full, the folder can't be written, or images are damaged
            of which the files are not there.
        ValueError: imagecodecs is not installed.
    """
    check_available()
    with building_in(folder, PACK):
        for part in folder.glob("shard-*.j2k.part"):  # they take the space that is measured below
            part.unlink()
        return _PackBuilder(index, folder, workers, report).run()


class _PackBuilder(StoreBuilder):
    def __init__(self, index: SampleIndex, folder: Path, workers: int, report: Report) -> None:
        super().__init__(PACK, index, folder, workers, report)
        self._wanted: set[bytes] = set(index.path.tolist())
        self._right: dict[bytes, tuple[Shard, int]] = {}  # by path, where a codestream that is right is
        self._touched = False
        self._path_bytes = 1

    def run(self) -> Built:
        shards, missing = find_shards(self._folder)
        try:
            self._take_stock(shards, missing)
            kept, groups = self._plan(shards)
            self._path_bytes = max(map(len, chain(self._wanted, self._right)), default=1)
            self._check_space([path for group in groups for path in group])
            made = self._write(groups, 1 + max((shard.number for shard in shards), default=-1))
            named = {shard.name for shard in shards if not shard.is_new}
            if made or self._touched or {shard.name for shard in kept} != named:
                self._write_table(kept, made)
        finally:
            for shard in shards:
                shard.close()
        built = self.finish()
        settings = PACK.read_settings(self._folder)
        built.num_shards = len(settings["shards"])
        built.num_bytes = int(PACK.read_entries(self._folder, settings)["num_bytes"].sum())
        return built

    def _take_stock(self, shards: list[Shard], missing: dict[str, list[bytes]]) -> None:
        """Check every image of every shard and fill `_right`."""
        held = [(shard, row) for shard in shards for row in range(len(shard.entries))]
        conditions = self.check(held)
        self._touched = bool((conditions == "touched").any())
        good = np.isin(conditions, GOOD)
        starts = np.cumsum([0, *(len(shard.entries) for shard in shards)])
        whole = [bool(good[start:end].all()) for start, end in pairwise(starts.tolist())]
        # An update that was stopped leaves shards beside those that they replace: take as few as possible apart.
        order = sorted(range(len(shards)), key=lambda number: (not whole[number], not shards[number].is_new))
        bad = dict.fromkeys(chain.from_iterable(missing.values()), "damaged")
        of = Counter(bad.values())
        for number in order:
            for row, path in enumerate(shards[number].entries["path"].tolist()):
                condition = str(conditions[starts[number] + row])
                if condition not in GOOD:
                    bad[path] = condition
                    of[condition] += not shards[number].is_new
                elif self._right.setdefault(path, (shards[number], row)) == (shards[number], row):
                    self._built.num_resumed += shards[number].is_new
                    self._built.num_without_file += condition == "alone"
        bad = {path: condition for path, condition in bad.items() if path not in self._right}
        gone = sum(path not in self._right and look(self.file(path)) == GONE for path in chain(*missing.values()))
        if gone:
            raise StoreError(
                f"{self._folder}: {', '.join(missing)} is missing, and so are the files of {gone:,} of its images: "
                "copy it again, or run this where the files are; to give these images up, remove pack.json"
            )
        lost = sorted(path for path, condition in bad.items() if condition == "lost" and path in self._wanted)
        if lost:
            named = set(lost)
            damaged = sorted({shard.name for shard, row in held if bytes(shard.entries["path"][row]) in named})
            raise StoreError(
                f"{self._folder}: {len(lost):,} damaged images of which the files are not there, such as "
                f"{', '.join(map(os.fsdecode, lost[:_SHOWN]))}: copy {', '.join(damaged)} again, or run this where the "
                "files are"
            )
        if any(not shard.is_new for shard in shards):
            self._built.num_new = len(self._wanted - self._right.keys() - bad.keys())
        self._wanted |= {path for path, condition in bad.items() if condition != "lost"}
        self._built.num_changed, self._built.num_damaged = of["changed"], of["damaged"]

    def _plan(self, shards: list[Shard]) -> tuple[list[Shard], list[list[bytes]]]:
        """Shards that stay, and the paths of each that has to be written.

        A shard that has to be written keeps its images. New ones fill shards of their own, together with those of
        shards that are less than half full: adding a few images often does not end in many small files.
        """
        held: dict[str, list[bytes]] = {shard.name: [] for shard in shards}
        for path, (shard, _) in self._right.items():
            held[shard.name].append(path)
        new = self._wanted - self._right.keys()
        kept, groups = [], []
        for shard in shards:
            paths = held[shard.name]
            if len(paths) == len(shard.entries):
                kept.append(shard)
                continue
            paths = sorted({*paths, *(path for path in shard.entries["path"].tolist() if path in new)})
            new.difference_update(paths)
            groups += [paths] if paths else []
        if new:
            small = [shard for shard in kept if len(shard.entries) < SHARD_IMAGES // 2]
            kept = [shard for shard in kept if shard not in small]
            rest = sorted(new.union(*(held[shard.name] for shard in small)))
            groups += [rest[start : start + SHARD_IMAGES] for start in range(0, len(rest), SHARD_IMAGES)]
        return kept, groups

    def _check_space(self, paths: list[bytes]) -> None:
        """StoreError when the shards to be written will not fit, as far as the size of the image files shows."""
        copied = [self._right[path] for path in paths if path in self._right]
        new = [path for path in paths if path not in self._right]
        sample = new[:: max(1, len(new) // _SAMPLED)]
        mean = sum(map(self._expected_bytes, sample)) / max(1, len(sample))
        needed = int(mean * len(new)) + sum(int(shard.entries["num_bytes"][row]) for shard, row in copied)
        check_space(self._folder, PACK, needed, estimated=True)

    def _expected_bytes(self, path: bytes) -> int:
        size = max(0, look(self.file(path))[0])
        return _PER_JPEG * size if path.lower().endswith((b".jpg", b".jpeg")) else size

    def _write(self, groups: list[list[bytes]], number: int) -> list[NewShard]:
        """Write shards, numbered from `number` on; images are made ahead, across the shards' ends."""
        made: list[NewShard] = []
        done, total = 0, sum(map(len, groups))
        with ThreadPoolExecutor(self._workers, thread_name_prefix="build") as pool:
            finishing: deque[Future[None]] = deque()
            items = self._ahead(pool, chain.from_iterable(groups))
            try:
                for group in groups:
                    made.append(NewShard(self._folder, number + len(made), len(group), self._path_bytes))
                    for _ in group:
                        item = next(items)
                        made[-1].put(item.entry, item.stream, item.reason)
                        self._built.num_made += item.is_made
                        done += 1
                        self._report("encoding", done, total)
                    finishing.append(pool.submit(made[-1].finish))  # a disk may take seconds to have it
                    while finishing[0].done() and len(finishing) > 1:
                        finishing.popleft().result()
                for future in finishing:
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                for shard in made:
                    shard.give_up()
                raise
        return made

    def _ahead(self, pool: ThreadPoolExecutor, paths: Iterator[bytes]) -> Iterator[_Item]:
        waiting: deque[Future[_Item]] = deque()
        for path in paths:
            waiting.append(pool.submit(self._item, path))
            if len(waiting) > _AHEAD * self._workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _item(self, path: bytes) -> _Item:
        """Taken over where it is right, or made."""
        if path in self._right:
            shard, row = self._right[path]
            entry, stream = shard.entries[row : row + 1], shard.content(row)
            if stream is not None:
                reason = shard.reason(row) if entry["state"] == UNREADABLE else ""
                return _Item(entry.astype(PACK.entry_type(self._path_bytes)), stream, reason, is_made=False)
        size, mtime_ns, crc, image, reason = self.read(path)
        entry = np.zeros(1, dtype=PACK.entry_type(len(path)))
        if image is None:
            entry[0] = (path, size, mtime_ns, crc, 0, 0, 0, 0, 0, 0, UNREADABLE)
            return _Item(entry, b"", reason, is_made=True)
        stream = encode_htj2k(image)
        if not np.array_equal(decode_htj2k(stream), image):
            raise StoreError(
                f"{os.fsdecode(self.file(path))}: HTJ2K gives other pixels than the file, and a pack has to be "
                "lossless: install another version of imagecodecs, or use the files (data.source=png)"
            )
        entry[0] = (path, size, mtime_ns, crc, 0, 0, len(stream), isal_zlib.crc32(stream), *image.shape, MADE)
        return _Item(entry, stream, "", is_made=True)

    def _write_table(self, kept: list[Shard], made: list[NewShard]) -> None:
        parts: list[Shard | NewShard] = sorted([*kept, *made], key=lambda shard: shard.name)
        every = [shard.entries.astype(PACK.entry_type(self._path_bytes)) for shard in parts]
        for number, entries in enumerate(every):
            entries["shard"] = number
        entries = np.concatenate([np.zeros(0, dtype=PACK.entry_type(self._path_bytes)), *every])
        reasons = {path: reason for shard in parts for path, reason in shard.reasons.items()}
        PACK.write(self._folder, entries[np.argsort(entries["path"])], reasons, shards=[part.name for part in parts])
