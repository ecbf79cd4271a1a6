"""Losses over pairs of a positive and a negative image, finding by finding: AUC margin and one-way partial AUC.

An area under the ROC curve is a share of pairs that are in the right order, so a batch has to be seen whole: a mean
over the ranks' own pairs would be another loss on any other number of ranks. `losses` gives them the scores.

Scores s are probabilities, float64: differences of sums of squares then leave float32's gradients exact, and the
tensors are small. A finding without a pair in the batch has a loss of 0 and no gradient. No call waits for the device.

Shapes: B images, C findings.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def auc_margin(scores_BC: Tensor, positive_BC: Tensor, negative_BC: Tensor, margin: float) -> Tensor:
    """The AUC margin loss, float64 [C]: var(s | positive) + var(s | negative) + max(0, m + b - a)^2, with a the mean
    score of positives, b of negatives, and the variances divided by the number of images.

    Yuan, Yan, Sonka, Yang, "Large-scale robust deep AUC maximization", ICCV 2021, minimise over the weights, a and b,
    and maximise over alpha >= 0, the mean over images of

        (1 - p) (s - a)^2 [positive] + p (s - b)^2 [negative]
        + 2 alpha (p (1 - p) m + p s [negative] - (1 - p) s [positive]) - p (1 - p) alpha^2

    with p the share of positives. For given weights the other three are solved: a and b are the means, alpha is
    max(0, m + b - a), and what is left is p (1 - p) times the above. The authors' optimiser (PESG, in LibAUC) follows
    a, b and alpha with gradient steps at the network's learning rate, so that one image at a time would do. A batch has
    the means at hand, so here they are exact: nothing to tune, average, save or share among ranks, and any optimiser
    will do. The price: while a - b < m (with m = 1 until a finding is separated wholly) it is the mean over the batch's
    pairs of (m - s_positive + s_negative)^2, which is on average that of all images; beyond, the batch's means stand in
    for those of all images, and with few positives that is noisy.

    Args:
        positive_BC, negative_BC: bool; neither where the label is unknown.
    """
    num_positive_C, num_negative_C = _count(positive_BC), _count(negative_BC)
    a_C = _sum(scores_BC, positive_BC) / num_positive_C.clamp(min=1)
    b_C = _sum(scores_BC, negative_BC) / num_negative_C.clamp(min=1)
    spread_C = _sum((scores_BC - a_C) ** 2, positive_BC) / num_positive_C.clamp(min=1)
    spread_C = spread_C + _sum((scores_BC - b_C) ** 2, negative_BC) / num_negative_C.clamp(min=1)
    each_C = spread_C + F.relu(margin + b_C - a_C) ** 2
    return torch.where((num_positive_C > 0) & (num_negative_C > 0), each_C, 0.0)


def partial_auc(
    scores_BC: Tensor, positive_BC: Tensor, negative_BC: Tensor, margin: float, beta: float
) -> Tensor:  # fmt: skip
    """The one-way partial AUC loss for false positive rates of 0 to beta, float64 [C]: the mean, over positives and the
    share beta of negatives with the highest scores, of max(0, m - s_positive + s_negative)^2.

    Zhu, Li, Wang, Wu, Yang, "When AUC meets DRO", ICML 2022: for each positive i the minimum over t_i of t_i + the sum
    over negatives j of max(0, loss_ij - t_i) / (beta n), their CVaR estimator, which is exact; the other one, by KL
    divergence, has no beta. Their algorithm (SOPA) keeps a t_i for each positive image of the training split and moves
    it by gradient steps; the minimum over a batch is the mean of its beta n largest losses, which for every positive
    are those of the same negatives. Of a beta n that is no whole number the last negative counts in part, and the
    highest always counts. With beta 1 it is the squared hinge over all pairs.

    It needs time B log B and memory B: sums over sorted scores stand in for the table of all pairs, which of the
    validation split would have gigabytes.
    """
    scores, num_images = scores_BC.T.contiguous(), len(scores_BC)
    num_positive_C, num_negative_C = _count(positive_BC), _count(negative_BC)
    # Sorted without a gradient, which comes through `gather`: ties are in the order of the global batch.
    ranked = torch.where(negative_BC.T.contiguous(), -scores.detach(), torch.inf).sort(dim=1, stable=True)
    top = beta * num_negative_C[:, None]
    weight = (top - torch.arange(num_images, device=scores.device)).clamp(0, 1) / top.clamp(min=beta)
    highest = torch.where(weight > 0, scores.gather(1, ranked.indices), 0.0)
    # Of each positive: the negatives above its s - m, their weights' sum, and the sums of s and s^2 by these weights.
    limit = scores - margin
    num_above = torch.searchsorted(ranked.values, -limit.detach()).expand(3, -1, -1)
    powers = torch.stack([weight, weight * highest, weight * highest**2])
    sums = F.pad(powers.cumsum(dim=2), (1, 0)).gather(2, num_above)
    each = sums[2] - 2 * limit * sums[1] + limit**2 * sums[0]
    each_C = _sum(each.T, positive_BC) / num_positive_C.clamp(min=1)
    return torch.where((num_positive_C > 0) & (num_negative_C > 0), each_C, 0.0)


def share_of_pairs(positive_BC: Tensor, negative_BC: Tensor) -> Tensor:
    """The pairs of a positive and a negative among all pairs of known labels, float64 [C]: p (1 - p) on average."""
    num_positive_C, num_negative_C = _count(positive_BC), _count(negative_BC)
    num_C = num_positive_C + num_negative_C
    return num_positive_C * num_negative_C / (num_C * (num_C - 1)).clamp(min=1)


def _count(where_BC: Tensor) -> Tensor:
    return where_BC.sum(dim=0).double()


def _sum(values_BC: Tensor, where_BC: Tensor) -> Tensor:
    return torch.where(where_BC, values_BC, 0.0).sum(dim=0)
