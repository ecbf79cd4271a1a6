"""Making a pack, and bringing one up to date.

    index ──► shards that are there: check each image ──► all right: nothing to do
                                                     └──► others: codestreams taken over or encoded ──► pack.json

pack.json is replaced last, after everything it names has reached the disk.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path

import numpy as np

from distcxr.data.built import Report, flush, in_threads, locked, look, shown_size, write_json
from distcxr.data.index import SampleIndex
from distcxr.data.pack.files import CODEC, FORMAT, UNFINISHED, UNREADABLE, PackError, entry_type, remove_files, to_bytes
from distcxr.data.pack.images import GOOD, Images, Item
from distcxr.data.pack.read import Pack
from distcxr.data.pack.shards import NewShard, Shard, find_shards, missing_shards
from distcxr.data.pixels.decode import load_kernels
from distcxr.data.pixels.htj2k import check_available

SHARD_IMAGES = 1024

_AHEAD = 4  # images per thread that wait to be written
_SAMPLED = 256  # source files that tell how much space it takes
_PER_JPEG = 3  # bytes of lossless HTJ2K for one of a JPEG: 3.1 for X-rays saved at quality 90, 2.0 at 95
_SHOWN = 3


@dataclass
class Built:
    """What `build_pack` did.

    Attributes:
        num_images: in the pack now.
        num_shards: that hold them.
        num_bytes: of their codestreams.
        num_encoded: images read from their files; the others were taken over.
        num_changed: of an earlier pack, images whose file has changed, or can be read now.
        num_damaged: of an earlier pack, images whose codestream has changed.
        num_new: images that an earlier pack did not have.
        num_resumed: images taken over from a build that was stopped.
        num_without_file: images whose file is not there: of these the codestream alone was checked.
        unreadable: reason by path of the images that can't be read.
    """

    num_images: int = 0
    num_shards: int = 0
    num_bytes: int = 0
    num_encoded: int = 0
    num_changed: int = 0
    num_damaged: int = 0
    num_new: int = 0
    num_resumed: int = 0
    num_without_file: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)


def build_pack(index: SampleIndex, folder: Path, *, workers: int, report: Report = lambda *_: None) -> Built:
    """Make the pack of all images of `index` in `folder`, or bring the one there up to date.

    Every codestream is decoded again as it is made and compared with the pixels. Each image of an earlier pack is
    checked: its codestream's checksum, its file's size and modification time, and where only the time differs, the
    file's checksum. Shards whose images are all right stay as they are; of the others, what is right is copied. An
    image whose file is not there any more stays. Running it again after it was stopped, in whatever way, goes on.

    Args:
        workers: threads; decoding and encoding need no GIL.

    Raises:
        PackError: another process builds it, the disk is full, the folder can't be written, or images are damaged
            whose files are not there.
        ValueError: imagecodecs is not installed.
    """
    check_available()
    load_kernels()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "lock", wait=None):
            if any((folder / name).exists() for name in ("cache.json", "building.json")):
                raise PackError(f"{folder} holds a decoded cache: set data.pack.path to a folder of its own")
            for part in chain.from_iterable(map(folder.glob, UNFINISHED)):
                part.unlink()
            return _Builder(index, folder, workers, report).run()
    except BlockingIOError as error:
        raise PackError(f"{folder}: another process is building this pack; let it finish") from error
    except OSError as error:
        advice = "Set data.pack.path to another folder"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
            free = shown_size(shutil.disk_usage(there).free)
            advice = f"{free} is free there; make room or set data.pack.path to another folder"
        raise PackError(
            f"{folder}: the pack can't be written: {error.strerror}. {advice}, and run the same command again: whole "
            "shards are kept"
        ) from error


class _Builder:
    """One call of `build_pack`, with the lock held."""

    def __init__(self, index: SampleIndex, folder: Path, workers: int, report: Report) -> None:
        self._folder, self._workers, self._report = folder, workers, report
        self._images = Images(index.root)
        self._wanted: set[bytes] = set(index.path.tolist())
        self._built = Built()
        self._right: dict[bytes, tuple[Shard, int]] = {}  # by path, where a codestream that is right lies
        self._touched = False
        self._path_bytes = 1

    def run(self) -> Built:
        shards = find_shards(self._folder)
        try:
            self._check(shards)
            self._check_missing()
            kept, groups = self._plan(shards)
            self._path_bytes = max(map(len, chain(self._wanted, self._right)), default=1)
            self._check_space([path for group in groups for path in group])
            made = self._write(groups, 1 + max((shard.number for shard in shards), default=-1))
            named = {shard.name for shard in shards if not shard.is_new}
            if made or self._touched or {shard.name for shard in kept} != named:
                self._write_meta(kept, made)
            self._tidy()
        finally:
            for shard in shards:
                shard.close()
        return self._built

    def _check(self, shards: list[Shard]) -> None:
        """Judge every image of every shard; fills `_right`, and new modification times into the shards' entries."""
        places = [(shard, row) for shard in shards for row in range(len(shard.entries))]
        verdicts = np.full(len(places), "right", dtype="<U8")

        def judge(number: int) -> None:
            verdicts[number] = self._images.judge(*places[number])

        in_threads("checking", judge, np.arange(len(places)), workers=self._workers, report=self._report)
        self._touched = bool((verdicts == "touched").any())
        good = np.isin(verdicts, GOOD)
        starts = np.cumsum([0, *(len(shard.entries) for shard in shards)])
        whole = [bool(good[start:end].all()) for start, end in pairwise(starts.tolist())]
        # An update that was stopped leaves shards beside those that they replace: take as few as possible apart.
        order = sorted(range(len(shards)), key=lambda number: (not whole[number], not shards[number].is_new))
        bad: dict[bytes, str] = {}
        of: Counter[str] = Counter()
        for number in order:
            for row, path in enumerate(shards[number].entries["path"].tolist()):
                verdict = str(verdicts[starts[number] + row])
                if verdict not in GOOD:
                    bad[path] = verdict
                    of[verdict] += not shards[number].is_new
                elif self._right.setdefault(path, (shards[number], row)) == (shards[number], row):
                    self._built.num_resumed += shards[number].is_new
                    self._built.num_without_file += verdict == "alone"
        bad = {path: verdict for path, verdict in bad.items() if path not in self._right}
        lost = sorted(path for path, verdict in bad.items() if verdict == "lost" and path in self._wanted)
        if lost:
            named = set(lost)
            damaged = sorted({shard.name for shard, row in places if bytes(shard.entries["path"][row]) in named})
            raise PackError(
                f"{self._folder}: {len(lost):,} damaged images whose files are not there, such as "
                f"{', '.join(map(os.fsdecode, lost[:_SHOWN]))}: copy {', '.join(damaged)} again, or run this where the "
                "files are"
            )
        if any(not shard.is_new for shard in shards):
            self._built.num_new = len(self._wanted - self._right.keys() - bad.keys())
        self._wanted |= {path for path, verdict in bad.items() if verdict != "lost"}
        self._built.num_changed, self._built.num_damaged = of["changed"], of["damaged"]

    def _check_missing(self) -> None:
        """PackError when a shard that was there is not, and image files that could make up for it are not either."""
        names, paths = missing_shards(self._folder)
        num = sum(path not in self._right and look(self._images.file(path))[0] < 0 for path in paths)
        if num:
            raise PackError(
                f"{self._folder}: {', '.join(names)} is missing, and so are the files of {num:,} of its images: copy "
                "it again, or run this where the files are; to give these images up, remove pack.json"
            )

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
        """PackError when the shards to be written will not fit, as far as the size of the image files tells."""
        copied = [self._right[path] for path in paths if path in self._right]
        new = [path for path in paths if path not in self._right]
        sample = new[:: max(1, len(new) // _SAMPLED)]
        mean = sum(map(self._expected_bytes, sample)) / max(1, len(sample))
        needed = int(mean * len(new)) + sum(int(shard.entries["num_bytes"][row]) for shard, row in copied)
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise PackError(
                f"{self._folder}: the pack takes about {shown_size(needed)}, going by its image files, and "
                f"{shown_size(free)} is free there: make room, or set data.pack.path to another folder"
            )

    def _expected_bytes(self, path: bytes) -> int:
        size = max(0, look(self._images.file(path))[0])
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
                        self._built.num_encoded += item.is_made
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

    def _ahead(self, pool: ThreadPoolExecutor, paths: Iterator[bytes]) -> Iterator[Item]:
        waiting: deque[Future[Item]] = deque()
        for path in paths:
            waiting.append(pool.submit(self._item, path))
            if len(waiting) > _AHEAD * self._workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _item(self, path: bytes) -> Item:
        """Taken over where it is right, or made."""
        if path in self._right:
            shard, row = self._right[path]
            entry = shard.entries[row : row + 1].astype(entry_type(self._path_bytes))
            if entry["state"] == UNREADABLE:
                return Item(entry, b"", shard.reasons[os.fsdecode(path)], is_made=False)
            stream = shard.stream(row)
            if stream is not None:
                return Item(entry, stream, "", is_made=False)
        return self._images.make(path)

    def _write_meta(self, kept: list[Shard], made: list[NewShard]) -> None:
        """Write the entries, then pack.json: from here on it is a whole pack."""
        parts: list[Shard | NewShard] = sorted([*kept, *made], key=lambda shard: shard.name)
        every = [shard.entries.astype(entry_type(self._path_bytes)) for shard in parts]
        for number, entries in enumerate(every):
            entries["shard"] = number
        entries = np.concatenate([np.zeros(0, dtype=entry_type(self._path_bytes)), *every])
        entries = entries[np.argsort(entries["path"])]
        data, name = to_bytes(entries), f"entries-{secrets.token_hex(4)}.npy"
        (self._folder / name).write_bytes(data)
        flush(self._folder / name)
        flush(self._folder)
        reasons = {path: reason for shard in parts for path, reason in shard.reasons.items()}
        unreadable = [os.fsdecode(path) for path in entries["path"][entries["state"] == UNREADABLE].tolist()]
        write_json(
            self._folder / "pack.json",
            {
                "format": FORMAT, "codec": CODEC, "num_images": len(entries), "shards": [one.name for one in parts],
                "entries": name, "entries_sha256": hashlib.sha256(data).hexdigest(),
                "unreadable": {path: reasons[path] for path in unreadable},
            },
        )  # fmt: skip

    def _tidy(self) -> None:
        """Remove what the whole pack does not name, and say what it holds."""
        pack = Pack(self._folder)
        pack.close()
        remove_files(self._folder, ("pack.json", pack.meta["entries"], *pack.shards))
        self._built.num_images, self._built.num_shards = len(pack.entries), len(pack.shards)
        self._built.num_bytes = int(pack.entries["num_bytes"].sum())
        self._built.unreadable = dict(pack.meta["unreadable"])
