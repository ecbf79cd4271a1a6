"""Losses as sums over known labels.

The contract: a loss returns a SUM, never a mean. The engine divides it by the number of known labels of the
whole global batch (all-reduced, every rank and every micro-batch of the accumulation) and multiplies by the
world size, since DDP averages the ranks' gradients. A mean per rank would weigh labels by the rank they fell on:
.158 where the global mean is .061 in a measured skewed case.

Shapes: B batch, C findings.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits_BC, targets_BC, mask_BC) to the scalar sum over known labels."""


def masked_bce_sum(logits_BC: Tensor, targets_BC: Tensor, mask_BC: Tensor) -> Tensor:
    """Sum of the binary cross-entropies of the known labels.

    Args:
        logits_BC: any float type; computed in float32 at least.
        targets_BC: 0 or 1 (or between), any type; what stands at unknown labels is not looked at.
        mask_BC: any type; 0 is unknown.

    Returns:
        A scalar, float32 (float64 for float64 logits). An unknown label adds exactly 0 to it and to every
        gradient, even where its logit or target is infinite or NaN.
    """
    shapes = (logits_BC.shape, targets_BC.shape, mask_BC.shape)
    assert shapes[0] == shapes[1] == shapes[2], shapes  # broadcasting would count labels more than once
    known_BC = mask_BC != 0
    precision = torch.promote_types(logits_BC.dtype, torch.float32)
    # Selected before the loss, too: multiplying by a mask would turn an infinite loss into NaN.
    logits_BC = torch.where(known_BC, logits_BC.to(precision), 0.0)
    targets_BC = torch.where(known_BC, targets_BC.to(precision), 0.0)
    loss_BC = F.binary_cross_entropy_with_logits(logits_BC, targets_BC, reduction="none")
    return torch.where(known_BC, loss_BC, 0.0).sum()


LOSSES: dict[str, Loss] = {"bce": masked_bce_sum}
