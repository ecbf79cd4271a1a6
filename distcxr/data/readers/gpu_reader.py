"""PNG files decoded on the GPU, in waves: the CPU reads, checks and hands over compressed bytes.

    requests ──► waves ──► threads: read, walk the chunks ──► GPU: inflate, undo the filters, resize ──► Pixels
                                  └──► `decode_grey`, for all but plain grey PNGs ──────────────────────┘

A GPU inflates many streams at once or it is slow, and a batch has too few: a wave is as many whole requests as fit into
`wave` images. What the GPU finds wrong is decoded once more by `decode_grey`, which alone decides what can be read:
a bad file has the same reason in every reader.

Shapes: W images of a wave, B batch, S side of the square output.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from distcxr.data.loader import Pixels, Request
from distcxr.data.pixels.decode import decode_grey, load_kernels
from distcxr.data.pixels.image_bytes import Locate, Source, UnreadableImage, read_file
from distcxr.data.pixels.png_gpu import PngDecoder, Prepared
from distcxr.data.pixels.resize import resize_grey
from distcxr.data.readers.prefetch import Job, PrefetchingReader

logger = logging.getLogger(__name__)

_RUN = 8  # images a thread is handed at once: one by one, handing over costs as much as preparing
_AT_ONCE = 65_535  # images a kernel can be launched for: blocks of a grid along y


class GpuReader(PrefetchingReader[list["_Image"], "_Launched"]):
    """A `PixelReader` of PNGs that are decoded on the GPU. Without memory for a single image it is a RuntimeError.

    Beside the GPU's buffers, the bytes of up to `prefetch` + 2 waves are in pinned memory: of an NIH X-ray 0.4 MB, or
    1.05 MB where the CPU inflates, for which PyTorch hands out 0.5 and 2 MB.
    """

    _launched_at_once = 2  # waves: one that is waited for, and the next, so that the GPU need not wait for us

    def __init__(
        self,
        decoder: PngDecoder,
        locate: Locate,
        image_size: int,
        *,
        device: torch.device,
        num_threads: int,
        wave: int,
        prefetch: int = 2,
    ) -> None:
        """Start the threads.

        Args:
            decoder: for the same `image_size` and `device`.
            num_threads: that read files and prepare them.
            wave: images decoded at once, at most. A request with more is decoded in parts. Where the GPU has too little
                memory for a wave, it is made smaller, for good, and the log notes it once.
            prefetch: waves that are read ahead.
        """
        assert num_threads >= 1 and wave >= 1
        load_kernels()
        self._decoder, self._locate, self._image_size, self._device = decoder, locate, image_size, device
        self._wave, self._at_once = wave, min(wave, _AT_ONCE)
        self._stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.where = (
            f"PNGs are read by {num_threads} thread{'s' * (num_threads > 1)} and {decoder.where}, up to {wave} at once"
        )
        self._logged_small = self._logged_foreign = False
        on = None if self._stream is None else self._stream.device
        super().__init__(num_threads=num_threads, prefetch=prefetch, name="png", device=on)

    def _jobs(self, requests: Iterable[Request]) -> Iterator[Job[list[_Image]]]:
        """Requests by the wave."""
        together: list[Request] = []
        for request in requests:
            together.append(request)
            if sum(map(len, together)) + len(request) > self._wave:  # the next is as long
                yield self._job(together)
                together = []
        if together:
            yield self._job(together)

    def _job(self, requests: list[Request]) -> Job[list[_Image]]:
        files = self._locate(np.concatenate(requests))
        return Job(requests, [partial(self._fetch, files[at : at + _RUN]) for at in range(0, len(files), _RUN)])

    def _fetch(self, files: Sequence[Source]) -> list[_Image]:
        """Runs in our threads; never raises for a file."""
        images = []
        for file in files:
            try:
                data, _ = read_file(file)
                prepared = self._decoder.prepare(data)
                images.append(_Image(file, prepared) if prepared is not None else self._by_cpu(file, data))
            except UnreadableImage as error:
                images.append(_Image(file, reason=str(error)))
        return images

    def _by_cpu(self, file: Source, data: bytes) -> _Image:
        """What the other loaders make of it. Raises UnreadableImage: as `decode_grey`."""
        return _Image(file, pixels=torch.from_numpy(np.array(resize_grey(decode_grey(data), self._image_size))))

    def _launch(self, requests: Sequence[Request], made: list[list[_Image]]) -> _Launched:
        """Queue all that the GPU has to do for a wave, on a stream of its own; waits for nothing but the threads."""
        images = [image for run in made for image in run]
        on_gpu = [position for position, image in enumerate(images) if image.prepared is not None]
        on_cpu = [position for position, image in enumerate(images) if image.pixels is not None]
        shape = (self._image_size, self._image_size)
        with torch.cuda.stream(self._stream):  # None: does nothing
            decoded = torch.empty(len(on_gpu), *shape, dtype=torch.uint8, device=self._device)
            verdicts = self._decode([image.prepared for image in images if image.prepared is not None], decoded)
            pixels = decoded
            if len(on_gpu) < len(images):
                pixels = torch.zeros(len(images), *shape, dtype=torch.uint8, device=self._device)
                pixels[self._on_device(torch.tensor(on_gpu, dtype=torch.int64))] = decoded
            if on_cpu:
                by_cpu = torch.stack([image.pixels for image in images if image.pixels is not None])
                pixels[self._on_device(torch.tensor(on_cpu))] = self._on_device(by_cpu)
            done = None
            if self._stream is not None:
                verdicts = torch.empty(len(on_gpu), dtype=torch.int32, pin_memory=True).copy_(
                    verdicts, non_blocking=True
                )
                done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # or waiting costs a core
                done.record(self._stream)
        # PyTorch gives pinned memory out again once all is done that was queued when it was let go: so before the next
        # wave is queued.
        images = [image._replace(prepared=None) for image in images]
        return _Launched(requests, images, pixels, on_gpu, verdicts, done)

    def _decode(self, images: Sequence[Prepared], out_WSS: Tensor) -> Tensor:
        """Decode in as few parts as memory allows: int32 [W] verdicts."""
        verdicts = [torch.zeros(0, dtype=torch.int32, device=self._device)]
        start = 0
        while start < len(images):
            part = images[start : start + self._at_once]
            try:
                verdicts.append(self._decoder.decode(part, out_WSS[start : start + len(part)]))
            except torch.OutOfMemoryError as error:
                if len(part) == 1:
                    raise RuntimeError(
                        f"{self._device} has no memory left to decode even one image ({error}): use a smaller "
                        "batch, or data.loader=torch, which decodes on the CPU"
                    ) from error
                self._at_once = len(part) // 2
                if not self._logged_small:
                    self._logged_small = True
                    logger.warning(
                        "%s has too little free memory to decode %d images at once: fewer from now on, as with "
                        "data.gpu.wave=%d",
                        self._device, len(part), self._at_once,
                    )  # fmt: skip
            else:
                start += len(part)
        return torch.cat(verdicts)

    def _collect(self, launched: _Launched) -> list[Pixels]:
        """Wait for a wave and decode on the CPU what the GPU refused."""
        images, pixels, done = launched.images, launched.pixels, launched.done
        if done is not None:
            done.synchronize()
        verdicts = launched.verdicts.tolist()
        with torch.cuda.stream(self._stream):
            for position, verdict in zip(launched.on_gpu, verdicts, strict=True):
                if verdict:
                    images[position] = again = self._again_by_cpu(images[position].file, verdict)
                    pixels[position] = self._on_device(again.pixels) if again.pixels is not None else 0
        if done is not None:
            if any(verdicts):
                done.record(self._stream)
            consumer = torch.cuda.current_stream(self._device)
            consumer.wait_event(done)  # and not for the stream: the next wave is queued there already
            pixels.record_stream(consumer)
        answers, start = list[Pixels](), 0
        for request in launched.requests:
            end = start + len(request)
            unreadable = (
                (position - start, image.reason)
                for position, image in enumerate(images[start:end], start)
                if image.reason is not None
            )
            answers.append(Pixels(pixels[start:end, None], tuple(unreadable)))
            start = end
        return answers

    def _abandon(self, launched: Sequence[_Launched]) -> None:
        if self._stream is not None:
            self._stream.synchronize()

    def _again_by_cpu(self, file: Source, verdict: int) -> _Image:
        try:
            image = self._by_cpu(file, read_file(file)[0])
        except UnreadableImage as error:
            return _Image(file, reason=str(error))
        if not self._logged_foreign:
            self._logged_foreign = True
            logger.warning(
                "%s can't be decoded on the GPU (verdict %d) and can on the CPU, which is taken for it and for "
                "others of its kind",
                file, verdict,
            )  # fmt: skip
        return image

    def _on_device(self, tensor: Tensor) -> Tensor:
        return tensor if self._stream is None else tensor.pin_memory().to(self._device, non_blocking=True)


class _Image(NamedTuple):
    """What a thread made of a file: prepared for the GPU (until that has it), or its pixels uint8 [S, S], or why it
    can't be read."""

    file: Source
    prepared: Prepared | None = None
    pixels: Tensor | None = None
    reason: str | None = None


class _Launched(NamedTuple):
    """A wave that the GPU is at work on: uint8 [W, S, S]; verdicts of the images `on_gpu` on the host, once `done`."""

    requests: Sequence[Request]
    images: list[_Image]
    pixels: Tensor
    on_gpu: list[int]
    verdicts: Tensor
    done: torch.cuda.Event | None
