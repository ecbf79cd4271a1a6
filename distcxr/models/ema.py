"""A moving average of a network's weights, which validates better than the weights that are trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Ema:
    """Moving average of parameters and buffers, on the network's device and in its types (float32 weights).

    After update n (counted from 0 over the whole run) the average is d times itself plus 1 - d times the weights, with
    d = min(decay, (1 + n) / (10 + n)): so it is not held up by the weights of the start for the first 1 / (1 - decay)
    updates. Integer buffers (BatchNorm's count of batches) are copied.

    It costs one copy of the network's memory, and a pass over it an update.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._theirs = _tensors(module)
        self._ours = [tensor.clone() for tensor in self._theirs]
        self._averaged = [place for place, tensor in enumerate(self._theirs) if tensor.is_floating_point()]
        self._copied = [place for place, tensor in enumerate(self._theirs) if not tensor.is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after update `step` (from 0). Nothing waits for the device."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(
            [self._ours[place] for place in self._averaged], [self._theirs[place] for place in self._averaged],
            1 - decay,
        )  # fmt: skip
        for place in self._copied:
            self._ours[place].copy_(self._theirs[place])

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the network's weights and the average; once more, and both are as before."""
        for ours, theirs in zip(self._ours, self._theirs, strict=True):
            kept = ours.clone()
            ours.copy_(theirs)
            theirs.copy_(kept)


def _tensors(module: nn.Module) -> list[Tensor]:
    """What makes up the state dict: parameters and persistent buffers, once each."""
    kept = set(module.state_dict())
    named = [*module.named_parameters(), *module.named_buffers()]
    return [tensor.detach() for name, tensor in named if name in kept]
