"""The recipe's `data`: which images, which labels, how they are split and sampled, and how they are read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from distcxr.recipe.members import MAX_MEMBERS, Columns, Member
from distcxr.recipe.section import Fraction, FunctionName, NonNegative, Positive, PositiveInt, Section
from distcxr.recipe.selection import Sampling, SplitLists, Where


class Cache(Section):
    """The decoded cache: what `distcxr cache RECIPE` writes and `data.loader: cache` reads."""

    path: Path | None = None
    """Its folder; null takes `distcxr-cache/<image_size>px` in `data.root`."""
    stage_to: Path | None = None
    """A folder on each node's own disk that the cache is copied to first, once per node. Environment variables in it,
    such as $TMPDIR, are filled in on each node."""
    resident: Literal["host", "device"] = "host"
    """Where images wait: in the file (and the system's page cache), or in the memory of each GPU."""
    device_gb: Positive | None = None
    """GPU memory that `resident: device` may take; what does not fit stays on the host. null takes the whole cache."""


class Pack(Section):
    """The pack: what `distcxr pack RECIPE` writes and `data.source: pack` reads."""

    path: Path | None = None
    """Its folder; null takes `distcxr-pack` in `data.root`."""


class Gpu(Section):
    """PNG files decoded on the GPU, for `data.loader: gpu`."""

    inflate: Literal["auto", "gpu", "cpu"] = "auto"
    """Who inflates the compressed bytes: the GPU (nvCOMP), or the CPU (ISA-L); the GPU then undoes the filters and
    resizes. `auto` measures both."""
    wave: PositiveInt | None = None
    """Images decoded at once, of several batches if need be. null takes 256, or 64 where the CPU inflates. An X-ray of
    1024 px takes 1.5 MB of GPU memory, and where that is short the wave is made smaller."""


class Data(Section):
    """Which images, which labels, who may see them, and how they are read."""

    dataset: Literal[
        "nih", "csv", "folders", "chexpert", "mimic", "chestmnist", "padchest", "vindr", "rsna", "python", "joint"
    ] = "nih"
    """Layout and label file: `nih` is ChestX-ray14 as NIH ships it, `csv` any table (see `data.columns`), `folders`
    one folder of images per class, `chexpert` CheXpert, `mimic` MIMIC-CXR-JPG, `chestmnist` a MedMNIST file, `padchest`
    PadChest, `vindr` VinDr-CXR, `rsna` the RSNA Pneumonia challenge; `python` a table as of `csv` that your own
    `data.function` makes; `joint` several of them at once, `data.members` (docs/datasets.md)."""
    function: FunctionName | None = None
    """Of `data.dataset: python`: `module:function`, which makes the table of images (docs/own_parts.md)."""
    root: Path | None = None
    """Folder that holds labels, lists and images (`chestmnist`: or the `.npz` file). `DISTCXR_NIH_ROOT` stands in for
    it with `data.dataset: nih`. Of `joint`, the folder for its cache: null takes the one above all members' roots."""
    source: Literal["png", "npz", "pack"] = "png"
    """What the pixels are read from: `png` the image files (PNG, JPEG or DICOM), `pack` the same images out of a few
    large files, lossless, which `distcxr pack` writes; `npz` the arrays of a `chestmnist` file (its default). Decoded
    arrays of other datasets are what `distcxr cache` makes and `loader: cache` reads."""
    reader: FunctionName | None = None
    """`module:function`, which reads an image file in place of distcxr's PNG and JPEG decoders (docs/own_parts.md)."""
    pack: Pack = Pack()
    """The pack."""
    columns: Columns = Columns()
    """The columns of `data.dataset: csv`."""
    patient_pattern: str | None = None
    """For `data.dataset: folders`: a regular expression; its first group matches the patient in a file's name."""
    radiologists: Literal["majority", "any"] = "majority"
    """Of `data.dataset: vindr`, in which three radiologists read every training image: a finding counts where most of
    them saw it, or where any did. `majority` is nearest to the test labels, which five agreed on; with `any`, what one
    of three saw counts as much as what all did. No Finding takes all of them there."""
    uncertain: Literal["mask", "zero", "one"] = "mask"
    """What a label of -1 (CheXpert, MIMIC, csv) means: unknown, absent or present. CheXpert's and MIMIC's blanks, not
    mentioned in the report, count as absent; a csv's as unknown."""
    findings: str | list[str] = "nih14"
    """`nih14`, `nih15` (with No Finding), `chexpert14`, `chexpert5`, `all` (every label of the label file, sorted; No
    Finding and others among them) or a list of names."""
    where: Where = Where()
    """Which images take part."""
    lateral: Literal["none", "second_input"] = "none"
    """`none` takes every image for itself, whichever view it is. `second_input` makes samples of the frontal images (PA
    and AP) alone, and shows the network the lateral view of the same study beside each; where there is none, something
    learnt stands in (docs/lateral.md). For CheXpert, MIMIC, PadChest, and tables with `columns.view` and `.study`."""
    sampling: Sampling = Sampling()
    """Which training images an epoch has, and how often."""
    max_train_samples: PositiveInt | None = None
    """At most this many training images, chosen at random by `data.split_seed`, after `data.where` and before
    `data.sampling`."""
    max_val_samples: PositiveInt | None = None
    """At most this many validation images."""
    max_test_samples: PositiveInt | None = None
    """At most this many test images."""
    split: Literal["official", "by_patient", "lists"] = "official"
    """`official` uses the dataset's own (NIH's two lists; a csv's `columns.split`; folders `train`, `val`, `test`;
    CheXpert's valid.csv is the test split unless there is a test.csv; VinDr's two folders; each member's of `joint`);
    where it has no val, `val_fraction` of the training patients. PadChest has none, nor RSNA without NIH's lists.
    `by_patient` assigns patients at random, `lists` reads `data.lists`."""
    lists: SplitLists | None = None
    """The files of `data.split: lists`."""
    ratios: tuple[NonNegative, NonNegative, NonNegative] = (0.7, 0.1, 0.2)
    """Shares of train, val and test for `data.split: by_patient`."""
    val_fraction: Fraction = 0.1
    """Share of the official training patients that validates instead; one patient at least."""
    split_seed: int = Field(default=0, ge=0)
    """Seed of the random parts of the split; apart from `seed`, so that several seeds share one split."""
    members: list[Member] = []
    """Of `data.dataset: joint`: the data sets that make it up. Findings are those of `data.findings`, by name; a
    finding that a member does not label is unknown for its images."""
    missing: Literal["error", "skip"] = "error"
    """Rows of the label file without an image file: stop, or leave them out and log how many."""
    quarantine: Path | None = None
    """A list of images that can't be read, as `distcxr check RECIPE` writes it: they are left out of all splits."""
    on_error: Literal["mask", "stop"] = "mask"
    """A file that can't be read, in training: keep its position with no known label, or stop. Evaluation lists it
    and leaves it out."""
    max_errors: int = Field(default=100, ge=0)
    """Unreadable training files of one epoch, counted over all ranks, after which `mask` stops too."""
    loader: Literal["auto", "torch", "dali", "gpu", "cache"] = "auto"
    """Who reads: PyTorch's worker processes, NVIDIA DALI, the GPU (PNG files), the decoded cache, or whichever is
    fastest here."""
    cache: Cache = Cache()
    """The decoded cache."""
    gpu: Gpu = Gpu()
    """PNG files decoded on the GPU."""
    image_size: int = Field(default=224, ge=8, le=4096)
    """Side of the square image in pixels, after decoding and resizing. Images of another shape are squashed to it, so
    that nothing at the rim is lost."""
    num_workers: int | None = Field(default=None, ge=0)
    """Reader processes (torch) or threads (dali, gpu) of each rank; null takes this rank's share of the cores."""
    prefetch: PositiveInt = 2
    """Batches that each worker reads ahead."""

    @model_validator(mode="before")
    @classmethod
    def _arrays_of_chestmnist(cls, values: Any) -> Any:
        """Pixels of a ChestMNIST file come from its arrays; the recipe need not name them."""
        if isinstance(values, dict) and values.get("dataset") == "chestmnist":
            return {"source": "npz", **values}
        return values

    @field_validator("patient_pattern")
    @classmethod
    def _with_a_group(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(f"data.patient_pattern is not a regular expression: {error}") from error
            if not groups:
                raise ValueError(f"data.patient_pattern {pattern!r} has no group: put the patient's part in brackets")
        return pattern

    @model_validator(mode="after")
    def _members(self) -> Data:
        """What `joint` needs, and what does not go with it."""
        if self.dataset != "joint":
            if self.members:
                raise ValueError("data.members belongs to data.dataset: joint")
            return self
        titles = [member.title for member in self.members]
        if not 2 <= len(titles) <= MAX_MEMBERS:
            raise ValueError(f"data.dataset: joint takes 2 to {MAX_MEMBERS} data.members, and there are {len(titles)}")
        if repeated := [title for title in titles if titles.count(title) > 1]:
            raise ValueError(f"data.members: two are called {repeated[0]}: give one of them another `name`")
        if self.source == "pack":
            raise ValueError(
                "data.source: pack holds one data set, and data.dataset: joint has several: leave it out. `distcxr "
                "cache` makes one cache of all members"
            )
        if self.split == "lists":
            raise ValueError("data.split: lists is for one data set: give each of data.members its own split and lists")
        if self.sampling.redraw == "epoch" and len({member.weight for member in self.members}) > 1:
            raise ValueError("data.sampling.redraw=epoch does not go with data.members of different weights")
        for member in self.members:
            try:
                self.of_member(member)
            except ValidationError as error:
                problem = error.errors()[0]
                raise ValueError(
                    f"data.members, {member.title}: {problem.get('ctx', problem).get('error', problem)}"
                ) from None
        return self

    @property
    def num_views(self) -> int:
        """Images of a sample that the network sees."""
        return 1 if self.lateral == "none" else 2

    def of_member(self, member: Member) -> Data:
        """The section as if a member were all there is; its findings are all that it labels."""
        own = {"split", "lists", "ratios", "val_fraction", "columns", "patient_pattern", "uncertain"}
        given = {key: getattr(member, key) for key in own if getattr(member, key) is not None}
        whole = {key: getattr(self, key) for key in type(self).model_fields}
        findings = "nih15" if member.dataset == "nih" else "all"  # of NIH's, those that no image shows are known, too
        alone: dict[str, Any] = {"members": [], "dataset": member.dataset, "root": member.root, "findings": findings}
        if not _has_studies(member.dataset, member.columns or self.columns):
            alone["lateral"] = "none"
        return Data(**{**whole, **alone, **given})

    @model_validator(mode="after")
    def _consistent(self) -> Data:
        if (self.source == "npz") != (self.dataset == "chestmnist"):
            raise ValueError(
                f"data.source: {self.source} does not go with data.dataset: {self.dataset}. npz reads the arrays of "
                "chestmnist, png and pack the image files of the others; leave data.source out"
            )
        if self.source == "pack" and self.loader in ("cache", "gpu"):
            raise ValueError(
                f"data.loader: {self.loader} does not read packs (data.source: pack): use torch, dali or auto, which "
                "takes the faster one here"
            )
        if self.source == "npz" and self.loader != "auto":
            raise ValueError(
                f"data.loader: {self.loader} reads image files, and data.dataset: chestmnist has arrays: leave it auto"
            )
        if self.dataset == "python" and self.function is None:
            raise ValueError("data.dataset: python needs data.function: module:function")
        if self.reader is not None and (self.source != "png" or self.loader not in ("auto", "torch")):
            raise ValueError(
                f"data.reader reads image files in data.loader: torch, and does not go with data.source: {self.source} "
                f"and data.loader: {self.loader}; leave both out"
            )
        if (self.split == "lists") != (self.lists is not None):
            raise ValueError("data.lists and data.split: lists belong together: give both or neither")
        if abs(sum(self.ratios) - 1) > 1e-6:
            raise ValueError(f"data.ratios must sum to 1, not {sum(self.ratios):g}")
        if self.lateral != "none":
            if not _has_studies(self.dataset, self.columns):
                raise ValueError(
                    f"data.lateral: {self.lateral} needs to know which images are of one study, and data.dataset: "
                    f"{self.dataset} does not: chexpert, mimic and padchest do, and a csv with data.columns.study and "
                    "data.columns.view"
                )
            if "LATERAL" in (self.where.view or ()):
                raise ValueError(
                    f"data.where.view is about the frontal images with data.lateral: {self.lateral}, which shows "
                    "lateral views beside them: leave LATERAL out of it"
                )
        if self.where.age is not None and self.where.age[0] > self.where.age[1]:
            raise ValueError(f"data.where.age must be [low, high], not {list(self.where.age)}")
        return self


def _has_studies(dataset: str, columns: Columns) -> bool:
    """Whether a data set can name the study of an image; of a joint one any member may."""
    by_columns = dataset in ("csv", "python") and columns.has_studies
    return by_columns or dataset in ("chexpert", "mimic", "padchest", "joint")
