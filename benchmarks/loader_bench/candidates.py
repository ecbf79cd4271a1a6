"""The ways from PNG to pixels, each a generator: made and started by the first `next`, then images per batch for ever.

They run in processes of their own (`rank.py`). Libraries are imported by `prepare`, before the clock runs.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distcxr.data.pixels.decode import decode_grey
from distcxr.data.pixels.image_bytes import read_file
from distcxr.data.pixels.resize import resize_grey
from loader_bench import cached, packed
from loader_bench.cases import KINDS, Task
from loader_bench.product import file_index, make_reader, rows_of

if TYPE_CHECKING:
    from distcxr.data.readers.make import Kind

Images = Generator[int]
"""Number of images of each batch that is ready."""

_PREFETCH = 2  # as data.prefetch has it
_RUN = 8  # images a thread is handed at once
_IMPORTS = {
    "seed": ("torch", "loader_bench.seed"),
    "torchvision": ("torch", "torchvision"),
    "torchvision decode": ("torch", "torchvision"),
    "dali plain": ("nvidia.dali.fn",),
    "dali decode": ("nvidia.dali.fn",),
    "torch": ("torch", "distcxr.data.readers.make"),
    "dali": ("torch", "nvidia.dali.fn", "distcxr.data.readers.make", "distcxr.data.readers.dali_reader"),
    "gpu": ("torch", "distcxr.data.readers.make", "distcxr.data.readers.gpu_reader"),
    "gpu filters": ("torch", "distcxr.data.readers.make", "distcxr.data.readers.gpu_reader"),
    "dali pack": ("torch", "nvidia.dali.fn", "distcxr.data.readers.make", "distcxr.data.readers.dali_decode"),
    "cache": ("torch", "distcxr.data.readers.make"),
    "cache reader": ("torch", "distcxr.data.readers.make"),
    "cache device": ("torch", "distcxr.data.readers.make"),
    "cache build": ("distcxr.data.store.cache_building",),
    "pack": ("imagecodecs", "distcxr.data.store.pack_format"),
    "pack decode": ("imagecodecs", "distcxr.data.store.pack_format"),
    "pack build": ("imagecodecs", "distcxr.data.store.pack_building"),
    "inflate": ("isal.igzip_lib",),
}


def prepare(task: Task) -> None:
    """Import what the case uses and let the compiled kernels load; none of it counts as the first batch."""
    modules = [importlib.import_module(name) for name in _IMPORTS.get(task.loader, ())]
    if modules and modules[0].__name__ == "torch":
        modules[0].set_num_threads(1)
    if KINDS[task.loader].source in ("png", "pack"):
        from distcxr.data.pixels.decode import load_kernels

        load_kernels()


def open_case(task: Task) -> Images:
    """The generator of a case."""
    return _OPEN[task.loader](task)


def _seed(task: Task) -> Images:
    from loader_bench.seed import seed_loader

    num_workers = 0 if task.cold else task.threads
    for images, _ in seed_loader(list(task.files), task.image_size, task.batch_size, num_workers):
        yield len(images)


def _pooled(work: Callable[[Any], object], items: tuple[Any, ...], task: Task) -> Images:
    """`work` on each item: in this thread alone, or in a pool that holds two runs of items per thread.

    Runs, because the hand-over of one item wakes two threads. A cold case holds nothing from one batch to the next.
    """
    endless = cycle(items)

    def run(part: list[Any]) -> int:
        for item in part:
            work(item)
        return len(part)

    def following(length: int) -> list[Any]:
        return list(islice(endless, length))

    if task.threads == 1:
        while True:
            yield run(following(task.batch_size))
    with ThreadPoolExecutor(task.threads) as pool:
        waiting: deque[Future[int]] = deque()
        while True:
            done = 0
            while done < task.batch_size:
                while len(waiting) < 2 * task.threads and not (
                    task.cold and done + _RUN * len(waiting) >= task.batch_size
                ):
                    waiting.append(pool.submit(run, following(_RUN)))
                done += waiting.popleft().result()
            yield done


def _pil(task: Task) -> Images:
    side = (task.image_size, task.image_size)

    def work(file: str) -> object:
        return np.asarray(Image.open(file).convert("L").resize(side, Image.Resampling.BILINEAR))

    return _pooled(work, task.files, task)


def _pil_decode(task: Task) -> Images:
    return _pooled(lambda file: np.asarray(Image.open(file).convert("L")), task.files, task)


def _torchvision(task: Task) -> Images:
    from torchvision.io import ImageReadMode, decode_png, read_file
    from torchvision.transforms.v2 import functional

    side = [task.image_size, task.image_size]

    def work(file: str) -> object:
        return functional.resize(decode_png(read_file(file), ImageReadMode.GRAY), side, antialias=True)

    return _pooled(work, task.files, task)


def _torchvision_decode(task: Task) -> Images:
    from torchvision.io import ImageReadMode, decode_png, read_file

    return _pooled(lambda file: decode_png(read_file(file), ImageReadMode.GRAY), task.files, task)


def _png(task: Task) -> Images:
    side = task.image_size
    return _pooled(lambda file: resize_grey(decode_grey(read_file(file)[0]), side), task.files, task)


def _png_decode(task: Task) -> Images:
    return _pooled(lambda file: decode_grey(read_file(file)[0]), task.files, task)


def _pack(task: Task) -> Images:
    side = task.image_size
    return _pooled(lambda part: resize_grey(decode_grey(read_file(part)[0]), side), packed.parts(task), task)


def _pack_decode(task: Task) -> Images:
    return _pooled(lambda part: decode_grey(read_file(part)[0]), packed.parts(task), task)


def _inflate(task: Task) -> Images:
    """The compressed pixels of the files, held in memory, inflated to exactly their size."""
    from isal import igzip_lib

    def work(item: tuple[bytes, int]) -> object:
        stream, size = item
        return igzip_lib.decompress(stream, flag=igzip_lib.DECOMP_ZLIB, bufsize=size)

    streams = []
    for file in task.files:
        stream = _compressed_pixels(read_file(file)[0])
        streams.append((stream, len(igzip_lib.decompress(stream, flag=igzip_lib.DECOMP_ZLIB)) + 1))
    return _pooled(work, tuple(streams), task)


def _compressed_pixels(data: bytes) -> bytes:
    parts, at = [], 8
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT":
            parts.append(data[at + 8 : at + 8 + length])
        at += length + 12
    return b"".join(parts)


def _dali_plain(task: Task, resizes: bool = True) -> Images:
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import Pipeline

    on_gpu = task.gpu is not None
    pipeline = Pipeline(task.batch_size, task.threads, task.gpu, prefetch_queue_depth=_PREFETCH)
    with pipeline:
        files, _ = fn.readers.file(files=list(task.files), random_shuffle=False, name="files")
        image = fn.decoders.image(files, device="mixed" if on_gpu else "cpu", output_type=types.GRAY)
        if resizes:
            side = task.image_size
            image = fn.resize(image, size=[side, side], interp_type=types.INTERP_LINEAR, antialias=True)
        pipeline.set_outputs(image)
    pipeline.build()
    while True:
        (images,) = pipeline.run()
        yield len(images)


def _reader(kind: Kind, task: Task) -> Images:
    """A reader of ours, asked for the files over and over."""
    pack, index = packed.open_for(task) if KINDS[task.loader].source == "pack" else (None, file_index(task.files))
    endless = cycle(rows_of(index, task.files).tolist())

    def requests() -> Iterator[NDArray[np.int64]]:
        while True:
            yield np.fromiter(endless, dtype=np.int64, count=task.batch_size)

    reader = make_reader(kind, task, index, pack)
    try:
        for pixels, unreadable in reader.read(requests()):
            assert not unreadable, unreadable
            yield len(pixels)
    finally:
        reader.close()


_OPEN: dict[str, Callable[[Task], Images]] = {
    "seed": _seed,
    "pil": _pil,
    "pil decode": _pil_decode,
    "torchvision": _torchvision,
    "torchvision decode": _torchvision_decode,
    "dali plain": _dali_plain,
    "dali decode": lambda task: _dali_plain(task, resizes=False),
    "png": _png,
    "png decode": _png_decode,
    "torch": partial(_reader, "torch"),
    "dali": partial(_reader, "dali"),
    "gpu": partial(_reader, "gpu"),
    "gpu filters": partial(_reader, "gpu_filters"),
    "dali pack": partial(_reader, "dali"),
    "inflate": _inflate,
    "pack": _pack,
    "pack decode": _pack_decode,
    "pack build": packed.build,
    "cache": cached.whole_loader,
    "cache reader": cached.reader_alone,
    "cache device": cached.device_resident,
    "cache build": cached.build,
    "memcpy": cached.memcpy,
}
