"""Losses as their papers have them, label by label or pair by pair in float64; nothing is shared with the product."""

from __future__ import annotations

import torch
from torch import Tensor

from distcxr.recipe.loss import Loss


def min_max(scores: Tensor, positive: Tensor, margin: float, a: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
    """What Yuan et al. (2021) minimise over a and b and maximise over alpha, divided by p (1 - p); of N images."""
    p = positive.double().mean()
    total = torch.zeros((), dtype=torch.float64)
    for score, is_positive in zip(scores, positive.tolist(), strict=True):
        if is_positive:
            total = total + (1 - p) * (score - a) ** 2 - 2 * alpha * (1 - p) * score
        else:
            total = total + p * (score - b) ** 2 + 2 * alpha * p * score
    mean = total / len(scores) + 2 * alpha * p * (1 - p) * margin - p * (1 - p) * alpha**2
    return mean / (p * (1 - p))


def auc_margin(scores: Tensor, positive: Tensor, margin: float) -> Tensor:
    """Its value where a, b and alpha are solved."""
    a, b = scores[positive].mean(), scores[~positive].mean()
    return min_max(scores, positive, margin, a, b, torch.clamp(margin + b - a, min=0))


def partial_auc(scores: Tensor, positive: Tensor, margin: float, beta: float) -> Tensor:
    """Zhu et al. (2022), the CVaR estimator: of every positive the least over its dual variable, which is a loss."""
    negatives, total = scores[~positive], torch.zeros((), dtype=torch.float64)
    for score in scores[positive]:
        losses = torch.clamp(margin - (score - negatives), min=0) ** 2
        values = [
            dual + torch.clamp(losses - dual, min=0).sum() / (beta * len(negatives))
            for dual in (*losses, torch.zeros(()))
        ]
        total = total + values[int(torch.stack(values).argmin())]
    return total / positive.sum()


def of_pairs(spec: Loss, logits_BC: Tensor, targets_BC: Tensor, mask_BC: Tensor) -> Tensor:
    """The mean over all C findings, each times its weight; 0 of one without a pair."""
    scores_BC, each = torch.sigmoid(logits_BC.double()), []
    weights = [1.0] * logits_BC.shape[1] if isinstance(spec.weights, str) else spec.weights
    for column, weight in enumerate(weights):
        known = mask_BC[:, column] != 0
        scores, positive = scores_BC[known, column], targets_BC[known, column] == 1
        if not positive.any() or positive.all():
            continue
        if spec.name == "auc_margin":
            each.append(weight * auc_margin(scores, positive, spec.margin))
        else:
            each.append(weight * partial_auc(scores, positive, spec.margin, spec.beta))
    return torch.stack(each).sum() / len(weights)


def of_labels(spec: Loss, logits_BC: Tensor, targets_BC: Tensor, mask_BC: Tensor) -> Tensor:
    """The sum over known labels by the formulas of the papers as they stand there, label by label."""
    logits_BC, targets_BC, num = logits_BC.double(), targets_BC.double(), logits_BC.shape[1]
    total = torch.zeros((), dtype=torch.float64)
    weights = [1.0] * num if isinstance(spec.weights, str) else spec.weights
    for row in range(len(logits_BC)):
        if spec.name == "cross_entropy":
            if mask_BC[row].all():
                probs = logits_BC[row].exp() / logits_BC[row].exp().sum()
                for column in range(num):
                    t = targets_BC[row, column] * (1 - spec.label_smoothing) + spec.label_smoothing / num
                    total = total - weights[column] * t * probs[column].log()
            continue
        for column in range(num):
            if not mask_BC[row, column]:
                continue
            p = 1 / (1 + (-logits_BC[row, column]).exp())
            t = targets_BC[row, column] * (1 - spec.label_smoothing) + spec.label_smoothing / 2
            if spec.name == "bce":
                positive, negative = -p.log(), -(1 - p).log()
            elif spec.name == "focal":
                positive, negative = -((1 - p) ** spec.gamma) * p.log(), -(p**spec.gamma) * (1 - p).log()
                if spec.alpha is not None:
                    positive, negative = spec.alpha * positive, (1 - spec.alpha) * negative
            else:
                shifted = torch.clamp(p - spec.clip, min=1e-300)
                positive = -((1 - p) ** spec.gamma_pos) * p.log()
                negative = -(shifted**spec.gamma_neg) * (1 - shifted).log()
            total = total + t * weights[column] * positive + (1 - t) * negative
    return total
