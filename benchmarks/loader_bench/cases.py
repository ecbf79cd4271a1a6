"""What is measured: loaders, the grid of image size x threads x ranks, and which cases take turns with each other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PageCache = Literal["warm", "cold"]


@dataclass(frozen=True)
class Kind:
    """One way from bytes to pixels.

    Attributes:
        source: what the bytes come from.
        what: one line for the legend.
        resizes: makes `image_size` pixels; otherwise the images keep the size of the files.
        threaded: `threads` means something to it.
        ahead: batches per thread that it may hold ready between two windows; they are thrown away first.
        ahead_more: the same, apart from threads.
        rounds: how often a window goes through the files; fast loaders need longer ones for a steady figure.
        quick: measured by `--quick`, too.
        rows: works on the rows of the working set rather than on the files.
        gpu: needs a GPU.
        cold: can be measured with a cold page cache, because it reads nothing ahead.
    """

    source: str
    what: str
    resizes: bool = True
    threaded: bool = True
    ahead: int = 0
    ahead_more: int = 0
    rounds: int = 1
    quick: bool = True
    rows: bool = False
    gpu: bool = False
    cold: bool = False


KINDS: dict[str, Kind] = {
    "seed": Kind(
        "png", "baseline: PIL, RGB, Resize, ToTensor in a torch DataLoader; threads are workers (cold: none)", ahead=2,
        cold=True,
    ),
    "pil": Kind("png", "PIL, grey, bilinear", ahead=1, quick=False),
    "torchvision": Kind("png", "torchvision, grey, antialiased", ahead=1),
    "dali plain": Kind("png", "DALI as its manual has it: readers.file, decoders.image, resize", ahead_more=3),
    "png": Kind("png", "distcxr's decode and resize in plain threads", ahead=1, rounds=2, cold=True),
    "torch": Kind("png", "data.loader=torch; threads are workers", ahead=2, rounds=2),
    "dali": Kind("png", "data.loader=dali", ahead_more=5, rounds=2),
    "gpu": Kind("png", "data.loader=gpu, inflated by nvCOMP", ahead_more=80, rounds=16, gpu=True),
    "gpu filters": Kind("png", "data.loader=gpu, inflated by ISA-L on the CPU", ahead_more=20, rounds=8, gpu=True),
    "dali pack": Kind("pack", "data.source=pack, decoded by DALI on the GPU", ahead_more=5, rounds=2, gpu=True),
    "cache": Kind(
        "cache", "data.loader=cache, whole: order, labels, augmentation parameters", threaded=False, rows=True,
        ahead_more=3, cold=True,
    ),
    "cache reader": Kind("cache", "data.loader=cache, pixels alone", threaded=False, rows=True, ahead_more=3),
    "cache device": Kind(
        "cache", "data.loader=cache with data.cache.resident=device", threaded=False, rows=True, ahead_more=3, gpu=True
    ),
    "pack": Kind("pack", "data.source=pack's read, decode and resize in plain threads", ahead=1, rounds=2),
    "pack build": Kind(
        "png", "distcxr pack, from nothing: decode, encode, verify, write; threads are --workers", resizes=False
    ),
    "cache build": Kind("png", "distcxr cache, from nothing: decode, resize, write; threads are --workers"),
    "pil decode": Kind("png", "PIL, grey, no resize", resizes=False, ahead=1),
    "torchvision decode": Kind("png", "torchvision, grey, no resize", resizes=False, ahead=1),
    "dali decode": Kind("png", "DALI's own decoder, no resize", resizes=False, ahead_more=3),
    "png decode": Kind("png", "distcxr's decode, no resize", resizes=False, ahead=1, rounds=2),
    "pack decode": Kind("pack", "data.source=pack's read and decode, no resize", resizes=False, ahead=1, rounds=2),
    "inflate": Kind("deflate", "limit: ISA-L inflate of the PNGs, from memory", resizes=False, ahead=1, rounds=2),
    "memcpy": Kind("memory", "limit: copy rows of this size in random order", threaded=False, rows=True),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One row of the result."""

    loader: str
    image_size: int
    threads: int
    ranks: int
    page_cache: PageCache = "warm"

    @property
    def kind(self) -> Kind:
        return KINDS[self.loader]

    def __str__(self) -> str:
        cold = ", cold" if self.page_cache == "cold" else ""
        return f"{self.loader}, {self.image_size} px, threads {self.threads}, ranks {self.ranks}{cold}"


@dataclass(frozen=True)
class Task:
    """What one process of a case needs to know; sent to it.

    Attributes:
        files: PNGs, in the order in which every case reads them, again and again.
        batch_size: images of a batch.
        cache: folder of the decoded cache, for those that read one.
        num_rows: images in the working set, all ranks together.
        gpu: number of this rank's GPU, None without one.
        cold: read nothing ahead.
        work: folder for what it writes, and with the pack of the files in it where a case reads one.
    """

    loader: str
    image_size: int
    threads: int
    rank: int
    ranks: int
    files: tuple[str, ...]
    batch_size: int
    cache: Path | None
    num_rows: int
    gpu: int | None
    cold: bool = False
    work: Path | None = None


def plan(
    *,
    loaders: Iterable[str],
    image_sizes: list[int],
    native_size: int,
    threads: list[int],
    ranks: list[int],
    cores: int,
    num_gpus: int,
    cold: bool,
    quick: bool,
) -> list[list[Case]]:
    """Groups of cases that take turns, window by window.

    What does not depend on the image size is measured once, beside the first one. More than `cores` busy threads and
    ranks are left out, except that every number of ranks has one thread each. `quick` keeps one thread everywhere but
    for the case that shows how threads scale.

    Args:
        native_size: side of the source images.
        ranks: processes that measure at the same time.
    """
    chosen = [name for name in dict.fromkeys(loaders) if KINDS[name].quick or not quick]
    groups: list[list[Case]] = []
    for image_size in image_sizes:
        for num_ranks in ranks:
            group = []
            for name in chosen:
                kind = KINDS[name]
                if (kind.gpu and not num_gpus) or not (kind.resizes or image_size == image_sizes[0]):
                    continue
                counts = sorted({n for n in threads if n * num_ranks <= cores} | {min(threads)})
                if not kind.threaded:
                    counts = [1]
                elif quick and name != "png":
                    counts = counts[:1]
                side = image_size if kind.resizes else native_size
                group += [Case(name, side, count, num_ranks) for count in counts]
            groups.append(group)
        if cold:  # apart: a map that another process holds keeps its pages
            names = [name for name in chosen if KINDS[name].cold]
            groups.append([Case(name, image_size, 1, 1, "cold") for name in names])
    return [group for group in groups if group]
