"""Stochastic depth (Huang et al., ECCV 2016), or drop path: in training images skip blocks at random.

timm's networks are built with a rate. Torchvision's have layers for it, with rates that rise along the blocks; some of
its constructors (Swin, MaxViT) take no rate, so the layers are given theirs afterwards. Both take masks from torch's
generator, as dropout does: seeded by the engine, they are the same on any number of ranks and after a resume.
"""

from __future__ import annotations

from typing import Any

from torch import nn

_EFFICIENTNET_RATE = 0.2  # its last block has less: torchvision divides by the number of blocks, elsewhere by one less


def set_stochastic_depth(model: nn.Module, name: str, rate: float) -> None:
    """Have the layers of a torchvision network drop as if it had been built with `stochastic_depth_prob=rate`.

    Raises:
        ValueError: a network without such layers.
    """
    layers: list[Any] = [layer for layer in model.modules() if type(layer).__name__ == "StochasticDepth"]
    if not layers:
        raise without_stochastic_depth(name, "torchvision")
    own = _EFFICIENTNET_RATE if name.startswith("efficientnet") else max(layer.p for layer in layers)
    for layer in layers:
        layer.p *= rate / own


def without_stochastic_depth(name: str, library: str) -> ValueError:
    """The error for a network that has none."""
    return ValueError(
        f"model.drop_path: {library}'s {name} has no stochastic depth; torchvision's ConvNeXt, EfficientNet, MaxViT "
        "and Swin have it, and most of timm's networks, its ResNets and ViTs among them (not its DenseNets and VGGs). "
        "Leave model.drop_path out, or take one of those"
    )
