"""Gradient checkpointing: blocks keep their inputs alone for the backward pass, which computes the rest anew.

For networks of both libraries and users' own, in training alone: timm's `set_grad_checkpointing` also recomputes where
heat maps are made, and has BatchNorm average every batch twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from distcxr.models.depth import block_names


class Recomputed(nn.Module):
    """What a block's class is mixed with: its forward pass is made a second time within the backward pass.

    With the random numbers and the autocast of the first time, and with BatchNorm's averages left alone.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The block's own, of which autograd keeps the arguments alone."""
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(*args, **kwargs)
        args = tuple(list(one) if isinstance(one, list) else one for one in args)  # DenseNet's list of maps grows
        if torch.compiler.is_compiling():  # a compiled backward pass computes what it needs, and that is no average
            return checkpoint(super().forward, *args, use_reentrant=False, **kwargs)
        return checkpoint(super().forward, *args, use_reentrant=False, context_fn=self._contexts, **kwargs)

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _without_averaging(self)


def recompute_blocks(model: nn.Module, name: str) -> None:
    """Have the model's blocks recomputed, in place; its state dict stays.

    Raises:
        ValueError: a network without blocks of several layers, such as VGG.
    """
    names = block_names(model)
    if not names:
        raise ValueError(
            f"train.gradient_checkpointing: model.name={name} has no blocks of several layers that could be "
            "recomputed; leave it out, and lower train.per_device_batch_size to save memory"
        )
    for path in names:
        block = model.get_submodule(path)
        kind = type(block)
        block.__class__ = type(kind.__name__, (Recomputed, kind), {})


@contextmanager
def _without_averaging(block: nn.Module) -> Iterator[None]:
    """BatchNorm layers compute as ever within the block, but average the batch into their buffers with weight 0.

    Without the buffers autograd would save fewer tensors than in the first pass, which is an error.
    """
    layers = [layer for layer in block.modules() if isinstance(layer, _BatchNorm)]
    kept = [(layer, layer.momentum, layer._buffers["num_batches_tracked"]) for layer in layers]
    for layer in layers:
        layer.momentum, layer._buffers["num_batches_tracked"] = 0.0, None
    try:
        yield
    finally:
        for layer, momentum, count in kept:
            layer.momentum, layer._buffers["num_batches_tracked"] = momentum, count
