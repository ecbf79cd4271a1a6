"""`Ema`: a moving average of a network's weights, for `train.ema`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Ema:
    """Moving average of parameters and buffers, on the network's device and in its types (float32 weights).

    After update n (counted from 0 over the whole run) the average is d times itself plus 1 - d times the weights, with
    d = min(decay, (1 + n) / (10 + n)), so the initial weights do not dominate it for the first 1 / (1 - decay)
    updates; without `warmup` d is the decay. Integer buffers (BatchNorm's count of batches) are copied.

    It costs one copy of the network's memory, and a pass over it an update.
    """

    def __init__(self, module: nn.Module, decay: float, *, warmup: bool = True) -> None:
        self.decay, self.warmup = decay, warmup
        self._holders = _holders(module)
        theirs = self._theirs()
        self._ours = [tensor.clone() for tensor in theirs]
        self._averaged = [i for i, tensor in enumerate(theirs) if tensor.is_floating_point()]
        self._copied = [i for i, tensor in enumerate(theirs) if not tensor.is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after update `step` (from 0). Nothing waits for the device."""
        theirs, decay = self._theirs(), self.decay
        if self.warmup:
            decay = min(decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([self._ours[i] for i in self._averaged], [theirs[i] for i in self._averaged], 1 - decay)
        if self._copied:
            torch._foreach_copy_([self._ours[i] for i in self._copied], [theirs[i] for i in self._copied])

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the network's weights and the average; once more, and both are as before."""
        for ours, theirs in zip(self._ours, self._theirs(), strict=True):
            kept = ours.clone()
            ours.copy_(theirs)
            theirs.copy_(kept)

    def _theirs(self) -> list[Tensor]:
        """The network's tensors as they are now: moving a module gives it new ones, even from `cpu` to `cpu:0`."""
        return [tensor.detach() for holder, name in self._holders if (tensor := holder[name]) is not None]


def _holders(module: nn.Module) -> list[tuple[dict[str, Any], str]]:
    """The dict and key of each tensor of the state dict, parameters and persistent buffers, each once."""
    found, seen = [], set()
    for layer in module.modules():
        holders: tuple[dict[str, Any], ...] = (layer._parameters, layer._buffers)
        for holder in holders:
            for name, tensor in holder.items():
                if tensor is not None and id(tensor) not in seen and name not in layer._non_persistent_buffers_set:
                    found.append((holder, name))
                    seen.add(id(tensor))
    return found
