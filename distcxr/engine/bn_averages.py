"""BatchNorm's running averages over the whole global batch, for `train.bn_averages=global`.

A layer averages each batch that it normalises into its buffers, of which checkpoints and evaluation take rank 0's: they
depend on how many micro-batches rank 0 has. Here every micro-batch of an update starts from the averages before it, and
the mean of what each would leave behind is kept, over micro-batches and ranks: the same on any number of ranks where
micro-batches are of one size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class GlobalAverages:
    """The averages during one update.

    Costs a copy of them a micro-batch and a sum over the ranks an update: of DenseNet-121 0.3 MB. Layers that average
    without a momentum, or that are in evaluation mode, are left alone.
    """

    def __init__(self, module: nn.Module) -> None:
        self._buffers: list[Tensor] = []
        for layer in module.modules():
            if isinstance(layer, _BatchNorm) and layer.training and layer.momentum is not None:
                pair = (layer.running_mean, layer.running_var)
                self._buffers += [buffer for buffer in pair if buffer is not None]
        self._before = [buffer.clone() for buffer in self._buffers]
        self._sums = [torch.zeros_like(buffer) for buffer in self._buffers]
        self._num = 0

    @torch.no_grad()
    def take(self) -> None:
        """Take in what a forward pass left behind, and have the averages as they were before it.

        After its backward pass, which refuses buffers that changed in between.
        """
        self._num += 1
        if self._buffers:
            torch._foreach_add_(self._sums, self._buffers)
            torch._foreach_copy_(self._buffers, self._before)

    @torch.no_grad()
    def finish(self, sum_over_ranks: Callable[[Tensor], Tensor], world_size: int) -> None:
        """Have in the network the mean over all micro-batches of all ranks; every rank calls it."""
        if not self._buffers:
            return
        flat = torch.cat([total.reshape(-1) for total in self._sums])
        mean = sum_over_ranks(flat) / (self._num * world_size)
        parts = torch.split(mean, [buffer.numel() for buffer in self._buffers])
        torch._foreach_copy_(self._buffers, [part.view(b.shape) for part, b in zip(parts, self._buffers, strict=True)])
