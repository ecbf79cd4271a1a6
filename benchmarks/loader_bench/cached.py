"""Cases that copy rows instead of decoding files: the decoded cache, and memcpy as the limit of it.

A cache of several GB would take minutes to decode here. So the real builder makes one of the benchmark's files, and
its pixels, with their grey levels shifted, fill a larger one, which is opened and read like any other.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator
from itertools import count, cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distcxr.data.index import SampleIndex
from distcxr.data.store.cache_format import DecodedCache
from distcxr.data.store.store_files import CACHE, MADE, StoreError
from distcxr.runfolder.whole import flush
from loader_bench.cases import Task
from loader_bench.product import device_of, file_index, make_index, make_reader

if TYPE_CHECKING:
    from distcxr.data.loader import PixelReader


def make_large_cache(folder: Path, sources: tuple[str, ...], image_size: int, num_rows: int, workers: int) -> Path:
    """A cache of `num_rows` images in `folder`, on the disk and in the page cache; returns its pixel file.

    One that is there already is used again.

    Raises:
        StoreError: the disk is too small.
    """
    from isal import isal_zlib

    from distcxr.data.store.cache_building import build_cache

    pixels_file = folder / "pixels-large.u8"
    if (folder / "cache.json").exists():
        return pixels_file
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        build_cache(file_index(sources), Path(scratch), image_size, workers=workers)
        small = DecodedCache(Path(scratch), image_size)
        images = np.fromfile(small.files[0], dtype=np.uint8).reshape(len(small.entries), -1)
        small.close()
    needed, free = num_rows * image_size**2, shutil.disk_usage(folder.parent).free
    if needed > free:
        raise StoreError(
            f"{folder.parent} has {free / 1e9:.1f} GB free and the cache cases need {needed / 1e9:.1f}: name another "
            "folder with --work, or a smaller --working-set-mb"
        )
    folder.mkdir()
    index = _large_index(num_rows)
    entries: NDArray[Any] = np.zeros(num_rows, dtype=CACHE.entry_type(index.path.dtype.itemsize))
    entries["path"], entries["state"] = index.path, MADE
    with pixels_file.open("wb") as stream:
        for row in range(num_rows):
            image = images[row % len(images)] + np.uint8(row // len(images) % 256)
            entries["pixels_crc"][row] = isal_zlib.crc32(image)
            stream.write(image)
    flush(pixels_file)  # or the system would be writing it out while others are measured
    CACHE.write(folder, entries, reasons={}, image_size=image_size, pixels=pixels_file.name)
    return pixels_file


def whole_loader(task: Task) -> Generator[int]:
    """`Loader.epoch` after epoch: shuffled order, labels, mask, augmentation parameters, pixels; on the GPU if any."""
    return _epochs(task, "host")


def device_resident(task: Task) -> Generator[int]:
    """The same with the images in the GPU's memory."""
    return _epochs(task, "device")


def _epochs(task: Task, resident: str) -> Generator[int]:
    from distcxr.data.augment import draw_parameters
    from distcxr.data.loader import Loader
    from distcxr.data.order import BatchPlan, TrainOrder
    from distcxr.recipe.augmentation import Augment

    spec = Augment(flip=0.5, rotate_deg=7, translate=0.03, scale=(0.95, 1.05), brightness=0.05, contrast=0.1)
    index = _large_index(task.num_rows)
    plan = BatchPlan(task.batch_size * task.ranks, task.batch_size, world_size=task.ranks, rank=task.rank)
    reader = _reader(task, index, resident)
    loader = Loader(
        index=index,
        order=TrainOrder(np.arange(task.num_rows), seed=0, plan=plan),
        reader=reader,
        augment=lambda epoch, positions: draw_parameters(spec, seed=0, epoch=epoch, positions=positions),
    )
    device = device_of(task)
    try:
        for epoch in count():
            for batch in loader.epoch(epoch):
                yield len(batch if task.gpu is None else batch.to(device))
    finally:
        reader.close()


def reader_alone(task: Task) -> Generator[int]:
    """The reader, asked for rows that were chosen before the clock ran."""
    index = _large_index(task.num_rows)
    order = np.random.default_rng(task.rank).permutation(task.num_rows)
    batches = np.split(order, range(task.batch_size, len(order), task.batch_size))[: len(order) // task.batch_size]
    reader = _reader(task, index, "host")
    device = device_of(task)
    try:
        for pixels, _ in reader.read(cycle(batches)):
            yield len(pixels if task.gpu is None else pixels.to(device, non_blocking=True))
    finally:
        reader.close()


def build(task: Task) -> Generator[int]:
    """`distcxr cache` over the files, from nothing, with this many threads; one batch is one cache."""
    from distcxr.data.store.cache_building import build_cache

    index = file_index(task.files)
    assert task.work is not None
    while True:
        with tempfile.TemporaryDirectory(dir=task.work) as scratch:
            built = build_cache(index, Path(scratch), task.image_size, workers=task.threads)
        yield built.num_made


def memcpy(task: Task) -> Generator[int]:
    """Rows of anonymous memory gathered in random order into one buffer: numpy does it with a memcpy a row.

    The ranks share the working set out among themselves.
    """
    num_rows = max(task.batch_size, task.num_rows // task.ranks)
    source = np.empty((num_rows, task.image_size**2), dtype=np.uint8)
    source[:] = (np.arange(num_rows) % 251 + 1).astype(np.uint8)[:, None]  # touched, so that memory is really there
    out = np.empty((task.batch_size, task.image_size**2), dtype=np.uint8)
    rng = np.random.default_rng(task.rank)
    while True:
        order = rng.permutation(num_rows)
        for start in range(0, num_rows - task.batch_size + 1, task.batch_size):
            rows = order[start : start + task.batch_size]
            np.take(source, rows, axis=0, out=out, mode="clip")  # other modes would copy twice
            yield task.batch_size


def _reader(task: Task, index: SampleIndex, resident: str) -> PixelReader:
    return make_reader("cache", task, index, cache={"path": task.cache, "resident": resident})


def _large_index(num_rows: int) -> SampleIndex:
    """Images that exist in the large cache alone, some of their labels positive."""
    return make_index(Path("/large"), np.array([b"images/%08d.png" % row for row in range(num_rows)]))
