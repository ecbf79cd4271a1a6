"""The recipe's `loss`: what is minimised."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from distcxr.recipe.section import BelowOne, Fraction, FunctionName, NonNegative, Positive, Section

_OWN_KEYS = {"focal": ("gamma", "alpha"), "asymmetric": ("gamma_neg", "gamma_pos", "clip"), "python": ("function",)}


class Loss(Section):
    """What is minimised. Whatever its name: unknown labels count nothing, and the sum over the known ones is divided by
    their number in the whole global batch (`cross_entropy`: of images with all labels known)."""

    name: Literal["bce", "focal", "asymmetric", "cross_entropy", "python"] = "bce"
    """`bce` binary cross-entropy of every finding; `focal` (Lin 2017) and `asymmetric` (Ridnik 2021) weigh easy labels
    down; `cross_entropy` takes the findings for classes that exclude each other: every image shows exactly one;
    `python` is your own `loss.function`."""
    function: FunctionName | None = None
    """Of `python`: `module:function`, which makes losses [B, C] of logits and targets (docs/own_parts.md)."""
    weights: Literal["none", "balanced"] | list[Positive] = "none"
    """Weight of a finding's positive labels (`cross_entropy`: of the class): `balanced` takes negatives / positives of
    the training split (`cross_entropy`: images / (classes x images of the class)), and 1 where one of the two is
    missing; or a number per finding."""
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
    label_smoothing: BelowOne = 0.0
    """Targets are moved this far towards one half (`cross_entropy`: towards equal probabilities)."""

    def in_use(self) -> dict[str, Any]:
        """The keys that this loss uses, with their values."""
        idle = {key for name, keys in _OWN_KEYS.items() if name != self.name for key in keys}
        return self.model_dump(mode="json", exclude=idle)

    @model_validator(mode="after")
    def _consistent(self) -> Loss:
        if self.name == "python" and self.function is None:
            raise ValueError("loss.name: python needs loss.function: module:function")
        if self.name == "python" and self.weights != "none":
            raise ValueError("loss.weights does not go with loss.name: python: weigh the labels in loss.function")
        if self.alpha is not None and self.weights != "none":
            raise ValueError("loss.alpha and loss.weights both weigh positives: give one of them")
        return self
