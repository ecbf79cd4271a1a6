"""`distcxr embed CHECKPOINT [RECIPE]`: what a network makes of images before its head, as an npz file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distcxr.cli.options import Checkpoint, Split, recipe_of

_Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RECIPE|key=value", show_default=False,
        help="a YAML file whose images are taken (default: those of the checkpoint's run), and keys that differ",
    ),
]  # fmt: skip
_Out = Annotated[Path, typer.Option(metavar="FILE.npz", show_default=False, help="the file to write")]
_Splits = Annotated[
    list[Split] | None,
    typer.Option("--split", help="of these splits: --split train val (default: all three)", show_default=False),
]


def run(path: Checkpoint, out: _Out, words: _Words = None, splits: _Splits = None) -> int:
    """Write a checkpoint's pooled features of images.

    Writes what the network makes of every image before its head: one row each, with file, patient, split and labels,
    for numpy.load. On several GPUs: accelerate launch -m distcxr.cli embed ...
    """
    splits = splits or list(Split)
    if out.suffix != ".npz" or not out.absolute().parent.is_dir():
        raise ValueError(f"--out {out}: name an .npz file in a folder that is there")

    import numpy as np
    from rich.console import Console

    from distcxr.data.dataset import open_dataset
    from distcxr.engine.build import batch_plan, build_evaluation
    from distcxr.engine.checkpoint import open_checkpoint
    from distcxr.engine.embed import as_embedder, embed, write_embedded
    from distcxr.recipe import load_recipe
    from distcxr.runtime import start_logging, start_runtime

    checkpoint = open_checkpoint(path)
    recipe = load_recipe(*recipe_of(checkpoint.path, words or []))
    start_logging(Console(stderr=True))
    runtime = start_runtime(recipe)
    dataset = open_dataset(recipe)
    own, loaded = as_embedder(recipe, checkpoint, dataset.index.findings)
    run = build_evaluation(own, runtime, dataset, batch_plan(own, runtime), loaded)
    rows = np.concatenate([dataset.splits.rows(split) for split in dict.fromkeys(splits)])
    try:
        found = embed(run, rows)
    finally:
        run.reader.close()
    if runtime.is_main:
        write_embedded(out, run, found, dataset, checkpoint)
        num, width = found.features_ND.shape
        print(f"{out}: {num:,} images of {', '.join(splits)}, {width:,} features each")
        for row, reason in found.unreadable:
            print(f"left out {dataset.index.file_name(row)}: {reason}")
    runtime.close()
    return 0
