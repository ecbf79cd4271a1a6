"""The same numbers in fewer kernels: DenseNet's maps, joined once a layer.

torchvision gives every layer of a DenseNet a list of all maps so far and joins it there: each map then gets a gradient
from each later layer, and each is added by a kernel of its own. Here a layer gets the maps joined, and adds its own to
them, so that backward adds 58 gradients, not 531. Values, gradients (the order of summation is the same), weights and
their names stay as they are.

Imports torchvision, which takes a second: `factory.py` imports this file where it builds one of torchvision's networks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.densenet import _DenseBlock

from distcxr.models.recomputed import Recomputed


class JoinedDenseBlock(_DenseBlock):  # type: ignore[misc]
    """A block of dense layers; [B, C, H, W] to [B, C + layers x growth, H, W].

    Layers that are recomputed join the maps themselves, as torchvision's do: kept are the maps, each once.
    """

    def forward(self, maps: Tensor) -> Tensor:
        if isinstance(self.denselayer1, Recomputed):
            return super().forward(maps)  # type: ignore[no-any-return]
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
