"""BatchNorm's counts of batches, all at once: layer by layer they are a kernel each, 121 of DenseNet-121's a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_COUNT = "num_batches_tracked"


class BatchCounts:
    """The counters of a network's BatchNorm layers that measure with a fixed momentum, and so never read theirs."""

    def __init__(self, module: nn.Module) -> None:
        self._layers = [
            layer for layer in module.modules()
            if isinstance(layer, _BatchNorm) and layer.num_batches_tracked is not None and layer.momentum is not None
        ]  # fmt: skip

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around a forward pass in training mode: the layers leave their counters alone, which are raised after it."""
        counting = [
            (layer._buffers, count)
            for layer in self._layers
            if layer.training and (count := layer._buffers[_COUNT]) is not None
        ]
        for buffers, _ in counting:
            buffers[_COUNT] = None
        try:
            yield
        finally:
            for buffers, count in counting:
                buffers[_COUNT] = count
        if counting:
            torch._foreach_add_([count for _, count in counting], 1)
