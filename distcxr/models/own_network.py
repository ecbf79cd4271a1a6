"""A network of a user's own function, tried on two images before anything is trained with it.

Shapes: B batch, C findings.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from distcxr.own_parts import broken, part

logger = logging.getLogger(__name__)

_KEY = "model.name"
_tried: set[tuple[str, int, int, int]] = set()
"""What this process has tried: once is enough."""
_NUM_IMAGES = 2
_SHOWN = 3


def build_own(name: str, *, num_classes: int, in_chans: int, image_size: int) -> nn.Module:
    """The network that the function `name` makes, in training mode, its weights and buffers as it made them.

    Raises:
        PartError: it is not a network, makes other than logits [B, C], or has parameters that no logit depends on, for
            which ranks would wait for ever.
    """
    module = part(name)(num_classes=num_classes, in_chans=in_chans, image_size=image_size)
    if not isinstance(module, nn.Module):
        raise broken(_KEY, name, f"returned {type(module).__name__}")
    asked = (name, num_classes, in_chans, image_size)
    lazy = any(isinstance(value, nn.UninitializedParameter) for value in module.parameters())
    if asked not in _tried or lazy:  # images give those their shapes
        _try(module, name, num_classes, in_chans, image_size)
        _tried.add(asked)
    return module.train()


def _try(module: nn.Module, name: str, num_classes: int, in_chans: int, image_size: int) -> None:
    """Two images forward, in evaluation and in training, and backward; buffers are afterwards what they were."""
    ramp = torch.linspace(-2, 2, _NUM_IMAGES * in_chans * image_size**2)
    images = ramp.view(_NUM_IMAGES, in_chans, image_size, image_size)
    with torch.random.fork_rng([]), torch.enable_grad():
        _check_logits(name, module.eval()(images), num_classes)
        buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
        logits_BC = module.train()(images)
        _check_logits(name, logits_BC, num_classes)
    trained = {key: value for key, value in module.named_parameters() if value.requires_grad}
    if not trained or not logits_BC.requires_grad:
        raise broken(_KEY, name, "returned a network with nothing to train")
    gradients = torch.autograd.grad(logits_BC.sum(), list(trained.values()), allow_unused=True)
    if unused := [key for key, gradient in zip(trained, gradients, strict=True) if gradient is None]:
        raise broken(
            _KEY, name, f"returned a network with {len(unused)} parameters that no logit depends on, "
            f"{', '.join(unused[:_SHOWN])}: take them out, or set requires_grad=False",
        )  # fmt: skip
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)


def _check_logits(name: str, logits_BC: object, num_classes: int) -> None:
    if not isinstance(logits_BC, Tensor):
        raise broken(_KEY, name, f"returned a network that makes {type(logits_BC).__name__}")
    if logits_BC.shape != (_NUM_IMAGES, num_classes) or not logits_BC.is_floating_point():
        raise broken(
            _KEY, name, f"returned a network that makes {logits_BC.dtype} {list(logits_BC.shape)} of {_NUM_IMAGES} "
            f"images, for {num_classes} findings",
        )  # fmt: skip
    if logits_BC.numel() >= 8 and bool(((logits_BC > 0) & (logits_BC < 1)).all()):
        logger.warning(f"{_KEY}={name}: its logits are all between 0 and 1: if it ends in a sigmoid, take that out")
