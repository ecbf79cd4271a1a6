"""Losses as sums over known labels.

The contract: a loss returns a SUM, never a mean. The engine divides it by the count of the whole global batch
(all-reduced, every rank and every micro-batch of the accumulation) and multiplies by the world size, since DDP
averages the ranks' gradients. A mean per rank would weigh labels by the rank they fell on: .158 where the global mean
is .061 in a measured skewed case.

    model ──► logits_BC ──► LossFunction ──► sum          count(mask_BC): what the sum is divided by
                  └──────► binary_logits ──► metrics, thresholds, files: sigmoid of them is the probability

Shapes: B batch, C findings, N images of a split.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from distcxr.own_parts import broken, part
from distcxr.recipe.loss import Loss

logger = logging.getLogger(__name__)

_NUM_NAMED = 5


@dataclass(frozen=True)
class LossFunction:
    """The recipe's `loss`, ready to be called.

    With p = sigmoid(logit), t a target after smoothing, w the finding's weight, summed over known labels:

    - `bce`: -w t log p - (1 - t) log(1 - p).
    - `focal` (Lin et al., ICCV 2017): -a w t (1 - p)^gamma log p - (1 - a) (1 - t) p^gamma log(1 - p), where a is
      alpha; without alpha both are weighed with 1.
    - `asymmetric` (Ridnik et al., ICCV 2021): -w t (1 - p)^gamma_pos log p - (1 - t) q^gamma_neg log(1 - q), where
      q = max(p - clip, 0). The gradient is that of this formula, so it goes through the focusing weights (the authors'
      code holds them constant by default).
    - `cross_entropy`: -sum over classes of w t log p with p the softmax; of samples with all labels known.
    - `python`: what the user's function makes of logits and t; at unknown labels it sees 0 and 0.

    Attributes:
        spec: the recipe's keys.
        weights_C: float32, of positive labels (`cross_entropy`: of classes); None weighs all with 1.
    """

    spec: Loss
    weights_C: Tensor | None = None

    def __call__(self, logits_BC: Tensor, targets_BC: Tensor, mask_BC: Tensor) -> Tensor:
        """Sum of the losses of what is known.

        Args:
            logits_BC: any float type; computed in float32 at least.
            targets_BC: 0 or 1 (or between), any type; values at unknown labels have no effect.
            mask_BC: any type; 0 is unknown.

        Returns a scalar, float32 (float64 for float64 logits). An unknown label adds exactly 0 to it and to every
        gradient, even where its logit or target is infinite or NaN.
        """
        shapes = (logits_BC.shape, targets_BC.shape, mask_BC.shape)
        assert shapes[0] == shapes[1] == shapes[2], shapes  # broadcasting would count labels more than once
        known_BC = mask_BC != 0
        if self.spec.name == "cross_entropy":
            known_BC = known_BC.all(dim=1, keepdim=True).expand_as(known_BC)
        precision = torch.promote_types(logits_BC.dtype, torch.float32)
        # Selected before the loss, too: multiplying by a mask would turn an infinite loss into NaN.
        logits_BC = torch.where(known_BC, logits_BC.to(precision), 0.0)
        targets_BC = torch.where(known_BC, targets_BC.to(precision), 0.0)
        if smoothing := self.spec.label_smoothing:
            middle = 1 / logits_BC.shape[1] if self.spec.name == "cross_entropy" else 0.5
            targets_BC = targets_BC * (1 - smoothing) + smoothing * middle
        return torch.where(known_BC, self._each(logits_BC, targets_BC), 0.0).sum()

    def count(self, mask_BC: Tensor) -> Tensor:
        """What the sum is divided by after it was summed over all ranks: known labels (`cross_entropy`: samples with
        all labels known), an int64 scalar."""
        return ((mask_BC != 0).all(dim=1) if self.spec.name == "cross_entropy" else mask_BC != 0).sum()

    def to(self, device: torch.device) -> LossFunction:
        """The same with its weights on a device."""
        return self if self.weights_C is None else replace(self, weights_C=self.weights_C.to(device))

    def _each(self, logits_BC: Tensor, targets_BC: Tensor) -> Tensor:
        """Losses [B, C] of finite logits and smoothed targets."""
        spec, weights_C = self.spec, self.weights_C if self.weights_C is None else self.weights_C.to(logits_BC.dtype)
        if spec.name == "bce":
            return F.binary_cross_entropy_with_logits(logits_BC, targets_BC, pos_weight=weights_C, reduction="none")
        if spec.name == "python":
            assert spec.function is not None
            each_BC: Tensor = part(spec.function)(logits_BC, targets_BC)
            return each_BC
        if spec.name == "cross_entropy":
            each_BC = -targets_BC * F.log_softmax(logits_BC, dim=1)
            return each_BC if weights_C is None else each_BC * weights_C
        if spec.name == "focal":
            positive_BC, negative_BC = _focused(logits_BC, spec.gamma), _focused(-logits_BC, spec.gamma)
            if spec.alpha is not None:
                positive_BC, negative_BC = spec.alpha * positive_BC, (1 - spec.alpha) * negative_BC
        else:
            assert spec.name == "asymmetric", spec.name
            positive_BC = _focused(logits_BC, spec.gamma_pos)
            negative_BC = _shifted(logits_BC, spec.gamma_neg, spec.clip)
        if weights_C is not None:
            positive_BC = positive_BC * weights_C
        return targets_BC * positive_BC + (1 - targets_BC) * negative_BC


def build_loss(
    spec: Loss, targets_NC: NDArray[np.uint8], mask_NC: NDArray[np.uint8], findings: Sequence[str]
) -> LossFunction:
    """The recipe's loss, with weights from the training split's labels where it asks for them.

    A finding without positive or without negative labels there can't be balanced: its weight is 1, with a warning.
    Raises ValueError: as `check_weights`.
    """
    check_weights(spec, findings)
    if spec.weights == "none":
        return LossFunction(spec)
    if spec.weights == "balanced":
        return LossFunction(spec, _balanced(spec.name, findings, targets_NC, mask_NC))
    return LossFunction(spec, torch.tensor(spec.weights, dtype=torch.float32))


def check_weights(spec: Loss, findings: Sequence[str]) -> None:
    """Raise ValueError where the recipe's weights are not one for each finding: before a stage comes to need them."""
    if not isinstance(spec.weights, str) and len(spec.weights) != len(findings):
        raise ValueError(
            f"loss.weights holds {len(spec.weights)} numbers, but there are {len(findings)} findings "
            f"({', '.join(findings)}): give one each, in this order"
        )


def check_own_loss(key: str, name: str, num_classes: int) -> None:
    """Try a user's function on two images.

    Raises PartError: it returns other than a finite loss for each label, or that of an image depends on the other: it
    would depend on how images are shared out among ranks.
    """
    logits_BC = torch.linspace(-2, 2, 2 * num_classes).view(2, num_classes).requires_grad_()
    targets_BC = torch.arange(2 * num_classes).remainder(2).float().view(2, num_classes)
    with torch.enable_grad():
        each_BC = part(name)(logits_BC.clone(), targets_BC)
    if not isinstance(each_BC, Tensor):
        raise broken(key, name, f"returned {type(each_BC).__name__}")
    if each_BC.shape != logits_BC.shape or not each_BC.is_floating_point():
        raise broken(key, name, f"returned {each_BC.dtype} {list(each_BC.shape)} for logits {list(logits_BC.shape)}")
    if not each_BC.requires_grad:
        raise broken(key, name, "returned losses without a gradient: compute them of the logits, in torch")
    if not bool(each_BC.isfinite().all()):
        raise broken(key, name, "returned losses that are not finite for logits of -2 to 2")
    for image, other in ((0, 1), (1, 0)):
        (gradient_BC,) = torch.autograd.grad(each_BC[image].sum(), logits_BC, retain_graph=True)
        if bool(gradient_BC[other].any()):
            raise broken(key, name, "returned losses of an image that depend on other images of the batch")


def check_exclusive(
    split: str, findings: Sequence[str], targets_NC: NDArray[np.uint8], mask_NC: NDArray[np.uint8], files: Sequence[str]
) -> None:
    """Refuse a split with labels that `cross_entropy` can't learn or score, and name some of its N `files`.

    Raises ValueError: one finding alone, or images with all labels known that show none of the findings or several.
    """
    if len(findings) < 2:
        raise ValueError(f"loss.name=cross_entropy needs two findings or more, not {findings[0]} alone: use bce")
    whole_N = (mask_NC != 0).all(axis=1)
    positives_N = (targets_NC != 0).sum(axis=1)
    wrong = np.flatnonzero(whole_N & (positives_N != 1))
    if len(wrong):
        named = [files[row] for row in wrong[:_NUM_NAMED].tolist()]
        raise ValueError(
            f"loss.name=cross_entropy takes findings for classes that exclude each other, but of {len(targets_NC):,} "
            f"images of {split} {np.count_nonzero(positives_N[wrong] == 0):,} show none of {', '.join(findings)} and "
            f"{np.count_nonzero(positives_N[wrong] > 1):,} show several, such as {', '.join(named)}: leave them out "
            "with data.where, or use bce"
        )


def binary_logits(name: str, logits_BC: Tensor) -> Tensor:
    """Logits such that their sigmoid is the predicted probability; float32 at least for `cross_entropy`.

    With the recipe's `loss.name` `cross_entropy`, logits are of a softmax over the findings, and the result is
    log p - log(1 - p) of each; any other's are returned as they are.
    """
    if name != "cross_entropy":
        return logits_BC
    num_classes = logits_BC.shape[1]
    logits_BC = logits_BC.to(torch.promote_types(logits_BC.dtype, torch.float32))
    # p / (1 - p) is exp(logit) over the sum of the other classes' exp: no 1 - p that would round to 0.
    own_CC = torch.eye(num_classes, dtype=torch.bool, device=logits_BC.device)
    others_BCC = logits_BC[:, None, :].masked_fill(own_CC, -torch.inf)
    return logits_BC - torch.logsumexp(others_BCC, dim=2)


def loss_logits(name: str, binary_BC: Tensor) -> Tensor:
    """From `binary_logits` back to logits that the loss takes: for `cross_entropy` log p, any other's as they are."""
    return F.logsigmoid(binary_BC) if name == "cross_entropy" else binary_BC


def _focused(logits_BC: Tensor, gamma: float) -> Tensor:
    """-(1 - p)^gamma log p. The power as exp of a log: at p = 1 the gradient of a power below 1 would be infinite."""
    return torch.exp(gamma * F.logsigmoid(-logits_BC)) * F.softplus(-logits_BC)


def _shifted(logits_BC: Tensor, gamma: float, clip: float) -> Tensor:
    """-q^gamma log(1 - q) with q = max(p - clip, 0)."""
    if clip == 0:
        return _focused(-logits_BC, gamma)
    above_BC = torch.sigmoid(logits_BC) - clip
    counts_BC = above_BC > 0
    shifted_BC = torch.where(counts_BC, above_BC, 0.5)  # at 0 the gradient of a power below 1 is infinite
    return torch.where(counts_BC, -(shifted_BC**gamma) * torch.log1p(-shifted_BC), 0.0)


def _balanced(name: str, findings: Sequence[str], targets_NC: NDArray[np.uint8], mask_NC: NDArray[np.uint8]) -> Tensor:
    known_NC = mask_NC != 0
    if name == "cross_entropy":
        known_NC = known_NC & known_NC.all(axis=1, keepdims=True)
    num_C, positives_C = known_NC.sum(axis=0), (known_NC & (targets_NC != 0)).sum(axis=0)
    fixed_C = (positives_C == 0) | (positives_C == num_C)
    others_C = num_C - positives_C if name != "cross_entropy" else num_C / len(findings)
    weights_C = np.where(fixed_C, 1.0, others_C / np.maximum(positives_C, 1))
    for column in np.flatnonzero(fixed_C).tolist():
        lacking = "positive" if positives_C[column] == 0 else "negative"
        logger.warning(f"loss.weights=balanced: {findings[column]} has no {lacking} training label, its weight is 1")
    shown = ", ".join(f"{finding} {weight:.3g}" for finding, weight in zip(findings, weights_C, strict=True))
    logger.info(f"loss weights: {shown}")
    return torch.from_numpy(weights_C.astype(np.float32))
