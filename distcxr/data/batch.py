"""`Batch`: the tensors of one micro-batch, which a loader gives to the engine.

Shapes: B samples, C findings, S side of the square image in pixels, P augmentation parameters, M columns of metadata.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

_TENSORS = ("pixels", "targets", "mask", "sample_id", "augment", "metadata")


@dataclass(frozen=True)
class Batch:
    """One micro-batch."""

    pixels: Tensor  # uint8 [B, 1, S, S], grey; [B, 2, S, S] with lateral views, see `distcxr.data.laterals`
    targets: Tensor  # uint8 [B, C], 1 = finding present
    mask: Tensor  # uint8 [B, C], 1 = label known; all 0 for a sample with an unreadable file
    sample_id: Tensor  # int64 [B], the sample's row in the index
    augment: Tensor  # float32 [B, P], see `distcxr.data.augment`
    metadata: Tensor  # float32 [B, M], see `distcxr.data.metadata`; M is 0 where the recipe asks for none
    unreadable: tuple[tuple[int, str], ...] = ()  # (sample_id, reason) of each unreadable file; its pixels are 0

    def __len__(self) -> int:
        return len(self.sample_id)

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`; asynchronous where the tensors are pinned.

        A GPU copies on a stream of its own, beside the work queued before; work queued on the
        current stream afterwards waits for the copies.
        """
        if device.type != "cuda":
            return self._moved(device)
        current, copies = torch.cuda.current_stream(device), _copy_stream(device)
        with torch.cuda.stream(copies):
            batch = self._moved(device)
        current.wait_stream(copies)
        for name in _TENSORS:
            if getattr(self, name).device != device:
                getattr(batch, name).record_stream(current)  # its memory is the copy stream's to give away again
        return batch

    def _moved(self, device: torch.device) -> Batch:
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in _TENSORS})


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
