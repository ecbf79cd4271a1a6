"""The same numbers in fewer kernels: BatchNorm's counters, raised together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_COUNT = "num_batches_tracked"


class BatchCounts:
    """The counters of a network's BatchNorm layers with a fixed momentum, which never read them.

    DenseNet-121 has 121 of them, each raised by a kernel of its own otherwise.
    """

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
