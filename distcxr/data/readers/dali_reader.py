"""Image files decoded by distcxr's own threads, resized by DALI: on the GPU where one trains.

    requests ──► threads of ours: read, decode, rim ──► DALI: resize ──► Pixels, in the order asked

DALI has no PNG decoder for the GPU (`mixed` sends PNGs to the CPU without a word), its CPU decoder is several times
slower than `decode_grey`, and it stops for good, naming no file, at a broken one. So DALI is given decoded images,
uint8 [H, W, 1], and never sees a file; what can't be decoded goes in as one black pixel.

Shapes: B batch, S side of the square output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from distcxr.data.loader import Pixels, Request
from distcxr.data.pixels.decode import decode_grey, load_kernels
from distcxr.data.pixels.image_bytes import Locate, Source, UnreadableImage, read_file
from distcxr.data.pixels.resize import resize_rim
from distcxr.data.readers.prefetch import Job, PrefetchingReader

INPUT = "images"


class DaliReader(PrefetchingReader["Fed", list["Fed"]]):
    """A `PixelReader` on NVIDIA DALI. An error of DALI's own is a RuntimeError and ends its use.

    DALI clamps at the image's border where Pillow renormalises the weights, which changes the outermost pixels of a
    reduced image (by up to 28 grey levels at 224 px) and no others. Our threads make them as well, 0.06 ms an image:
    every pixel is within one grey level of Pillow's.

    Decoded images are large (1 MB for an X-ray of 1024 px), so at most `2 * prefetch` requests are held at once:
    256 MB for batches of 64 and a prefetch of 2.
    """

    def __init__(
        self,
        locate: Locate,
        image_size: int,
        *,
        max_batch_size: int,
        num_threads: int,
        device_id: int | None,
        prefetch: int = 2,
    ) -> None:
        """Build DALI's pipeline and run it once.

        Args:
            num_threads: threads of ours that read and decode; on the CPU as many of DALI that resize.
            device_id: GPU that resizes and holds the pixels; None keeps all on the CPU.
            prefetch: requests under way in DALI; as many again are being decoded.

        Raises:
            ImportError: DALI is not installed.
            RuntimeError: DALI can't use the GPU.
        """
        assert num_threads >= 1
        device = torch.device("cuda", device_id) if device_id is not None else None
        super().__init__(num_threads=num_threads, prefetch=prefetch, name="png", device=device)
        self._image_size, self._num_threads, self._launched_at_once = image_size, num_threads, prefetch
        self._locate, self._max_batch_size, self._device_id = locate, max_batch_size, device_id
        self.where = self._where()
        self._pipeline: Any = None
        self._stream: torch.cuda.Stream | None = None
        load_kernels()
        self._start()

    def close(self) -> None:
        """Stop the threads and free DALI's memory; the reader can't be used again."""
        super().close()
        self._pipeline = None

    def _job(self, requests: list[Request]) -> Job[Fed]:
        assert self._pipeline is not None, "closed, or broken by an earlier error"
        (request,) = requests
        assert 0 < len(request) <= self._max_batch_size
        return Job(requests, [partial(self._fetch, file) for file in self._locate(request)])

    def _launch(self, requests: Sequence[Request], made: list[Fed]) -> list[Fed]:
        """They have to live until the GPU has fetched them: DALI is given images without a copy."""
        with self._breakable():
            self._schedule(made)
        return made

    def _collect(self, launched: list[Fed]) -> list[Pixels]:
        with self._breakable():
            pixels = self._take(launched)
        bad = ((position, fed.reason) for position, fed in enumerate(launched) if fed.reason is not None)
        return [Pixels(pixels, tuple(bad))]

    def _handed_out(self) -> None:
        """Wait until the GPU has fetched the images of all collected batches: their memory may then be given back.

        It comes after the consumer's step and `_stream` waits for none of that, so there is as a rule nothing to wait
        for.
        """
        if self._stream is not None:
            self._stream.synchronize()

    def _abandon(self, launched: Sequence[list[Fed]]) -> None:
        for batch in launched if self._pipeline is not None else ():
            with self._breakable():
                self._take(batch)
        self._handed_out()

    def _start(self) -> None:
        """Build the pipeline and run as many one-pixel batches as it prefetches.

        DALI's first scheduled run starts a full prefetch, which a split of one batch could not feed; every later one
        is a single run.
        """
        self._pipeline = self._build()
        if self._device_id is not None:
            # Of its own, and first in line: copying a batch out must not wait for the step queued before it.
            self._stream = torch.cuda.Stream(self._device_id, priority=-1)  # type: ignore[no-untyped-call]
        blank = [self._blank()]
        for _ in range(self._prefetch - 1):
            self._feed(blank)
        self._schedule(blank)
        for _ in range(self._prefetch):
            self._take(blank)

    @contextmanager
    def _breakable(self) -> Iterator[None]:
        """An error of DALI's leaves the pipeline unusable: raised once, with what to do."""
        try:
            yield
        except Exception as error:
            self._pipeline = None
            raise RuntimeError(f"DALI broke ({error}); data.loader=torch does without it") from error

    def _where(self) -> str:
        resizer = "CPU" if self._device_id is None else f"GPU (cuda:{self._device_id})"
        return (
            f"images are decoded on the CPU by {self._num_threads} thread{'s' * (self._num_threads > 1)} of distcxr "
            f"(DALI has no GPU PNG decoder); DALI resizes on the {resizer}"
        )

    def _blank(self, reason: str | None = None) -> Fed:
        """What stands in for an image that can't be read."""
        return Fed(_BLANK, np.zeros((4, self._image_size), dtype=np.uint8), reason)

    def _fetch(self, file: Source) -> Fed:
        """Runs in our threads; never raises for a file: what can't be read becomes a black pixel with the reason."""
        try:
            image = np.ascontiguousarray(decode_grey(read_file(file)[0]))
        except UnreadableImage as error:
            return self._blank(str(error))
        rim = resize_rim(image, self._image_size)
        if self._stream is not None:
            # From pinned memory DALI's copy to the GPU is asynchronous. torch keeps freed pinned blocks for reuse.
            pinned = torch.empty(image.shape, dtype=torch.uint8, pin_memory=True).numpy()
            np.copyto(pinned, image)
            image = pinned
        return Fed(image[..., None], rim)

    def _build(self) -> Any:
        """The pipeline: from images, uint8 [H, W, 1], to uint8 [S, S, 1]."""
        from nvidia.dali import fn, types
        from nvidia.dali.pipeline import Pipeline

        side = self._image_size
        num_threads = self._num_threads if self._device_id is None else 1  # a GPU leaves them next to nothing to do
        pipeline = Pipeline(self._max_batch_size, num_threads, self._device_id, prefetch_queue_depth=self._prefetch)
        with pipeline:
            image = fn.external_source(name=INPUT, device="cpu", no_copy=True, layout="HWC")
            if self._device_id is not None:
                image = image.gpu()
            pipeline.set_outputs(fn.resize(image, size=[side, side], interp_type=types.INTERP_LINEAR, antialias=True))
        pipeline.build()
        return pipeline

    def _feed(self, batch: list[Fed]) -> None:
        self._pipeline.feed_input(INPUT, [fed.data for fed in batch])

    def _schedule(self, batch: list[Fed]) -> None:
        self._feed(batch)
        self._pipeline.schedule_run()

    def _take(self, batch: list[Fed]) -> Tensor:
        """The oldest batch under way, uint8 [B, 1, S, S], taken out of DALI's buffers.

        On a GPU nothing waits on the host: DALI's outputs, and their return to DALI, are bound to `_stream`, where the
        copies are queued; the current stream waits for them.
        """
        with torch.cuda.stream(self._stream):  # None: does nothing
            (output,) = self._pipeline.share_outputs(cuda_stream=self._stream)
            pixels = self._finished(output, batch)
            self._pipeline.release_outputs()
        if self._stream is not None:
            consumer = torch.cuda.current_stream(self._device_id)
            consumer.wait_stream(self._stream)
            pixels.record_stream(consumer)
        return pixels

    def _finished(self, output: Any, batch: list[Fed]) -> Tensor:
        """A copy of the resized images, given their rims."""
        pixels = from_dlpack(output.as_tensor()).clone().view(len(batch), 1, self._image_size, self._image_size)
        rim_BES = torch.from_numpy(np.stack([fed.rim for fed in batch]))
        if self._stream is not None:
            rim_BES = rim_BES.pin_memory().to(pixels.device, non_blocking=True)
        pixels[:, 0, 0], pixels[:, 0, -1] = rim_BES[:, 0], rim_BES[:, 1]
        pixels[:, 0, :, 0], pixels[:, 0, :, -1] = rim_BES[:, 2], rim_BES[:, 3]
        return pixels


class Fed(NamedTuple):
    """What becomes of one file: `data` for DALI, here the image, uint8 [H, W, 1]; its rim when resized, uint8 [4, S],
    which only this reader uses; why it is blank."""

    data: NDArray[np.uint8]
    rim: NDArray[np.uint8]
    reason: str | None = None


_BLANK = np.zeros((1, 1, 1), dtype=np.uint8)
