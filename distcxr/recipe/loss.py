"""The recipe's `loss`: what is minimised."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from distcxr.recipe.section import BelowOne, Fraction, FunctionName, NonNegative, Positive, Section

_OWN_KEYS = {
    "focal": ("gamma", "alpha"), "asymmetric": ("gamma_neg", "gamma_pos", "clip"), "python": ("function",),
    "auc_margin": ("margin",), "partial_auc": ("margin", "beta"), "combined": ("parts",),
}  # fmt: skip
_Name = Literal["bce", "focal", "asymmetric", "cross_entropy", "auc_margin", "partial_auc", "combined", "python"]
_OF_PAIRS = ("auc_margin", "partial_auc")


class LossKeys(Section):
    """Keys of a loss, alone or as a part of another."""

    name: _Name = "bce"
    """`bce` binary cross-entropy of every finding; `focal` (Lin 2017) and `asymmetric` (Ridnik 2021) weigh easy labels
    down; `cross_entropy` takes the findings for classes that exclude each other: every image shows exactly one;
    `auc_margin` (Yuan 2021) and `partial_auc` (Zhu 2022) rank positives above negatives, and their scores are no
    probabilities; `combined` is the sum of `loss.parts`; `python` is your own `loss.function`. docs/losses.md."""
    weights: Literal["none", "balanced", "prior"] | list[Positive] = "none"
    """Weight of a finding's positive labels (`cross_entropy`: of the class): `balanced` takes negatives / positives of
    the training split (`cross_entropy`: images / (classes x images of the class)), and 1 where one of the two is
    missing; or a number per finding. Of `auc_margin` and `partial_auc` it is the finding's weight: `none` weighs all
    alike that have a pair in the batch, `balanced` makes up for batches without one, `prior` is p (1 - p) with p the
    share of positives in the training split, as AUC margin was published (docs/losses.md)."""
    gamma: NonNegative = 2.0
    """Of `focal`: how strongly easy labels are weighed down."""
    alpha: Fraction | None = None
    """Of `focal`: weight of positives, 1 - alpha of negatives; null weighs both with 1."""
    gamma_neg: NonNegative = 4.0
    """Of `asymmetric`: gamma of negatives."""
    gamma_pos: NonNegative = 0.0
    """Of `asymmetric`: gamma of positives."""
    clip: BelowOne = 0.05
    """Of `asymmetric`: probabilities of negatives are shifted down by this, so the easiest count nothing."""
    margin: Positive = 1.0
    """Of `auc_margin` and `partial_auc`: by how much a positive's probability should exceed a negative's."""
    beta: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Of `partial_auc`: the highest false positive rate that counts; 1 is the whole area."""
    label_smoothing: BelowOne = 0.0
    """Targets are moved this far towards one half (`cross_entropy`: towards equal probabilities)."""

    @property
    def of_pairs(self) -> bool:
        """Whether it compares images with each other, so that it needs the whole global batch at once."""
        return self.name in _OF_PAIRS

    def in_use(self) -> dict[str, Any]:
        """The keys that this loss uses, with their values."""
        idle = {key for keys in _OWN_KEYS.values() for key in keys} - set(_OWN_KEYS.get(self.name, ()))
        return self.model_dump(mode="json", exclude=idle)

    @model_validator(mode="after")
    def _consistent(self) -> LossKeys:
        if self.alpha is not None and self.weights != "none":
            raise ValueError("loss.alpha and loss.weights both weigh positives: give one of them")
        if self.weights == "prior" and not self.of_pairs:
            raise ValueError(f"loss.weights=prior is of {' and '.join(_OF_PAIRS)}, not of {self.name}: use balanced")
        if self.label_smoothing and self.name in _OF_PAIRS:
            raise ValueError(
                f"loss.label_smoothing={self.label_smoothing:g} does not go with loss.name={self.name}: a pair is a "
                "label of 1 and one of 0. Set loss.label_smoothing=0"
            )
        return self


class LossPart(LossKeys):
    """A part of `combined`."""

    name: Literal["bce", "focal", "asymmetric", "auc_margin", "partial_auc"] = "bce"
    """As `loss.name`, without those that can't be added to others."""
    share: Positive = 1.0
    """What its mean is multiplied by."""


class Loss(LossKeys):
    """What is minimised. Whatever its name: unknown labels count nothing. Of labels, the sum over the known ones is
    divided by their number in the whole global batch (`cross_entropy`: of images with all labels known); of pairs, they
    are those of the whole global batch."""

    function: FunctionName | None = None
    """Of `python`: `module:function`, which makes losses [B, C] of logits and targets (docs/own_parts.md)."""
    parts: list[LossPart] = []
    """Of `combined`: losses with their own keys, such as `{name: bce, weights: balanced, share: 0.5}`."""

    @property
    def of_pairs(self) -> bool:
        """Whether it, or a part of it, compares images with each other."""
        return self.name in _OF_PAIRS or (self.name == "combined" and any(part.of_pairs for part in self.parts))

    def in_use(self) -> dict[str, Any]:
        """The keys that this loss uses, with their values."""
        if self.name != "combined":
            return super().in_use()
        return {"name": self.name, "parts": [part.in_use() for part in self.parts]}

    @model_validator(mode="after")
    def _whole(self) -> Loss:
        if self.name == "python" and self.function is None:
            raise ValueError("loss.name: python needs loss.function: module:function")
        if self.name == "python" and self.weights != "none":
            raise ValueError("loss.weights does not go with loss.name: python: weigh the labels in loss.function")
        if self.name == "combined" and not self.parts:
            raise ValueError("loss.name=combined needs loss.parts: [{name: bce}, {name: asymmetric}], for example")
        if self.name == "combined" and (self.weights != "none" or self.label_smoothing):
            raise ValueError(
                "loss.weights and loss.label_smoothing do not go with loss.name=combined: each of loss.parts has its "
                "own. Set loss.weights=none loss.label_smoothing=0"
            )
        return self


def check_whole_labels(loss: Loss, loss_key: str, fractions_key: str) -> None:
    """Raise ValueError for a loss of pairs where something makes labels between 0 and 1, such as mixup.

    Args:
        loss_key: the loss's name in the recipe, such as `loss` or `train.stages.1.loss`.
        fractions_key: the key that makes such labels.
    """
    if loss.of_pairs:
        raise ValueError(
            f"{fractions_key} does not go with {loss_key}.name={loss.name}: a pair is a label of 1 and one of 0, and "
            f"it makes labels in between. Leave out {fractions_key}, or use bce or asymmetric"
        )
