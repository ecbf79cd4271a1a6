"""Losses as sums over known labels.

The contract: a loss returns a SUM, never a mean. The engine divides it by the count of the whole global batch
(all-reduced, every rank and every micro-batch of the accumulation) and multiplies by the world size, since DDP
averages the ranks' gradients. A mean per rank would weigh labels by the rank they fell on: .158 where the global mean
is .061 in a measured skewed case.

    model ──► logits_BC ──► LossFunction ──► sum          count(mask_BC): what the sum is divided by
                  └──────► binary_logits ──► metrics, thresholds, files: sigmoid of them is the probability

A loss of pairs (`LossFunction.of_pairs`) can't be summed over parts of a batch: it is called with the whole global
batch (`engine.whole_batch`) and returns its value times the count, so that what comes after is the same.

Shapes: B batch, C findings.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from distcxr.own_parts import part
from distcxr.pair_losses import auc_margin, partial_auc, share_of_pairs
from distcxr.recipe.loss import Loss, LossKeys


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
    - `auc_margin`, `partial_auc`: the number of known labels times the mean over findings of w times what `pair_losses`
      makes of p, of the images that it is called with; a target between 0 and 1 is in no pair.
    - `combined`: the sum of its parts, each times its share.

    Attributes:
        spec: the recipe's keys.
        weights_C: float32, of positive labels (`cross_entropy`: of classes; of pairs: of findings); None weighs all
            with 1.
        parts: of `combined`, each with its share.
    """

    spec: LossKeys
    weights_C: Tensor | None = None
    parts: tuple[tuple[float, LossFunction], ...] = ()

    @property
    def of_pairs(self) -> bool:
        """Whether it has to be called with the whole global batch."""
        return self.spec.of_pairs

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
        if self.parts:
            return torch.stack([share * one(logits_BC, targets_BC, mask_BC) for share, one in self.parts]).sum()
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
        if self.of_pairs:
            return (self.count(mask_BC) * self._of_findings(logits_BC, targets_BC, known_BC).mean()).to(precision)
        return torch.where(known_BC, self._each(logits_BC, targets_BC), 0.0).sum()

    def count(self, mask_BC: Tensor) -> Tensor:
        """What the sum is divided by after it was summed over all ranks: known labels (`cross_entropy`: samples with
        all labels known), an int64 scalar."""
        return ((mask_BC != 0).all(dim=1) if self.spec.name == "cross_entropy" else mask_BC != 0).sum()

    def to(self, device: torch.device) -> LossFunction:
        """The same with its weights on a device."""
        weights_C = None if self.weights_C is None else self.weights_C.to(device)
        return replace(self, weights_C=weights_C, parts=tuple((share, one.to(device)) for share, one in self.parts))

    def _of_findings(self, logits_BC: Tensor, targets_BC: Tensor, known_BC: Tensor) -> Tensor:
        """Weighted losses of pairs, float64 [C]."""
        spec, scores_BC = self.spec, torch.sigmoid(logits_BC.double())
        positive_BC, negative_BC = known_BC & (targets_BC == 1), known_BC & (targets_BC == 0)
        if spec.name == "auc_margin":
            each_C = auc_margin(scores_BC, positive_BC, negative_BC, spec.margin)
        else:
            each_C = partial_auc(scores_BC, positive_BC, negative_BC, spec.margin, spec.beta)
        if spec.weights == "balanced":
            each_C = each_C * share_of_pairs(positive_BC, negative_BC)
        if self.weights_C is not None:
            each_C = each_C * self.weights_C
        return each_C + 0.0 * logits_BC.double().sum()  # what is not finite has to be seen, in a pair or not

    def _each(self, logits_BC: Tensor, targets_BC: Tensor) -> Tensor:
        """Losses [B, C] of finite logits and smoothed targets."""
        spec, weights_C = self.spec, self.weights_C if self.weights_C is None else self.weights_C.to(logits_BC.dtype)
        if spec.name == "bce":
            return F.binary_cross_entropy_with_logits(logits_BC, targets_BC, pos_weight=weights_C, reduction="none")
        if spec.name == "python":
            assert isinstance(spec, Loss) and spec.function is not None
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
