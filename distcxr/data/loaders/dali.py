"""PNGs decoded and resized by DALI, which is fed our own order and only bytes that were checked.

    requests ──► threads of ours: read, check ──► DALI: decode, resize, rim ──► Pixels, in the order asked

DALI stops for good, and names no file, when it meets a broken PNG. So a file is proven whole the first time it is
read; later reads trust its size and modification time. Plain 8-bit grey files go in as they are; the others (1 % of
NIH) are decoded by `decode_grey` and go in as freshly written grey PNGs, so all loaders see the same grey.

DALI has no PNG decoder for the GPU (`mixed` sends PNGs to the CPU without a word): a GPU only resizes.

Shapes: B batch, S side of the square output.
"""

from __future__ import annotations

import functools
import io
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from distcxr.data.loader import Pixels, Request
from distcxr.data.pixels.png import UnreadableImage, check, decode_grey, is_plain_grey, read_file

_SIDES = 4  # top, bottom, left, right


class DaliReader:
    """A `PixelReader` on NVIDIA DALI.

    DALI clamps at the image's border where Pillow renormalises the weights, which changes the outermost pixels of a
    reduced image (by up to 28 grey levels at 224 px) and no others. They are made again, from strips that are padded
    with zeros and whose weights are then renormalised: every pixel is within one grey level of Pillow's. This adds
    0.3 ms to 9.2 ms on a CPU.
    """

    def __init__(
        self, image_size: int, *, max_batch_size: int, num_threads: int, device_id: int | None, prefetch: int = 2
    ) -> None:
        """Build DALI's pipeline and run it once.

        Args:
            max_batch_size: the longest request that `read` will be given.
            num_threads: threads of DALI, and as many of ours that read and check.
            device_id: GPU that resizes and holds the pixels; None keeps all on the CPU.
            prefetch: requests under way in DALI; as many again are being read and checked.

        Raises:
            ImportError: DALI is not installed.
            RuntimeError: DALI can't use the GPU.
        """
        assert num_threads >= 1 and prefetch >= 1
        self._image_size, self._num_threads, self._prefetch = image_size, num_threads, prefetch
        self._max_batch_size, self._device_id = max_batch_size, device_id
        self.where = (
            f"PNGs are decoded on the CPU by DALI, {num_threads} thread{'s' * (num_threads > 1)} (DALI has no GPU "
            f"PNG decoder); resized on the {'CPU' if device_id is None else f'GPU (cuda:{device_id})'}"
        )
        self._checked = _CheckedFiles()
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="png-check")
        self._pipeline: Any = None
        self._start()
        self._reading = False

    def read(self, requests: Iterable[Request]) -> Generator[Pixels]:
        """Pixels of each request, in order, on `device_id`'s GPU or in ordinary memory.

        Raises:
            RuntimeError: DALI itself broke; the reader can't be used again.
        """
        assert not self._reading, "one read at a time: use up or close the one before"
        assert self._pipeline is not None, "closed, or broken by an earlier error"
        self._reading = True
        source = iter(requests)
        checking: deque[list[Future[_Fed]]] = deque()
        running: deque[list[_Fed]] = deque()  # also keeps the bytes alive that DALI was given without a copy
        try:
            while True:
                while len(checking) < self._prefetch and (request := next(source, None)) is not None:
                    assert 0 < len(request.files) <= self._max_batch_size
                    checking.append([self._pool.submit(self._checked.fetch, file) for file in request.files])
                while checking and len(running) < self._prefetch:
                    if running and not all(future.done() for future in checking[0]):
                        break  # rather hand out what is ready than wait for what is not
                    batch = [future.result() for future in checking.popleft()]
                    with self._breakable():
                        self._feed(batch)
                        self._pipeline.schedule_run()
                    running.append(batch)
                if not running:
                    return
                with self._breakable():
                    pixels = self._collect(len(running[0]))
                batch = running.popleft()
                yield Pixels(
                    pixels, tuple((place, fed.reason) for place, fed in enumerate(batch) if fed.reason is not None)
                )
        finally:
            ahead = [future for futures in checking for future in futures]
            for future in ahead:
                future.cancel()
            wait(ahead)
            for batch in running if self._pipeline is not None else ():
                self._collect(len(batch))
            self._reading = False

    def close(self) -> None:
        """Stop the threads and free DALI's memory; the reader can't be used again."""
        self._pool.shutdown(cancel_futures=True)
        self._pipeline = None

    def _start(self) -> None:
        """Build the pipeline and run as many one-pixel batches as it prefetches.

        DALI's first scheduled run starts a full prefetch, which a split of one batch could not feed; every later one
        is a single run.
        """
        self._pipeline = _build(
            self._image_size, self._max_batch_size, self._num_threads, self._device_id, self._prefetch
        )
        blank = [_Fed(_BLANK, (1, 1))]
        for _ in range(self._prefetch):
            self._feed(blank)
        self._pipeline.schedule_run()
        for _ in range(self._prefetch):
            self._collect(1)

    @contextmanager
    def _breakable(self) -> Iterator[None]:
        """An error of DALI's leaves the pipeline unusable: say so, once."""
        try:
            yield
        except Exception as error:
            self._pipeline = None
            raise RuntimeError(f"DALI broke ({error}); data.loader=torch does without it") from error

    def _feed(self, batch: list[_Fed]) -> None:
        rims = [_rim(*fed.shape, self._image_size) for fed in batch]
        self._pipeline.feed_input("strips", [strips for strips, _ in rims])
        self._pipeline.feed_input("gains", [gains for _, gains in rims])
        self._pipeline.feed_input("files", [fed.data for fed in batch])

    def _collect(self, batch_size: int) -> Tensor:
        """The oldest batch under way, uint8 [B, 1, S, S], copied out of DALI's buffers."""
        on_gpu = self._device_id is not None
        stream = torch.cuda.current_stream(self._device_id) if on_gpu else None
        # With a stream the outputs are ready for whatever is queued on it next, without a wait on the host.
        outputs = self._pipeline.share_outputs(cuda_stream=stream)
        inner_BHWC, rim_BES = (from_dlpack(output.as_tensor()) for output in outputs)
        pixels = inner_BHWC.clone().view(batch_size, 1, self._image_size, self._image_size)
        pixels[:, 0, 0], pixels[:, 0, -1] = rim_BES[:, 0], rim_BES[:, 1]
        pixels[:, 0, :, 0], pixels[:, 0, :, -1] = rim_BES[:, 2], rim_BES[:, 3]
        self._pipeline.release_outputs()
        return pixels


class _Fed(NamedTuple):
    """What DALI is given for one file: bytes, the image's height and width, and why it is a black one."""

    data: NDArray[np.uint8]
    shape: tuple[int, int]
    reason: str | None = None


class _CheckedFiles:
    """Files to bytes that DALI can decode, remembering which were proven whole (about 300 bytes a file)."""

    def __init__(self) -> None:
        self._plain: dict[str, tuple[int, int, tuple[int, int]]] = {}  # file -> size, mtime_ns, height and width

    def fetch(self, file: str) -> _Fed:
        """Never raises for a file: what can't be read becomes a black image with the reason."""
        try:
            return self._fetch(file)
        except UnreadableImage as error:
            return _Fed(_BLANK, (1, 1), str(error))

    def _fetch(self, file: str) -> _Fed:
        data, state = read_file(file)
        bytes_ = np.frombuffer(data, dtype=np.uint8)
        known = self._plain.get(file)
        if known is not None and known[:2] == (state.st_size, state.st_mtime_ns) and len(data) == state.st_size:
            return _Fed(bytes_, known[2])
        try:
            header = check(data)
        except UnreadableImage:
            header = None  # perhaps a flaw that leaves the pixels whole; `decode_grey` judges
        if header is None or not is_plain_grey(header):
            image = decode_grey(data)
            return _Fed(_rewritten(image), (image.shape[0], image.shape[1]))
        shape = (header.height, header.width)
        self._plain[file] = (state.st_size, state.st_mtime_ns, shape)
        return _Fed(bytes_, shape)


def _rewritten(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=0)
    return np.frombuffer(file.getvalue(), dtype=np.uint8)


_BLANK = _rewritten(np.zeros((1, 1), dtype=np.uint8))


@functools.lru_cache(maxsize=1024)
def _rim(height: int, width: int, size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Where the output's outermost pixels come from.

    Returns:
        float32 [4, 8], a row per side: (y, x) of the start and of the end of a strip that reaches over the image's
            border, then of the start and of the end within that strip of the source area of this side's pixels.
        float32 [4, S]: what each pixel of the resized strip is multiplied by to renormalise its weights.
    """
    (pad_y, reach_y, gains_y), (pad_x, reach_x, gains_x) = _axis(height, size), _axis(width, size)
    step_y, step_x = height / size, width / size
    strips = np.array(
        [
            (-pad_y, -pad_x, reach_y, width + pad_x, 0, 0, step_y, width),
            (height - reach_y, -pad_x, height + pad_y, width + pad_x, height - step_y, 0, height, width),
            (-pad_y, -pad_x, height + pad_y, reach_x, 0, 0, height, step_x),
            (-pad_y, width - reach_x, height + pad_y, width + pad_x, 0, width - step_x, height, width),
        ]
    )
    strips[:, 4:] -= np.tile(strips[:, :2], 2)
    gains = np.stack([gains_y[0] * gains_x, gains_y[-1] * gains_x, gains_y * gains_x[0], gains_y * gains_x[-1]])
    return strips.astype(np.float32), gains.astype(np.float32)


def _axis(length: int, size: int) -> tuple[int, int, NDArray[np.float64]]:
    """Along one axis: padding that covers the filter, source pixels that the first output pixel reaches, gains [S]."""
    radius = max(length / size, 1.0)
    pad = int(np.ceil(radius)) + 1
    centres = (np.arange(size) + 0.5) * (length / size)
    sources = np.arange(-pad, length + pad) + 0.5
    gains = np.ones(size)
    for place in np.flatnonzero((centres < radius) | (centres > length - radius)):  # the filter leaves the image
        weights = np.clip(1 - np.abs(sources - centres[place]) / radius, 0, None)
        gains[place] = weights.sum() / weights[pad : pad + length].sum()
    return pad, int(np.ceil(length / size / 2 + radius)) + 1, gains


def _build(image_size: int, max_batch_size: int, num_threads: int, device_id: int | None, prefetch: int) -> Any:
    """The pipeline: inputs `files`, `strips`, `gains`; outputs the image uint8 [S, S, 1] and its rim uint8 [4, S]."""
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import Pipeline

    on_gpu = device_id is not None
    linear = {"interp_type": types.INTERP_LINEAR, "antialias": True}
    pipeline = Pipeline(max_batch_size, num_threads, device_id, prefetch_queue_depth=prefetch)
    with pipeline:
        files = fn.external_source(name="files", device="cpu", no_copy=True)
        strips = fn.external_source(name="strips", device="cpu")
        gains = fn.external_source(name="gains", device="cpu")
        image = fn.decoders.image(
            files,
            device="mixed" if on_gpu else "cpu",
            output_type=types.GRAY,
            adjust_orientation=False,
            affine=False,  # pinning DALI's threads to cores would pile all ranks of a node on the first few
        )
        inner = fn.resize(image, size=[image_size, image_size], **linear)
        if on_gpu:
            gains = gains.gpu()
        rim = []
        for side in range(_SIDES):
            box = strips[side]
            strip = fn.slice(
                image,
                start=fn.cast(box[0:2], dtype=types.INT32),
                end=fn.cast(box[2:4], dtype=types.INT32),
                axes=[0, 1],
                out_of_bounds_policy="pad",
                fill_values=0,
            )
            size = [1, image_size] if side < _SIDES // 2 else [image_size, 1]
            line = fn.resize(strip, size=size, roi_start=box[4:6], roi_end=box[6:8], dtype=types.FLOAT, **linear)
            rim.append(fn.reshape(line, shape=[image_size]) * gains[side])
        pipeline.set_outputs(inner, fn.cast(fn.stack(*rim), dtype=types.UINT8))
    pipeline.build()
    return pipeline
