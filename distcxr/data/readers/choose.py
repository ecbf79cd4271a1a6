"""Which reader a process uses, with how many workers or threads, and why."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distcxr.data.index import SampleIndex
from distcxr.data.loader import PixelReader
from distcxr.data.order import shuffled
from distcxr.data.readers.budget import thread_budget
from distcxr.data.readers.make import WAVES, Kind, PackReader, Rank
from distcxr.data.readers.reader_speed import Speed, num_different, readable, speed_of_decoding, speed_of_reader
from distcxr.data.store.store_files import StoreError
from distcxr.recipe.data import Data

logger = logging.getLogger(__name__)

_MEASURED_IMAGES = 32
_GPU_GAIN = 1.5
"""How much faster than a CPU a GPU has to decode before `auto` lets it: that time is taken from training."""
_PROVEN = False
"""Whether tests/gpu have passed on a GPU. Until then `auto` does not try PNGs there: a kernel at fault takes the
process down with it, and with that a training that was not meant as a trial."""
_INFLATED_BY: dict[str, tuple[Kind, ...]] = {
    "auto": ("gpu", "gpu_filters"), "gpu": ("gpu",), "cpu": ("gpu_filters",),
}  # fmt: skip


def choose_reader(
    data: Data,
    index: SampleIndex,
    *,
    max_batch_size: int,
    device: torch.device,
    local_world_size: int,
    first_rows: NDArray[np.int64],
    decided_by_main: Callable[[Callable[[], Any]], Any],
) -> PixelReader:
    """The reader of one rank, with its reason in the log. Every rank calls it, and all get the same kind.

    `auto` takes the decoded cache where a whole one for this recipe is there. Otherwise rank 0 measures torch, DALI
    and, once that is proven, decoding on a GPU, a second each on a few training images, and takes the fastest; what
    does not work here counts as absent, and without one readable image nothing is measured and torch is taken. Without
    a GPU that is torch: DALI decodes by the same code there and resizes slower, after two seconds of start-up. The log
    names what would be faster still. `gpu` measures who inflates, unless the recipe sets it. A GPU's pixels must equal
    the CPU's on the images measured. `data.source: npz` has a reader of its own, whatever `data.loader` is; with
    `pack`, torch and DALI read that.

    Args:
        data: the recipe's section. `num_workers` are worker processes (torch) or threads (DALI, gpu) of this rank; None
            takes `thread_budget`, except that torch decodes in the training process when a rank without a GPU has one
            core: there a worker adds a process and no speed. 0 means that process for torch, one thread for the others.
        first_rows: int64 [N], the training rows: measured with, and first in a device's memory.
        decided_by_main: calls what it is given on rank 0 and returns the answer, or raises the ValueError, on every
            rank.

    Raises ValueError: `dali` or `gpu` is asked for and does not work here; or `cache` is asked for and is not there, or
    was built from other files or settings, or so the pack (StoreError).
    """
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    rank = Rank(data, index, max_batch_size, device, thread_budget(local_world_size), first_rows)
    if data.source == "pack":
        decided_by_main(rank.check_pack)
        rank = replace(rank, pack=rank.open_pack())
    kind: Kind
    if data.source == "npz":
        kind, reason = "arrays", "data.source=npz"
        reader = rank.make(kind)
    elif data.reader is not None:
        kind, reason = "torch", f"data.reader={data.reader}"
        reader = rank.make(kind)
    elif data.loader == "auto" or rank.decodes_on_gpu(data.loader):
        measured: dict[Kind, PixelReader] = {}  # rank 0 need not build it twice
        kind, reason = decided_by_main(lambda: _fastest(rank, measured))
        reader = measured.get(kind) or rank.make(kind)
    else:
        kind, reason = data.loader, "as asked"
        if kind == "cache":
            decided_by_main(rank.check_cache)
        reader = rank.make(kind)
    if rank.pack is not None:
        reader = PackReader(reader, rank.pack)
    logger.info("loader %s (%s): %s", kind, reason, reader.where)
    return reader


def _fastest(rank: Rank, measured: dict[Kind, PixelReader]) -> tuple[Kind, str]:
    """What `auto`, or a loader that decodes on a GPU, takes and why.

    Runs on rank 0 alone and leaves the reader, if it built one, in `measured`.

    Raises ValueError: the loader asked for does not work here.
    """
    if rank.data.loader == "gpu" and not rank.on_gpu:
        raise ValueError("data.loader=gpu needs a GPU, and this rank has none: data.loader=auto takes what works here")
    data, folder = rank.data, rank.cache_folder
    is_auto = data.loader == "auto"
    if is_auto and rank.pack is None and folder.exists():
        try:
            rank.check_cache()
        except StoreError as error:
            logger.warning("data.loader=auto continues without the decoded cache: %s", error)
        else:
            return "cache", f"{folder} is whole, and nothing reads faster"
    tried = shuffled(
        np.arange(min(len(rank.first_rows), _MEASURED_IMAGES)), max(1, len(rank.first_rows)), seed=0, epoch=0
    )
    rows = readable(rank.first_rows[tried], rank.locate)
    kinds = _candidates(rank)
    if not len(rows):
        return kinds[0], f"none of the {len(tried)} images tried can be read, so nothing was measured"

    results, speeds, errors = [], dict[Kind, Speed](), []
    for kind in kinds:
        try:
            speeds[kind] = _speed(rank, kind, rows, measured)
            results.append(f"{kind} gives {speeds[kind]}")
        except (ValueError, RuntimeError) as error:
            results.append(f"{kind} failed: {error}")
            errors.append(error)
        best = max(speeds, key=lambda one: _worth(rank, one, speeds[one]), default=None)
        for other in [other for other in measured if other != best]:
            measured.pop(other).close()
    logger.info("measured on %d image%s, for each rank: %s", len(rows), "s" * (len(rows) != 1), "; ".join(results))
    if best is None:
        raise ValueError(f"data.loader={data.loader} does not work here: {errors[0]}") from errors[0]
    if is_auto and rank.pack is None:
        _log_what_a_cache_would_do(rank, speeds["torch"])
    if len(kinds) == 1:
        return best, "the fastest on a CPU" if is_auto else "as asked"
    return best, "measured fastest" if len(speeds) > 1 else "nothing else works here"


def _candidates(rank: Rank) -> tuple[Kind, ...]:
    on_gpu = _INFLATED_BY[rank.data.gpu.inflate]
    if rank.data.loader == "gpu":
        return on_gpu
    if rank.data.loader == "dali":
        return ("dali",)
    if not rank.on_gpu and rank.pack is None:
        return ("torch",)
    return ("torch", "dali", *(on_gpu if _PROVEN and rank.on_gpu and rank.pack is None else ()))


def _worth(rank: Rank, kind: Kind, speed: Speed) -> float:
    return speed.img_per_s / (_GPU_GAIN if rank.decodes_on_gpu(kind) else 1)


def _speed(rank: Rank, kind: Kind, rows: NDArray[np.int64], measured: dict[Kind, PixelReader]) -> Speed:
    """Measured; a reader that was built for it is left in `measured`."""
    size = rank.data.image_size
    if kind == "torch":  # stands for worker processes, which would take longer to start than to measure
        files = rank.locate(rows)
        return speed_of_decoding(files, size, num_threads=max(1, rank.num_workers), by_clock=rank.on_gpu)
    measured[kind] = reader = rank.make(kind)
    if rank.decodes_on_gpu(kind) and (num := num_different(reader, rows, rank.locate, size, rank.max_batch_size)):
        raise RuntimeError(f"its pixels differ from the CPU's in {num} of {len(rows)} images")
    batch_size = rank.max_batch_size if kind in WAVES else min(rank.max_batch_size, 4 * rank.num_threads)
    return speed_of_reader(reader, rows, batch_size=batch_size, num_threads=rank.num_threads, by_clock=rank.on_gpu)


def _log_what_a_cache_would_do(rank: Rank, by_torch: Speed) -> None:
    cores, size_mb = thread_budget(1), len(rank.index) * rank.data.image_size**2 / 1e6
    seconds = len(rank.index) * by_torch.core_ms / 1e3 / cores
    logger.info(
        "faster: `distcxr cache RECIPE` writes %s once (about %s on the %d core%s here), and data.loader=auto then "
        "reads no image file any more",
        f"{size_mb / 1e3:.1f} GB" if size_mb >= 100 else f"{size_mb:.0f} MB",
        f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s",
        cores,
        "s" * (cores != 1),
    )
