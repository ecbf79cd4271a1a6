"""What `distcxr predict` shows and writes of its table: on the screen, as CSV or JSON, as heat maps."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distcxr.api import NOT_CLINICAL, Predictor
from distcxr.data.sources.image_files import ImageFiles
from distcxr.data.sources.image_paths import first_few
from distcxr.runfolder.whole import being_written, write_json
from distcxr.tracking.terminal import table_text

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 5
"""Images with a table each, and notes on the screen; more images have a table together."""
_LEFT_OUT = "left out: "


def show_table(predictor: Predictor, table: pd.DataFrame, num_images: int) -> None:
    """Print a table for each of a few images, or one for all of them.

    Raises:
        ValueError: none of them can be read.
    """
    if table["probability"].isna().all():
        raise ValueError(f"no image can be read; {first_few(_notes(table)[1])}")
    print(_of_each(predictor, table) if num_images <= _SHOWN else _of_all(table))


def _of_each(predictor: Predictor, table: pd.DataFrame) -> str:
    num, size, texts = predictor.validation(), len(predictor.findings), []
    title = ["finding", "probability", "threshold", "", "above validation's negatives", "and its positives"]
    for start in range(0, len(table), size):
        part = table.iloc[start : start + size]
        if part["probability"].isna().all():
            continue
        words = part["positive"].map({True: "positive", False: "negative"}).fillna("")
        rows = [
            [
                one.finding, _number(one.probability), _number(one.threshold), word,
                _share(one.above_negatives, num[one.finding]["negatives"]),
                _share(one.above_positives, num[one.finding]["positives"]),
            ]
            for one, word in zip(part.itertuples(), words, strict=True)
        ]  # fmt: skip
        texts.append(f"{part['file'].iloc[0]}\n{table_text([title, *rows], width=None)}\n")
    return "\n".join(texts)


def _of_all(table: pd.DataFrame) -> str:
    rows = [["finding", "positive", "of images", "most probable", "its file"]]
    for name, part in table.dropna(subset=["probability"]).groupby("finding", sort=False):
        called = part["positive"].dropna()
        top = part.loc[part["probability"].idxmax()]
        positive = f"{int(called.sum()):,}" if len(called) else "-"
        rows.append([str(name), positive, f"{len(part):,}", _number(top["probability"]), top["file"]])
    return table_text(rows, width=None)


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}".removeprefix("0")


def _share(value: float, num: int) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.0f} % of {num:,}"


def report_notes(problems: Sequence[str], passed_over: Sequence[str], table: pd.DataFrame, out: Path | None) -> None:
    """Warnings and files that can't be read, on stderr; the first of them where `out` has them all."""
    for sentence in problems:
        print(f"warning: {sentence}", file=sys.stderr)
    if passed_over:
        print(
            f"passed over {len(passed_over):,} files without an image's name: {first_few(passed_over)}", file=sys.stderr
        )
    notes, unreadable = _notes(table)
    for sentences, word in ((notes, "warning"), (unreadable, "can't be read")):
        for sentence in sentences if out is None else sentences[:_SHOWN]:
            print(f"{word}: {sentence}", file=sys.stderr)
        if out is not None and len(sentences) > _SHOWN:
            print(f"{word}: {len(sentences) - _SHOWN:,} more, see {out}", file=sys.stderr)


def _notes(table: pd.DataFrame) -> tuple[list[str], list[str]]:
    """`file: note` of each file that has one; the files that can't be read apart, with the reason."""
    noted = table[table["note"] != ""].drop_duplicates(["file", "note"])
    notes, unreadable = [], []
    for file, note in zip(noted["file"], noted["note"], strict=True):
        if note.startswith(_LEFT_OUT):
            unreadable.append(f"{file}: {note.removeprefix(_LEFT_OUT)}")
        else:
            notes.append(f"{file}: {note}")
    return notes, unreadable


def write_heat_maps(predictor: Predictor, images: ImageFiles, table: pd.DataFrame, folder: Path) -> int:
    """Write `<image>_<finding>.png` into the folder, and return how many; where two images have one name, all have
    their number before it."""
    folder.mkdir(parents=True, exist_ok=True)
    stems = [Path(name).stem for name in images.names]
    if len(set(stems)) < len(stems):
        stems = [f"{number:0{len(str(len(stems)))}d}_{stem}" for number, stem in enumerate(stems, start=1)]
    num = 0
    for row, found in predictor.heat_maps(images, predictor.called(table)):
        found.picture.save(folder / f"{stems[row]}_{found.finding.replace('/', '_')}.png")
        num += 1
    return num


def write_table(out: Path, predictor: Predictor, rule: str, table: pd.DataFrame) -> None:
    """Write the table as CSV, a row for each image and finding; or as JSON, an entry for each image. Whole, in place of
    a file that is there."""
    table = table.assign(positive=table["positive"].astype("Int8"))
    if out.suffix == ".csv":
        with being_written(out) as part:
            table.to_csv(part, index=False)
        return
    size, figures = len(predictor.findings), ["probability", "positive", "above_negatives", "above_positives", "logit"]
    cells = {name: table[name].astype(object).where(table[name].notna(), None).tolist() for name in figures}
    images, unreadable = [], []
    for start in range(0, len(table), size):
        file, note = table["file"].iloc[start], table["note"].iloc[start]
        if note.startswith(_LEFT_OUT):
            unreadable.append({"file": file, "reason": note.removeprefix(_LEFT_OUT)})
            continue
        by_finding: dict[str, Any] = {
            finding: {name: cells[name][start + at] for name in figures}
            for at, finding in enumerate(predictor.findings)
        }
        images.append({"file": file, "note": note, "findings": by_finding})
    thresholds = predictor.thresholds[rule] if predictor.rules else {}
    content = {
        "about": NOT_CLINICAL,
        "weights": predictor.checkpoints,
        "rule": rule if predictor.rules else None,
        "thresholds": {name: None if np.isnan(value) else value for name, value in thresholds.items()},
        "validation": predictor.validation(),
        "problems": list(predictor.problems),
        "images": images,
        "unreadable": unreadable,
    }
    write_json(out, content)
