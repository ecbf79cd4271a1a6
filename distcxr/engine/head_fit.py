"""Linear heads on features that stay as they are: the minima of a convex loss with a penalty, by L-BFGS in float64.

Features are scaled to mean 0 and variance 1 over the images, so a penalty means the same for every network; a head that
is returned takes them as they are.

Shapes: N images, D features, C findings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distcxr.losses import LossFunction

_MOST_ITERATIONS = 1000
_GRADIENT = 1e-6  # of the penalised loss, by any weight of the scaled features: where a fit ends
_CONSTANT = 1e-6  # a feature that varies less than this share of the one that varies most is rounding
_HISTORY = 20  # pairs of steps and gradients that L-BFGS keeps


@dataclass(frozen=True)
class LinearHead:
    """A head for features as the network makes them, and how it was found.

    Attributes:
        weight_CD, bias_C: float64.
        train_loss: mean over known labels (`cross_entropy`: samples), without the penalty.
        gradient: the largest of a weight's at the end, of the scaled features.
    """

    weight_CD: Tensor
    bias_C: Tensor
    penalty: float
    train_loss: float
    iterations: int
    gradient: float

    def logits(self, features_ND: Tensor) -> Tensor:
        """Float32 [N, C]."""
        return (features_ND.double() @ self.weight_CD.T + self.bias_C).float()


def converged(head: LinearHead) -> bool:
    """Whether the fit has reached its minimum, as far as anybody can tell."""
    return head.gradient <= 10 * _GRADIENT


def fit_heads(
    features_ND: Tensor, targets_NC: Tensor, mask_NC: Tensor, loss: LossFunction, penalties: Sequence[float]
) -> Iterator[LinearHead]:
    """The minimum of loss / n + penalty / 2 x the sum of squared weights, for every penalty, the strongest first.

    n is the mean number of known labels of a finding (`cross_entropy`: of samples), so for each finding the minimum is
    that of scikit-learn's LogisticRegression with C = 1 / (n penalty) on scaled features. By L-BFGS in float64, each
    from the one before; biases are not penalised. A finding without positive or without negative known labels keeps
    weights of 0 and a bias by its frequency.

    Args:
        features_ND: float, on any device; targets and mask on the same, uint8 (mask 1 = known).
    """
    scaled_ND = features_ND.to(torch.float64, copy=True)
    std_D, mean_D = torch.std_mean(scaled_ND, dim=0, correction=0)
    std_D = torch.where(std_D > _CONSTANT * std_D.max(), std_D, 1.0)
    scaled_ND.sub_(mean_D).div_(std_D)  # the one copy: 640 MB of 78,000 images and 1,024 features
    known_C = mask_NC.double().sum(0)
    positive_C = (targets_NC.double() * mask_NC).sum(0)
    softmax = loss.spec.name == "cross_entropy"
    both_C = ((positive_C > 0) & (positive_C < known_C)) | torch.tensor(softmax, device=known_C.device)
    fitted_NC = mask_NC * both_C
    count = max(1, int(loss.count(fitted_NC)))
    num = count / (1 if softmax else max(1, int(both_C.sum())))
    bias_C = torch.log((positive_C + 0.5) / (known_C - positive_C + 0.5)).requires_grad_()
    weight_CD = torch.zeros(len(known_C), scaled_ND.shape[1], dtype=torch.float64, device=known_C.device)
    weight_CD.requires_grad_()

    def summed() -> Tensor:
        return loss(scaled_ND @ weight_CD.T + bias_C, targets_NC, fitted_NC)

    for penalty in sorted(set(penalties), reverse=True):
        optimizer = torch.optim.LBFGS(
            [weight_CD, bias_C], max_iter=_MOST_ITERATIONS, tolerance_grad=_GRADIENT, tolerance_change=1e-14,
            history_size=_HISTORY, line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure(optimizer: torch.optim.Optimizer = optimizer, penalty: float = penalty) -> Tensor:
            optimizer.zero_grad()
            total = summed() / num + penalty / 2 * weight_CD.square().sum()
            total.backward()  # type: ignore[no-untyped-call]
            return total

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        closure()
        assert weight_CD.grad is not None and bias_C.grad is not None
        gradient = float(torch.maximum(weight_CD.grad.abs().max(), bias_C.grad.abs().max()))
        with torch.no_grad():
            weight = weight_CD.detach() / std_D
            yield LinearHead(
                weight, bias_C.detach() - weight @ mean_D, penalty,
                float(summed()) / count, int(optimizer.state[weight_CD]["n_iter"]), gradient,
            )  # fmt: skip
