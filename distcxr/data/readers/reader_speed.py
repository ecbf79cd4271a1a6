"""How fast files become pixels on this machine, with these files and this rank's cores: what `loader=auto` goes by.

Both figures come from the same few real files, read before from the system's page cache: how fast a disk or a network
is does not show, and is the same for every loader of files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distcxr.data.loader import PixelReader, Request
from distcxr.data.pixels.decode import decode_grey, load_kernels
from distcxr.data.pixels.image_bytes import Locate, Source, UnreadableImage, read_file
from distcxr.data.pixels.resize import resize_grey

_SECONDS = 0.4  # that one loader is measured for


@dataclass(frozen=True)
class Speed:
    """What one rank gets out of one loader."""

    img_per_s: float  # with all of the rank's threads or workers
    core_ms: float  # CPU time that an image costs; on a GPU without the GPU's part

    def __str__(self) -> str:
        return f"{self.img_per_s:,.0f} img/s ({self.core_ms:.2f} ms of a core per image)"


def readable(rows: NDArray[np.int64], locate: Locate) -> NDArray[np.int64]:
    """Those of `rows` with images that can be decoded, each now in the page cache."""
    load_kernels()
    good = np.zeros(len(rows), dtype=bool)
    for position, file in enumerate(locate(rows)):
        try:
            decode_grey(read_file(file)[0])
        except UnreadableImage:
            continue
        good[position] = True
    return rows[good]


def num_different(
    reader: PixelReader, rows: NDArray[np.int64], locate: Locate, image_size: int, batch_size: int
) -> int:
    """For how many of `rows`, readable ones, `reader` gives other pixels than the CPU's decoder and resize."""
    parts = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    with closing(reader.read(parts)) as answers:
        pixels_BSS = np.concatenate([answer.pixels[:, 0].cpu().numpy() for answer in answers])
    return sum(
        not np.array_equal(pixels_SS, resize_grey(decode_grey(read_file(file)[0]), image_size))
        for pixels_SS, file in zip(pixels_BSS, locate(rows), strict=True)
    )


def speed_of_decoding(files: Sequence[Source], image_size: int, *, num_threads: int, by_clock: bool) -> Speed:
    """Decoding and resizing by distcxr's own code, in threads.

    They stand for the torch loader's worker processes, which take seconds to start: the decoder needs no GIL.

    With `by_clock` images are counted by wall clock; otherwise it is `num_threads` cores over the CPU time of an image,
    which other programs on the machine disturb less.
    """

    def work(deadline: float) -> int:
        done = 0
        while done == 0 or time.monotonic() < deadline:
            resize_grey(decode_grey(read_file(files[done % len(files)])[0]), image_size)
            done += 1
        return done

    with ThreadPoolExecutor(num_threads) as pool:
        return _timed(lambda deadline: sum(pool.map(work, [deadline] * num_threads)), num_threads, by_clock)


def speed_of_reader(
    reader: PixelReader, rows: NDArray[np.int64], *, batch_size: int, num_threads: int, by_clock: bool
) -> Speed:
    """A reader at work on readable `rows`; other arguments as in `speed_of_decoding`.

    Not counted is what comes before: a first batch, and with a GPU as long a time again, in which pinned and device
    memory for all that is read ahead is allocated, which a run does once.
    """
    request = np.resize(rows, batch_size)

    def requests(deadline: float) -> Iterator[Request]:
        yield request
        while time.monotonic() < deadline:
            yield request

    def work(deadline: float) -> int:
        with closing(reader.read(requests(deadline))) as answers:
            done = sum(len(answer.pixels[:, 0, 0, 0].cpu()) for answer in answers)  # on a GPU: waits for the pixels
        return done

    work(time.monotonic() + _SECONDS if by_clock else 0.0)
    return _timed(work, num_threads, by_clock)


def _timed(work: Callable[[float], int], num_threads: int, by_clock: bool) -> Speed:
    """`work` is given a moment to stop at and returns how many images it made."""
    start, cpu_start = time.monotonic(), time.process_time()
    done = work(start + _SECONDS)
    elapsed_s, core_s = time.monotonic() - start, time.process_time() - cpu_start
    core_ms = max(core_s, 1e-6) / done * 1e3
    return Speed(done / elapsed_s if by_clock else num_threads * 1e3 / core_ms, core_ms)
