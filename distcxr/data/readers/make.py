"""Each kind of reader, made as a recipe and a rank's share of the machine want it."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from distcxr.data.index import SampleIndex
from distcxr.data.loader import PixelReader, Pixels, Request
from distcxr.data.pixels.htj2k import check_available
from distcxr.data.pixels.image_bytes import Locate
from distcxr.data.pixels.own_reader import grey_reader
from distcxr.data.readers.array_reader import ArrayReader
from distcxr.data.readers.cache_reader import CacheReader
from distcxr.data.readers.torch_reader import TorchReader
from distcxr.data.store.cache_format import cache_folder, open_cache
from distcxr.data.store.cache_staging import stage
from distcxr.data.store.pack_format import Pack, open_pack, pack_folder
from distcxr.recipe.data import Data

if TYPE_CHECKING:
    from distcxr.data.pixels.png_gpu import PngDecoder

Kind = Literal["torch", "dali", "gpu", "gpu_filters", "cache", "arrays"]
"""`gpu_filters` is the gpu loader where the CPU inflates."""
WAVES: dict[Kind, int] = {"gpu": 256, "gpu_filters": 64}
"""Images that a GPU decodes at once, by the kinds of reader that have it decode."""


def check_packages(data: Data) -> None:
    """Whether the packages that `data.source` and `data.loader` take are installed, without starting them.
    Raises ValueError: as a run would."""
    if data.source == "pack":
        check_available()
    if data.loader == "dali" and not _is_installed("nvidia.dali"):
        raise _no_dali(ImportError("No module named 'nvidia.dali'"))
    if data.loader == "gpu":
        from distcxr.data.pixels.cuda.module import find_compiler

        find_compiler()


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # nor what it is in
        return False


def _no_dali(error: Exception) -> ValueError:
    return ValueError(
        f"DALI does not work here ({error}); install it with `pip install nvidia-dali-cuda130` (CUDA 13) or "
        "`pip install nvidia-dali-cuda120` (CUDA 12), or use data.loader=torch"
    )


@dataclass(frozen=True)
class Rank:
    """What one rank knows when it makes a reader; `choose_reader` has the meanings."""

    data: Data
    index: SampleIndex
    max_batch_size: int
    device: torch.device
    budget: int  # `thread_budget` of the rank
    first_rows: NDArray[np.int64]
    pack: Pack | None = None  # with `data.source: pack`

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
        """Threads of the DALI and gpu loaders."""
        return self.budget if self.data.num_workers is None else max(1, self.data.num_workers)

    @property
    def locate(self) -> Locate:
        """Where the images of rows of the index are read from."""
        return self.index.files if self.pack is None else self.pack.parts

    @property
    def cache_folder(self) -> Path:
        return cache_folder(self.data, self.index.root)

    def make(self, kind: Kind) -> PixelReader:
        makers = {"torch": self._torch, "dali": self._dali, "cache": self._cache, "arrays": self._arrays}
        return self._gpu(kind) if kind in WAVES else makers[kind]()

    def check_cache(self) -> None:
        """StoreError unless the cache is whole and made from the files that are there now."""
        with closing(open_cache(self.cache_folder, self.index, self.data.image_size)) as cache:
            cache.check_sources()

    def decodes_on_gpu(self, kind: Kind) -> bool:
        """Whether a GPU makes the pixels of this kind of reader, and not only their resize."""
        return kind in WAVES or (kind == "dali" and self.pack is not None and self.on_gpu)

    def open_pack(self) -> Pack:
        check_available()
        return open_pack(pack_folder(self.data, self.index.root), self.index)

    def check_pack(self) -> None:
        """StoreError unless the pack is whole and made from the files that are there now, if any are."""
        with closing(self.open_pack()) as pack:
            pack.check_sources()

    def _torch(self) -> PixelReader:
        data = self.data
        return TorchReader(
            self.locate, data.image_size, num_workers=self.num_workers, prefetch=data.prefetch, pin_memory=self.on_gpu,
            read_grey=grey_reader(data),
        )  # fmt: skip

    def _dali(self) -> PixelReader:
        from distcxr.data.readers.dali_decode import DaliDecoder
        from distcxr.data.readers.dali_reader import DaliReader

        # On a CPU DALI's own decoder is the slower one.
        make = DaliDecoder if self.decodes_on_gpu("dali") else DaliReader
        try:
            return make(
                self.locate,
                self.data.image_size,
                max_batch_size=self.max_batch_size,
                num_threads=self.num_threads,
                device_id=self.device.index if self.on_gpu else None,
                prefetch=self.data.prefetch,
            )
        except (ImportError, OSError, RuntimeError) as error:  # not there, a library of its own missing, or no driver
            raise _no_dali(error) from error

    def gpu_reader(self, decoder: PngDecoder, wave: int) -> PixelReader:
        """Decodes `wave` images at once with `decoder`, which is for this rank's image size and device."""
        from distcxr.data.readers.gpu_reader import GpuReader

        data = self.data
        return GpuReader(
            decoder, self.locate, data.image_size, device=self.device, num_threads=self.num_threads, wave=wave,
            prefetch=data.prefetch,
        )  # fmt: skip

    def _gpu(self, kind: Kind) -> PixelReader:
        from distcxr.data.pixels.png_gpu import PngDecoder

        assert self.on_gpu
        decoder = PngDecoder(self.data.image_size, self.device, inflate="gpu" if kind == "gpu" else "cpu")
        return self.gpu_reader(decoder, self.data.gpu.wave or WAVES[kind])

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


class PackReader:
    """A `PixelReader` of a pack's images, which `inner` finds by `pack.parts`, that closes the pack with itself."""

    def __init__(self, inner: PixelReader, pack: Pack) -> None:
        self.inner, self._pack = inner, pack
        num = len(pack.files)
        self.where = f"{inner.where}; their bytes come from the {num} shard{'s' * (num != 1)} in {pack.folder}"

    def read(self, requests: Iterable[Request]) -> Generator[Pixels]:
        return self.inner.read(requests)

    def close(self) -> None:
        """Close the reader, then the shards, which its workers may be reading until then."""
        self.inner.close()
        self._pack.close()
