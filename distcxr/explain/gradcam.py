"""Grad-CAM: which parts of an image raise a finding's logit (Selvaraju et al., ICCV 2017).

    images ──► everything up to the last map ──► map ──► the rest ──► logits_BC
               once, without gradients            │                      │
               heat = relu(sum over K of          └── d logit / d map ◄──┘  one short backward pass a finding
                      mean gradient x map)

The network is cut at the map, so a finding costs a backward pass through the rest alone (often a pooling and a linear
layer), and no parameter ever sees a gradient.

Shapes: B batch, C findings asked for, H, W of the images, K channels and h, w of the map, N tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distcxr.models.freeze import evaluation_mode
from distcxr.models.heads import AttentionHead, Headed, network_name
from distcxr.models.maps import TORCHVISION_PARTS, feature_map

_TORCHVISION_LAYERS = {name: parts[-1] for name, parts in TORCHVISION_PARTS.items()} | {
    "MaxVit": "blocks.-1", "VisionTransformer": "encoder.layers.-1.ln_1",
}  # fmt: skip
"""Class to the layer that puts out the last map before pooling; -1 is the last of a list."""

_LAST_TOKENS = "blocks.-1.norm1"
"""The same for timm's networks that read a class token: after the last attention, patches no longer reach it."""

_WEIGHED = "backbone"
"""Where the map is that a head pools by attention: `feature_map` of the backbone."""


def gradcam(
    module: nn.Module,
    images: Tensor,
    columns: Sequence[int] | None = None,
    *,
    metadata: Tensor | None = None,
    explained: Callable[[Tensor], Tensor] | None = None,
    layer: str | None = None,
    relative: bool = False,
) -> Tensor:
    """Heat maps of findings. The module is left as it was: mode, statistics, gradients, hooks.

    It runs in evaluation mode and, under autocast too, in the precision of its weights. Where the head is an average
    and a linear layer, the map is CAM's: the head's weights applied at every position, negative sums set to 0.

    Args:
        module: torchvision's or timm's, or any other with `layer`; without DDP.
        images: float32 [B, in_chans, H, W], normalised; of two views [B, 2 in_chans, H, W], and the maps are the
            first one's.
        columns: the C findings' columns of the logits, each at most once; all of them by default.
        metadata: float32 [B, M], of a network that takes it beside the images; what it adds to a finding is not in the
            maps.
        explained: what of the logits [B, all findings] is explained, such as `losses.binary_logits` of classes that
            exclude each other, where only differences of logits mean something; by default they as they are.
        layer: name of the module (`named_modules`, within the backbone of a `heads.Headed`) that puts out the map,
            [B, K, h, w], [B, h, w, K] or tokens [B, N, K]; by default the last map before the network pools it.
        relative: evidence above the image's own average instead of above 0. Where a finding is rare, every
            position of every image may be evidence against it, some less than others: Grad-CAM as published is then
            empty, and this shows which.

    Returns float32 [B, C, H, W], each map divided by its maximum, so that it reaches 1; all 0 where nothing in the map
    raises the logit.

    Raises ValueError: a network that needs `layer`, a layer that does not exist or makes no map.
    """
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        with evaluation_mode(module):
            precision = next(module.parameters(), images).dtype
            where, leaf, logits_BC = _forward(module, images.to(precision), metadata, layer)
            if explained is not None:
                with torch.enable_grad():
                    logits_BC = explained(logits_BC)
            chosen = range(logits_BC.shape[1]) if columns is None else columns
            prefix = 0 if where == _WEIGHED else _prefix_tokens(_network(module))
            arrange = _arrangement(leaf, images, prefix, where)
            heat = _heat(leaf, logits_BC, chosen, arrange)[: len(images)]
            if relative:
                heat -= heat.mean((2, 3), keepdim=True)
            heat.relu_()
        heat = F.interpolate(heat, images.shape[-2:], mode="bilinear", align_corners=False)
        peak = heat.amax((2, 3), keepdim=True)
        return torch.where(peak > 0, heat / peak, heat)


def _heat(leaf: Tensor, logits_BC: Tensor, columns: Sequence[int], arrange: Callable[[Tensor], Tensor]) -> Tensor:
    """Evidence at each position, [B, C, h, w], of either sign and not scaled."""
    channels = arrange(leaf.detach()).float()
    heat = torch.empty(len(leaf), len(columns), *channels.shape[2:], device=leaf.device)
    for number, column in enumerate(columns):
        with torch.enable_grad():  # no image looks at another in evaluation: the sum's gradient is each logit's own
            logit = logits_BC[:, column].sum()
        (gradient,) = torch.autograd.grad(
            logit, leaf, retain_graph=number + 1 < len(columns), materialize_grads=True, allow_unused=True
        )
        weight_BK = arrange(gradient).float().mean((2, 3))
        heat[:, number] = torch.einsum("bk,bkhw->bhw", weight_BK, channels)
    return heat


def _network(module: nn.Module) -> nn.Module:
    """The library's network: without the head that a recipe may have given it."""
    return module.backbone if isinstance(module, Headed) else module


def _forward(
    module: nn.Module, images: Tensor, metadata: Tensor | None, layer: str | None
) -> tuple[str, Tensor, Tensor]:
    """Name of the map's layer, the map as a leaf of the graph, and logits [B, all findings] that hang on it alone.

    `forward` and not a call: `module.compile()` compiles the call, and compiled code does not see the hook.
    """
    network: Any = _network(module)
    if layer is None and isinstance(module, Headed) and isinstance(module.head, AttentionHead):
        leaf, passed_on = _cut(feature_map(network, images))
        with torch.enable_grad():
            return _WEIGHED, leaf, module.head(passed_on, metadata)
    if layer is None:
        halves = hasattr(network, "forward_features") and hasattr(network, "forward_head")
        if halves and getattr(network, "global_pool", None) != "token":
            features = network.forward_features(module.apart(images) if isinstance(module, Headed) else images)
            if not isinstance(features, Tensor):
                raise _unknown(network)
            leaf, passed_on = _cut(features)
            with torch.enable_grad():
                answer = network.forward_head(passed_on)
                if isinstance(module, Headed):
                    answer = module.head(module.joined(answer.flatten(1)), metadata)
                return "forward_features", leaf, answer
        layer = _known_layer(network, halves)

    name = type(network).__name__
    is_bare = name == "DenseNet" and layer == _TORCHVISION_LAYERS[name] and not hasattr(network, "forward_features")
    leaves: list[Tensor] = []

    def hook(_: nn.Module, __: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise ValueError(f"{layer!r} of {name} makes a {type(output).__name__}, not one map: name another layer")
        if is_bare:
            # torchvision's DenseNet applies its last ReLU outside of any module. Done here, by a hair above 0 so that
            # the network's own lets every gradient pass, the map is the one that is pooled.
            output = output.clamp(min=torch.finfo(output.dtype).tiny)
        leaf, passed_on = _cut(output)
        leaves[:] = [leaf]
        torch.set_grad_enabled(True)  # for the rest; the caller's no_grad ends it
        return passed_on

    with _find(network, network_name(module, layer)).register_forward_hook(hook):
        logits_BC = module.forward(images, metadata) if isinstance(module, Headed) else module.forward(images)
    if not leaves:
        raise ValueError(f"{layer!r} of {name} is not used in its forward pass: name another layer")
    return layer, leaves[0], logits_BC


def _cut(features: Tensor) -> tuple[Tensor, Tensor]:
    """A leaf of the graph, and a copy for the network to continue with: it may change that in place (ReLU)."""
    with torch.enable_grad():
        leaf = features.detach().requires_grad_()
        return leaf, leaf.clone()


def _known_layer(module: nn.Module, is_timm: bool) -> str:
    if is_timm:
        blocks = getattr(module, "blocks", None)
        if isinstance(blocks, nn.Sequential | nn.ModuleList) and len(blocks) and hasattr(blocks[-1], "norm1"):
            return _LAST_TOKENS
    elif type(module).__module__.startswith("torchvision.") and type(module).__name__ in _TORCHVISION_LAYERS:
        return _TORCHVISION_LAYERS[type(module).__name__]
    raise _unknown(module)


def _unknown(module: nn.Module) -> ValueError:
    parts = ", ".join(name for name, _ in module.named_children())
    return ValueError(
        f"{type(module).__name__}: where its last map of features is, is not known. Name the module that makes it, "
        f"such as layer='features.norm5'; its parts are: {parts}. List all with: "
        "print([name for name, _ in model.named_modules()])"
    )


def _find(module: nn.Module, layer: str) -> nn.Module:
    """The module called `layer`, where -1 counts from the end of a list."""
    part = module
    for name in layer.split("."):
        children = dict(part.named_children())
        if name == "-1" and children:
            part = list(children.values())[-1]
        elif name in children:
            part = children[name]
        else:
            near = get_close_matches(layer, dict(module.named_modules()), n=3)
            parts = ", ".join(dict(module.named_children()))
            hint = f"nearest: {', '.join(near)}" if near else f"its parts are: {parts}"
            raise ValueError(f"{type(module).__name__} has no layer {layer!r}; {hint}")
    return part


def _prefix_tokens(module: nn.Module) -> int:
    """Class and register tokens in front of the patches."""
    declared = getattr(module, "num_prefix_tokens", None)
    return declared if isinstance(declared, int) else int(isinstance(getattr(module, "class_token", None), Tensor))


def _arrangement(features: Tensor, images: Tensor, prefix: int, where: str) -> Callable[[Tensor], Tensor]:
    """How to see a tensor of this shape as [B, K, h, w]."""
    height, width = images.shape[-2:]
    aspect = math.log(height / width)
    if features.ndim == 4:
        _, a, b, c = features.shape
        # The image's shape shows which two of the axes are its own. Swin and others keep channels last.
        last = abs(math.log(a / b) - aspect) < abs(math.log(b / c) - aspect)
        return (lambda tensor: tensor.permute(0, 3, 1, 2)) if last else (lambda tensor: tensor)
    if features.ndim == 3:
        for skip in dict.fromkeys((prefix, 0)):  # CaiT adds its class token later
            num = features.shape[1] - skip
            rows = round(math.sqrt(num * height / width))
            if rows and num % rows == 0 and abs(math.log(rows * rows / num) - aspect) < 0.5:
                return lambda tensor: _grid(tensor[:, skip:], rows)
        raise ValueError(
            f"{where!r} makes {features.shape[1]} tokens, {prefix} of them no patches: the rest can't be laid out on "
            f"an image of {height} x {width} pixels. Name another layer"
        )
    raise ValueError(f"{where!r} makes a tensor of shape {tuple(features.shape)}, not a map: name another layer")


def _grid(tokens: Tensor, rows: int) -> Tensor:
    """Tokens [B, N, K], row by row, to a map [B, K, rows, N / rows]."""
    return tokens.transpose(1, 2).reshape(len(tokens), tokens.shape[2], rows, -1)
