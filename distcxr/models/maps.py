"""The last feature map of a network before pooling, as tokens.

Shapes: B batch, K channels, N positions of the map.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TORCHVISION_PARTS = {
    "AlexNet": ("features",), "ConvNeXt": ("features",), "DenseNet": ("features",), "EfficientNet": ("features",),
    "MaxVit": ("stem", "blocks"), "MNASNet": ("layers",), "MobileNetV2": ("features",), "MobileNetV3": ("features",),
    "RegNet": ("stem", "trunk_output"),
    "ResNet": ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"),
    "ShuffleNetV2": ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"), "SqueezeNet": ("features",),
    "SwinTransformer": ("features", "norm", "permute"), "VGG": ("features",),
}  # fmt: skip
"""Class to the parts that an image passes, in order, before pooling."""


def takes_any_size(network: Any) -> bool:
    """Whether images may have another size than the network was built for: not with position embeddings or windows."""
    bare = getattr(network, "backbone", network)
    known = getattr(bare, "pretrained_cfg", None) or {}
    return not (known.get("fixed_input_size") or type(bare).__name__ in ("VisionTransformer", "MaxVit"))


def feature_map(network: Any, images: Tensor) -> Tensor:
    """The last map [B, N, K], row by row, without class and register tokens.

    Args:
        network: torchvision's or timm's.
        images: float32 [B, in_chans, H, W].

    Raises ValueError: a network without a map, or with one that is not known.
    """
    if callable(getattr(network, "forward_features", None)):
        features = network.forward_features(images)
        if not isinstance(features, Tensor):
            raise _no_map(network)
        if features.ndim == 3:
            tokens: Tensor = features[:, getattr(network, "num_prefix_tokens", 0) :]
            if tokens.shape[1] < 2:  # PiT hands on its class token alone
                raise _no_map(network)
            return tokens
        if features.ndim == 4 and getattr(network, "output_fmt", "NCHW") == "NHWC":
            return features.flatten(1, 2)
    elif type(network).__name__ == "VisionTransformer" and hasattr(network, "_process_input"):
        patches = network._process_input(images)
        both: Tensor = network.encoder(torch.cat([network.class_token.expand(len(patches), -1, -1), patches], 1))
        return both[:, 1:]
    elif type(network).__name__ in TORCHVISION_PARTS:
        features = images
        for name in TORCHVISION_PARTS[type(network).__name__]:
            part = getattr(network, name)
            for layer in part if isinstance(part, nn.ModuleList) else [part]:
                features = layer(features)
        if type(network).__name__ == "DenseNet":  # applies its last ReLU outside of any module
            features = F.relu(features)
    else:
        raise _no_map(network)
    if features.ndim != 4:
        raise _no_map(network)
    assert isinstance(features, Tensor)
    return features.flatten(2).transpose(1, 2)


def cut_after_map(network: nn.Module, *, in_chans: int, side: int) -> int:
    """Take out, in place, all parts with parameters that come after the map; the number K of the map's channels.

    Parameters that no image reaches would make DDP wait for their gradients for ever. It costs two passes of one image.
    Raises ValueError: as `feature_map`, or a network that can't do without one of these parts.
    """
    image = torch.zeros(1, in_chans, side, side)
    training = network.training
    network.eval()
    with torch.enable_grad():
        tokens_BNK = feature_map(network, image)
        positions = tokens_BNK.shape[1]
        if math.isqrt(positions) ** 2 != positions:  # of a square image
            raise _no_map(network)
        parameters = {name: one for name, one in network.named_parameters() if one.requires_grad}
        gradients = torch.autograd.grad(tokens_BNK.sum(), list(parameters.values()), allow_unused=True)
    unused = {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None}
    for name, module in list(network.named_modules()):
        inside = {f"{name}.{own}" for own, one in module.named_parameters() if one.requires_grad}
        if name and inside and inside <= unused:
            network.set_submodule(name, nn.Identity())
            unused -= inside
    try:
        if unused:
            raise _no_map(network)
        with torch.no_grad():
            feature_map(network, image)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise _no_map(network) from error
    network.train(training)
    return tokens_BNK.shape[2]


def _no_map(network: Any) -> ValueError:
    return ValueError(
        f"model.head.kind=attention: {type(network).__name__} has no feature map with positions to weigh; "
        "take model.head.kind=mlp or another model.name"
    )
