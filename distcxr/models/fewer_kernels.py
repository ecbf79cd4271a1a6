"""The same numbers in fewer kernels: BatchNorm's counters, raised together, and DenseNet's maps, joined once a layer.

torchvision gives every layer of a DenseNet a list of all maps so far and joins it there: each map then gets a gradient
from each later layer, and each is added by a kernel of its own. Here a layer gets the maps joined, and adds its own to
them, so that backward adds 58 gradients, not 531. Values, gradients (the order of summation is the same), weights and
their names stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.densenet import _DenseBlock

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


class JoinedDenseBlock(_DenseBlock):  # type: ignore[misc]
    """A block of dense layers; [B, C, H, W] to [B, C + layers x growth, H, W]."""

    def forward(self, maps: Tensor) -> Tensor:
        for layer in self.values():
            new = layer.conv1(layer.relu1(layer.norm1(maps)))
            new = layer.conv2(layer.relu2(layer.norm2(new)))
            if layer.drop_rate > 0:
                new = functional.dropout(new, p=layer.drop_rate, training=self.training)
            maps = torch.cat([maps, new], dim=1)
        return maps


def join_maps(model: nn.Module) -> None:
    """Have the dense blocks of a torchvision model join their maps once a layer; other models have none."""
    for block in model.modules():
        if isinstance(block, _DenseBlock):
            block.__class__ = JoinedDenseBlock
