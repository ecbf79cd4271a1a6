"""`distcxr predict RUN ... IMAGE ...`: what a run makes of images, in the terms of its validation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distcxr.cli.options import check_writable

_Words = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN|IMAGE|FOLDER|CSV", show_default=False,
        help="run folders or checkpoints, several are averaged; then images (PNG, JPEG, DICOM), folders of them, "
        "tables with a column of paths",
    ),
]  # fmt: skip
_Out = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.csv|.json", show_default=False, help="write everything: a row for each image and finding, or JSON"
    ),
]
_Explain = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", show_default=False,
        help="write heat maps over the images: of the findings called positive, or the likeliest where none is",
    ),
]  # fmt: skip
_Rule = Annotated[
    str,
    typer.Option(
        metavar="RULE", help="which of validation's thresholds decides: youden, max_f1, recall_90, specificity_90, ..."
    ),
]
_Batch = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, show_default=False, help="images at once (default: as many as `test` takes)"),
]
_Column = Annotated[
    str | None, typer.Option(metavar="NAME", show_default=False, help="of the tables: the one that holds the paths")
]
_Device = Annotated[
    str | None,
    typer.Option(metavar="DEVICE", show_default=False, help="cpu, cuda or cuda:1 (default: every GPU, or the CPU)"),
]


def run(
    words: _Words,
    out: _Out = None,
    explain: _Explain = None,
    rule: _Rule = "youden",
    batch: _Batch = None,
    column: _Column = None,
    device: _Device = None,
) -> int:
    """Predict images with a run's best weights.

    Reports for every finding its probability, calibrated on validation; whether it reaches the threshold that
    validation chose; and how many of validation's negatives and positives score lower.
    """
    check_writable(out, ".csv", ".json")
    runs, paths = _sorted_out(words)

    import torch

    from distcxr.api import NOT_CLINICAL, open_runs
    from distcxr.cli.building import Bar
    from distcxr.cli.predicted import report_notes, show_table, write_heat_maps, write_table
    from distcxr.data.readers.budget import thread_budget
    from distcxr.data.sources.image_files import find_images

    torch.set_num_threads(thread_budget(1))  # as `test` does: PyTorch counts cores that a container does not allow
    images = find_images(paths, column)
    predictor = open_runs(runs, device)
    with Bar() as bar:
        table = predictor.predict_found(
            images, rule=rule, batch=batch, progress=lambda done, total: bar.show("predicting", done, total)
        )
    show_table(predictor, table, len(images))
    if explain is not None:
        print(f"heat maps: {write_heat_maps(predictor, images, table, explain):,} in {explain}")
    if out is not None:
        write_table(out, predictor, rule, table)
        print(f"written: {out}")
    report_notes(predictor.problems, images.passed_over, table, out)
    print(NOT_CLINICAL)
    return 0


def _sorted_out(words: list[str]) -> tuple[list[Path], list[str]]:
    """Runs and images among the words.

    Raises:
        ValueError: no run, no image, or a word that is neither.
    """
    from distcxr.data.sources.image_paths import IMAGE_SUFFIXES, first_few
    from distcxr.runfolder import filenames
    from distcxr.runfolder.layout import checkpoints_of, find_checkpoint
    from distcxr.runfolder.manifest import META

    def is_run(path: Path) -> bool:
        named = (checkpoints_of(path), path / filenames.RECIPE, find_checkpoint(path) / META)
        return any(file.exists() for file in named)

    runs = [Path(word) for word in words if is_run(Path(word).expanduser())]
    images = [word for word in words if Path(word) not in runs]
    for word in images:
        if not Path(word).expanduser().exists() and not word.lower().endswith((*IMAGE_SUFFIXES, ".csv", ".csv.gz")):
            raise ValueError(f"{word} does not exist: name run folders, then images, folders of images or CSV tables")
    if not runs:
        raise ValueError(f"none of {first_few(words)} is a run folder or a checkpoint: name one before the images")
    if not images:
        raise ValueError(f"{first_few(words)}: name images after the run, or folders of them, or CSV tables of paths")
    return runs, images
