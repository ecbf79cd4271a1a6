"""Which reader a process uses, with how many workers or threads, and why."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from distcxr.data.cache import CacheError, cache_folder, open_cache, stage
from distcxr.data.index import SampleIndex
from distcxr.data.loader import PixelReader
from distcxr.data.loaders.arrays import ArrayReader
from distcxr.data.loaders.budget import thread_budget
from distcxr.data.loaders.cache import CacheReader
from distcxr.data.loaders.measure import Speed, readable, speed_of_decoding, speed_of_reader
from distcxr.data.loaders.torch import TorchReader
from distcxr.data.order import shuffled
from distcxr.recipe.data import Data

logger = logging.getLogger(__name__)

Kind = Literal["torch", "dali", "cache", "arrays"]

_MEASURED_IMAGES = 32


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

    `auto` takes the decoded cache where a whole one for this recipe is there. Otherwise rank 0 measures torch against
    DALI on a few training images, for about two seconds, and the faster one is taken; DALI counts as absent when it
    does not work here, and without one readable image nothing is measured and torch is taken. What would be faster
    still is said, too. `data.source: npz` has a reader of its own, whatever `data.loader` is.

    Args:
        data: the recipe's section. `num_workers` are worker processes (torch) or threads (DALI) of this rank; None
            takes `thread_budget`, except that torch decodes in the training process when a rank without a GPU has one
            core: there a worker adds a process and no speed. 0 means that process for torch, one thread for DALI.
        max_batch_size: the longest request that will be read.
        first_rows: int64 [N], the training rows: measured with, and first in a device's memory.
        decided_by_main: calls what it is given on rank 0 and returns the answer, or raises the ValueError, on every
            rank.

    Raises:
        ValueError: `dali` is asked for and is not installed or can't use the GPU; or `cache` is asked for and is not
            there, or was built from other files or settings (CacheError).
    """
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    rank = _Rank(data, index, max_batch_size, device, thread_budget(local_world_size), first_rows)
    kind: Kind
    if data.source == "npz":
        kind, reason = "arrays", "data.source=npz"
        reader = rank.make(kind)
    elif data.loader == "auto":
        measured: dict[Kind, PixelReader] = {}  # rank 0 need not build it twice
        kind, reason = decided_by_main(lambda: _fastest(rank, measured))
        reader = measured.get(kind) or rank.make(kind)
    else:
        kind, reason = data.loader, "as asked"
        if kind == "cache":
            decided_by_main(rank.check_cache)
        reader = rank.make(kind)
    logger.info("loader %s (%s): %s", kind, reason, reader.where)
    return reader


@dataclass(frozen=True)
class _Rank:
    """What one rank knows when it makes a reader; `choose_reader` has the meanings."""

    data: Data
    index: SampleIndex
    max_batch_size: int
    device: torch.device
    budget: int
    first_rows: NDArray[np.int64]

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def num_workers(self) -> int:
        """Processes of the torch loader, threads of the array reader."""
        if self.data.num_workers is not None:
            return self.data.num_workers
        return self.budget if self.on_gpu or self.budget > 1 else 0

    @property
    def num_threads(self) -> int:
        """Threads of the DALI loader."""
        return self.budget if self.data.num_workers is None else max(1, self.data.num_workers)

    @property
    def cache_folder(self) -> Path:
        return cache_folder(self.data, self.index.root)

    def make(self, kind: Kind) -> PixelReader:
        makers = {"torch": self._torch, "dali": self._dali, "cache": self._cache, "arrays": self._arrays}
        return makers[kind]()

    def check_cache(self) -> None:
        """CacheError unless the cache is whole and made from the files that are there now."""
        with closing(open_cache(self.cache_folder, self.index, self.data.image_size)) as cache:
            cache.check_sources()

    def _torch(self) -> PixelReader:
        data = self.data
        return TorchReader(
            data.image_size, num_workers=self.num_workers, prefetch=data.prefetch, pin_memory=self.on_gpu
        )

    def _dali(self) -> PixelReader:
        from distcxr.data.loaders.dali import DaliReader

        try:
            return DaliReader(
                self.data.image_size,
                max_batch_size=self.max_batch_size,
                num_threads=self.num_threads,
                device_id=self.device.index if self.on_gpu else None,
                prefetch=self.data.prefetch,
            )
        except (ImportError, OSError, RuntimeError) as error:  # not there, a library of its own missing, or no driver
            raise ValueError(
                f"DALI does not work here ({error}); install it with `pip install nvidia-dali-cuda130` (CUDA 13) or "
                "`pip install nvidia-dali-cuda120` (CUDA 12), or use data.loader=torch"
            ) from error

    def _arrays(self) -> PixelReader:
        data = self.data
        return ArrayReader(
            self.index, data.image_size, num_threads=self.num_workers, prefetch=data.prefetch, pin_memory=self.on_gpu
        )

    def _cache(self) -> PixelReader:
        settings, folder = self.data.cache, self.cache_folder
        if settings.stage_to is not None:
            folder = stage(folder, settings.stage_to)
        return CacheReader(
            open_cache(folder, self.index, self.data.image_size),
            device=self.device,
            resident=settings.resident,
            device_gb=settings.device_gb,
            prefetch=self.data.prefetch,
            max_batch_size=self.max_batch_size,
            first_rows=self.first_rows,
        )


def _fastest(rank: _Rank, measured: dict[Kind, PixelReader]) -> tuple[Kind, str]:
    """What `auto` takes and why; runs on rank 0 alone and leaves a reader that it built and chose in `measured`."""
    data, folder = rank.data, rank.cache_folder
    if folder.exists():
        try:
            rank.check_cache()
        except CacheError as error:
            logger.warning("data.loader=auto goes on without the decoded cache: %s", error)
        else:
            return "cache", f"{folder} is whole, and nothing reads faster"
    drawn = shuffled(
        np.arange(min(len(rank.first_rows), _MEASURED_IMAGES)), max(1, len(rank.first_rows)), seed=0, epoch=0
    )
    files = readable(rank.index.files(rank.first_rows[drawn]))
    if not files:
        return "torch", f"none of the {len(drawn)} images tried can be read, so nothing was measured"

    torch_threads = max(1, rank.num_workers)
    by_torch = speed_of_decoding(files, data.image_size, num_threads=torch_threads, by_clock=rank.on_gpu)
    by_dali: Speed | None = None
    try:
        measured["dali"] = rank.make("dali")
        batch_size = min(rank.max_batch_size, 4 * rank.num_threads)
        by_dali = speed_of_reader(
            measured["dali"], files, batch_size=batch_size, num_threads=rank.num_threads, by_clock=rank.on_gpu
        )
        said = str(by_dali)
    except (ValueError, RuntimeError) as error:
        said = f"nothing: {error}"
    logger.info(
        "measured on %d image%s, for each rank: torch gives %s; dali gives %s",
        len(files), "s" * (len(files) != 1), by_torch, said,
    )  # fmt: skip
    cores, size_mb = thread_budget(1), len(rank.index) * data.image_size**2 / 1e6
    seconds = len(rank.index) * by_torch.core_ms / 1e3 / cores
    logger.info(
        "faster: `distcxr cache RECIPE` writes %s once (about %s on the %d core%s here), and data.loader=auto then "
        "reads no image file any more",
        f"{size_mb / 1e3:.1f} GB" if size_mb >= 100 else f"{size_mb:.0f} MB",
        f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s",
        cores,
        "s" * (cores != 1),
    )
    if by_dali is not None and by_dali.img_per_s > by_torch.img_per_s:
        return "dali", "measured faster than torch"
    if "dali" in measured:
        measured.pop("dali").close()
    return "torch", "measured faster than DALI" if by_dali else "DALI does not work here"
