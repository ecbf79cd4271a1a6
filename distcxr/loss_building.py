"""The recipe's loss with what it needs of the training labels, and what it refuses of them.

Shapes: B batch, C findings, N images of a split.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distcxr.losses import LossFunction
from distcxr.own_parts import broken, part
from distcxr.recipe.loss import Loss, LossKeys

logger = logging.getLogger(__name__)

_NUM_NAMED = 5


def build_loss(
    spec: LossKeys, targets_NC: NDArray[np.uint8], mask_NC: NDArray[np.uint8], findings: Sequence[str]
) -> LossFunction:
    """The recipe's loss, with weights from the training split's labels where it asks for them.

    A finding without positive or without negative labels there can't be balanced: its weight is 1, with a warning. Nor
    has it pairs: a loss of pairs leaves it out, with a warning.
    Raises ValueError: as `check_weights`, or none of the findings has a pair.
    """
    check_weights(spec, findings)
    if isinstance(spec, Loss) and spec.name == "combined":
        parts = ((one.share, build_loss(one, targets_NC, mask_NC, findings)) for one in spec.parts)
        return LossFunction(spec, parts=tuple(parts))
    prior_C = _pair_prior(spec.name, findings, targets_NC, mask_NC) if spec.of_pairs else None
    if spec.weights == "none":
        return LossFunction(spec)
    if isinstance(spec.weights, str):
        if prior_C is None:
            return LossFunction(spec, _balanced(spec.name, findings, targets_NC, mask_NC))
        if spec.weights == "balanced":
            prior_C = np.divide(1, prior_C, out=np.zeros_like(prior_C), where=prior_C > 0)
        return LossFunction(spec, torch.from_numpy(prior_C.astype(np.float32)))
    return LossFunction(spec, torch.tensor(spec.weights, dtype=torch.float32))


def check_weights(spec: LossKeys, findings: Sequence[str], key: str = "loss") -> None:
    """Raise ValueError where the recipe's weights are not one for each finding: before a stage comes to need them."""
    for number, one in enumerate(spec.parts if isinstance(spec, Loss) and spec.name == "combined" else []):
        check_weights(one, findings, f"{key}.parts.{number}")
    if not isinstance(spec.weights, str) and len(spec.weights) != len(findings):
        raise ValueError(
            f"{key}.weights holds {len(spec.weights)} numbers, but there are {len(findings)} findings "
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


def _pair_prior(
    name: str, findings: Sequence[str], targets_NC: NDArray[np.uint8], mask_NC: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """p (1 - p) with p the share of positives among a finding's known labels, float64 [C]."""
    num_C, positives_C = (mask_NC != 0).sum(axis=0), ((mask_NC != 0) & (targets_NC != 0)).sum(axis=0)
    lacking = {
        finding: "positive" if positives == 0 else "negative"
        for finding, num, positives in zip(findings, num_C, positives_C, strict=True)
        if positives in (0, num)
    }
    if len(lacking) == len(findings):
        raise ValueError(
            f"loss.name={name} ranks positives above negatives, but none of {', '.join(findings)} has both among the "
            "training labels: use bce, or another split"
        )
    for finding, which in lacking.items():
        logger.warning(f"loss.name={name}: {finding} has no {which} training label, so no pairs: it is left out")
    share_C: NDArray[np.float64] = positives_C / np.maximum(num_C, 1)
    prior_C: NDArray[np.float64] = share_C * (1 - share_C)
    return prior_C


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
