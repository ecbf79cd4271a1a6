"""What others reached on NIH ChestX-ray14, how each checkpoint was selected, and a row of the same form for a result.

docs/leaderboard.md holds `tables()`; the report's comparison shows the rows on the official test list.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

TEST_IMAGES = 25_596
TEST_LIST = "38ca5ef7f756092946f57c1a59faca882ed589a1ab1f72590b45dc06c6d5e1cc"
LABELS = "dc1d2df67fdc1c5a7601d48699cda2b13dc2c4841488b4183dcf04884dbaca11"
"""Of the official test: its images, and the sha256 of NIH's test_list.txt and of its Data_Entry_2017_v2020.csv."""

OFFICIAL = "official"
SelectedOn = Literal["validation", "unknown", "test list", ""]
"""Which images chose the epoch or the settings; of a result that is not measured nothing."""

_HEADER = ("model", "macro AUROC", "interval", "pixels", "pretraining", "selected on", "split", "source")
_NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Row:
    """A model's mean AUROC over the 14 findings without No Finding, on one test set.

    Numbers are text, with the digits that their authors printed; empty where they printed none.
    """

    model: str
    auroc: str
    selected_on: SelectedOn
    source: str
    pixels: str = ""
    pretraining: str = ""
    split: str = OFFICIAL
    low: str = ""
    high: str = ""

    @property
    def digits(self) -> int:
        """Decimals of the printed AUROC."""
        return len(self.auroc.partition(".")[2])

    def json(self) -> dict[str, Any]:
        """For report.json, with numbers."""
        low, high = (float(end) if end else None for end in (self.low, self.high))
        known = {"name": self.model, "auroc": float(self.auroc), "auroc_low": low, "auroc_high": high}
        return known | {"pixels": self.pixels, "selected_on": self.selected_on, "source": self.source}

    def markdown(self) -> str:
        """One line of the table."""
        interval = f"{self.low} to {self.high}" if self.low else ""
        cells = (
            self.model, self.auroc, interval, self.pixels, self.pretraining, self.selected_on, self.split, self.source,
        )  # fmt: skip
        return f"| {' | '.join(cell.replace('|', ' ').replace(chr(10), ' ') for cell in cells)} |"


_YZAZA, _GRISHA, _NESSI = "Yzaza/nih-cxr-models, 2026", "grisha1998, 2026", "nessi10, 2026"
_MAE, _EVA_X = "Xiao 2023, arXiv 2210.12843, lambert-x/medical_mae", "Yao 2024, hustvl/EVA-X"
_IMAGENET, _XRAYS = "ImageNet", "X-rays"
_WITH_NIH = "X-rays, NIH's among them"

PUBLISHED = (
    Row("ResNet-50", ".745", "unknown", "Wang 2017, arXiv 1705.02315", "1024", _IMAGENET),
    Row("DeiT-S", ".785", "validation", _NESSI),
    Row("DeiT-S", ".796", "test list", _MAE, "224", _IMAGENET),
    Row("ConvNeXt-S", ".8015", "validation", _GRISHA, "384"),
    Row("DenseNet-121", ".805", "validation", _NESSI),
    Row("ResNet-38 with age, sex and view", ".806", "unknown", "Baltruschat 2019, arXiv 1803.02315"),
    Row("Swin-B", ".8069", "validation", _GRISHA, "384"),
    Row("DenseNet-121", ".807", "unknown", "Guendel 2018, arXiv 1803.04565", "1024"),
    Row("Swin-T", ".808", "validation", _NESSI),
    Row("CoAtNet-0", ".809", "validation", _NESSI),
    Row("DenseNet-121", ".8106", "validation", _YZAZA, "320", low=".8036", high=".8167"),
    Row("ResNet-50, SwAV", ".815", "test list", _MAE, "224", _IMAGENET),
    Row("Swin-T", ".8184", "validation", _YZAZA, "320", low=".8127", high=".8236"),
    Row("DenseNet-121", ".8202", "unknown", "Goel 2024", "224"),
    Row("DenseNet-121", ".822", "test list", _MAE, "224", _IMAGENET),
    Row("three models averaged", ".8222", "validation", _GRISHA, "384"),
    Row("ViT-S, masked autoencoder", ".823", "test list", _MAE, "224", _XRAYS),
    Row("EVA-X-Ti", ".824", "test list", _EVA_X, "224", _WITH_NIH),
    Row("ViT-B, masked autoencoder", ".830", "test list", _MAE, "224", _XRAYS),
    Row("EVA-X-S", ".833", "test list", _EVA_X, "224", _WITH_NIH),
    Row("EVA-X-B", ".835", "test list", _EVA_X, "224", _WITH_NIH),
)
"""On NIH's official test list of 25,596 images, by AUROC."""

OURS = tuple(
    Row(recipe, _NOT_MEASURED, "", f"recipes/{recipe}.yaml") for recipe in ("densenet121", "resnet50", "convnext_base")
)

ON_OTHER_SPLITS = (
    Row("DenseNet-121", ".838", "unknown", "jrzech/reproduce-chexnet", split="own"),
    Row("CheX-DS", ".8376", "unknown", "CheX-DS", split="not verified"),
    Row("DenseNet-121", ".841", "unknown", "CheXNet, Rajpurkar 2017, arXiv 1711.05225", split="own"),
    Row("DenseNet-121", ".847", "unknown", "arnoweng/CheXNet", split="own"),
    Row("DenseNet-121", ".851", "unknown", "zoogzog/chexnet", split="own"),
    Row("single model", ".853", "unknown", "bjorneme", split="random, by patient"),
    Row("ensemble", ".861", "unknown", "bjorneme", split="random, by patient"),
    Row("single model", ".854", "unknown", "mjrq/cura", split="own"),
)
"""On other test images. They compare with nothing above, nor with each other."""


def tables() -> str:
    """The ranks of docs/leaderboard.md."""
    groups: tuple[tuple[str, Iterable[Row]], ...] = (
        ("Selected on validation", _ranked("validation")),
        ("Selected on images that nobody names", _ranked("unknown")),
        ("Selected on the test list: upper bounds", _ranked("test list")),
        ("Ours", OURS),
        ("Other splits: not comparable", sorted(ON_OTHER_SPLITS, key=lambda row: -float(row.auroc))),
    )
    return "\n".join(f"## {title}\n\n{table(rows)}" for title, rows in groups)


def table(rows: Iterable[Row]) -> str:
    """Rows in Markdown, under their header."""
    lines = [f"| {' | '.join(_HEADER)} |", f"|{'---|' * len(_HEADER)}"]
    return "\n".join([*lines, *(row.markdown() for row in rows)]) + "\n"


def _ranked(selected_on: SelectedOn) -> list[Row]:
    return sorted((row for row in PUBLISHED if row.selected_on == selected_on), key=lambda row: -float(row.auroc))


def why_not_official(
    list_sha256: str | None, labels_sha256: str | None, num_images: int, averaged: Sequence[str]
) -> list[str]:
    """What keeps a macro AUROC from a place among `PUBLISHED`; empty if nothing does.

    Args:
        averaged: findings in the average.
    """
    reasons = []
    if list_sha256 != TEST_LIST:
        reasons.append("its test list is not NIH's")
    elif num_images != TEST_IMAGES:
        reasons.append(f"{num_images:,} images were scored, the list has {TEST_IMAGES:,}")
    if labels_sha256 != LABELS:
        reasons.append("its labels are not NIH's file of 2020")
    if len(averaged) != 14 or "No Finding" in averaged:
        reasons.append(f"its average is of {len(averaged)} findings, not of the 14")
    return reasons


def row_of(model: str, metrics: Mapping[str, Any], source: Mapping[str, Any]) -> Row:
    """A row for predictions that were scored; pixels, pretraining and selection are their author's to fill in.

    Args:
        metrics: as in metrics_<split>.json.
        source: hashes of predictions, labels and list, as `distcxr score` writes them.

    Raises:
        ValueError: no finding has an AUROC.
    """
    macro = metrics["macro"]
    if macro["auroc"] is None:
        raise ValueError("a row of the leaderboard needs a macro AUROC, and no finding has one")
    low, high = (_printed(macro[f"auroc_{end}"]) for end in ("low", "high"))
    digests = {name: source[f"{name}_sha256"] for name in ("predictions", "labels", "list")}
    hashes = [f"{name} {digest[:16]}" for name, digest in digests.items() if digest]
    reasons = why_not_official(digests["list"], digests["labels"], metrics["num_samples"], macro["findings"])
    return Row(
        model, _printed(macro["auroc"]), "unknown", f"sha256 of {', '.join(hashes)}",
        split=f"own ({'; '.join(reasons)})" if reasons else OFFICIAL,
        low=low if high else "", high=high if low else "",
    )  # fmt: skip


def _printed(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}".removeprefix("0")
