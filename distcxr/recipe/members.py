"""Keys of the recipe's `data` about its tables: the columns of one, and the data sets of which a joint one is made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from distcxr.recipe.section import Fraction, NonNegative, Positive, Section
from distcxr.recipe.selection import SplitLists

MAX_MEMBERS = 9
"""Of a joint data set: so many fit into a patient's number."""


class Columns(Section):
    """Which columns of a label table mean what, for `data.dataset: csv` and `python`."""

    table: Path = Path("labels.csv")
    """The CSV file; relative to `data.root` unless absolute."""
    image: str = "image"
    """Image file, relative to `data.root`."""
    label: str | None = None
    """One column that names what the image shows, several names joined by `|`. Without it there is a column per
    finding: 1, 0, -1 (uncertain) or empty (unknown). Those are findings that `data.findings` or `data.where` name, and
    all others that have no other meaning and hold nothing else."""
    patient: str | None = None
    """Identifies the patient. Without it every image counts as a patient of its own, and the log warns of leaks."""
    split: str | None = None
    """`train`, `val` or `test`, for `data.split: official`."""
    age: str | None = None
    """In years."""
    sex: str | None = None
    """`M`, `F`, `Male` or `Female`; anything else is unknown."""
    view: str | None = None
    """`PA`, `AP`, `LATERAL` (`LL`, `RL`); anything else is unknown."""
    study: str | None = None
    """Identifies the study, for `data.lateral`: images of a patient that were taken together. Empty is unknown."""

    @property
    def has_studies(self) -> bool:
        """Whether lateral views can be found."""
        return self.study is not None and self.view is not None


class Member(Section):
    """A data set of `data.dataset: joint`. What it has no key for, or null, is as in `data`."""

    dataset: Literal["nih", "csv", "folders", "chexpert", "mimic", "padchest", "vindr", "rsna"]
    """As `data.dataset`."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")] | None = None
    """What its images, its figures and its part of the log are called by; null takes `dataset`."""
    root: Path | None = None
    """As `data.root`."""
    map: dict[str, str | None] = {}
    """What a finding of this data set is called in the others: `{Lung Lesion: Mass}`; null leaves the finding out.
    Several of the same name become one, which any of them shows. Names that mean the same need no entry: Pleural
    Effusion is Effusion (docs/datasets.md)."""
    weight: Positive = 1.0
    """How often one of its training images is drawn, beside those of the other members. Equal weights take every image
    once an epoch; others draw with replacement, as many as there are images."""
    splits: list[Literal["train", "val", "test"]] = ["train", "val", "test"]
    """Which of its splits take part."""
    split: Literal["official", "by_patient", "lists"] | None = None
    """As `data.split`."""
    lists: SplitLists | None = None
    """As `data.lists`."""
    ratios: tuple[NonNegative, NonNegative, NonNegative] | None = None
    """As `data.ratios`."""
    val_fraction: Fraction | None = None
    """As `data.val_fraction`."""
    columns: Columns | None = None
    """As `data.columns`."""
    patient_pattern: str | None = None
    """As `data.patient_pattern`."""
    uncertain: Literal["mask", "zero", "one"] | None = None
    """As `data.uncertain`."""

    @property
    def title(self) -> str:
        """Its `name`, or what stands in for it."""
        return self.name or self.dataset
