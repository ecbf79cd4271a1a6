"""Keys of the recipe's `data` that select images: into which split, under which conditions, how often."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ValidationInfo, field_validator, model_validator

from distcxr.recipe.section import NonNegative, PositiveInt, Section


class SplitLists(Section):
    """Text files with one image name a line; relative to `data.root` unless absolute."""

    train: Path
    """Images to train on."""
    val: Path | None = None
    """Images to validate on; without it, `data.val_fraction` of the training patients."""
    test: Path
    """Images to test on."""


class Where(Section):
    """Which images take part, in all splits. Conditions are joined by "and"; what is unknown meets none. Patients stay
    in the split they are in without them."""

    findings: list[str] | None = None
    """Only images that show at least one of these. Any label of the label file, learnt (`data.findings`) or not."""
    without: list[str] | None = None
    """Only images that are known to show none of these, for example [No Finding]."""
    view: list[Literal["PA", "AP", "LATERAL"]] | None = None
    """Only these views."""
    sex: Literal["M", "F"] | None = None
    """Only patients of this sex."""
    age: tuple[NonNegative, NonNegative] | None = None
    """Only patients of this age in years, both ends included."""

    @field_validator("findings", "without", "view")
    @classmethod
    def _some(cls, names: list[str] | None, info: ValidationInfo) -> list[str] | None:
        if names is not None and not names:
            raise ValueError(f"data.where.{info.field_name} is an empty list: name at least one, or leave the key out")
        return names


class Sampling(Section):
    """Which training images an epoch has, and how often."""

    cap_per_label: PositiveInt | None = None
    """Training images that may show one finding; those that show none count as a finding, too. A finding with no more
    than this keeps every image. The others are thinned at random, by `seed`, the rarest first; one of them is above the
    cap only by images that a finding with no more must keep."""
    redraw: Literal["stage", "epoch"] = "stage"
    """When the cap chooses its images anew: once for every stage, or for every epoch. Epochs keep the length of the
    first."""
    balance: Literal["none", "class", "sqrt"] = "none"
    """`none` takes every image once an epoch. `class` samples with replacement, as many as there are images: a finding
    (or none) first, each equally often, then any image that shows it; `sqrt` takes findings in proportion to the square
    root of how many images show them. Findings that come along with others are met more often. After the cap."""

    @model_validator(mode="after")
    def _has_what_to_draw(self) -> Sampling:
        if self.redraw == "epoch" and (self.cap_per_label is None or self.balance != "none"):
            raise ValueError("redraw=epoch is about cap_per_label, and takes balance=none")
        return self
