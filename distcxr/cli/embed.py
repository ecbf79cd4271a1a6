"""`distcxr embed RUN [RECIPE] --out FILE.npz`: what a network makes of images before its head, as an npz file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distcxr.cli.options import Checkpoint, CheckpointsRecipe, Split, check_writable, recipe_of

_Out = Annotated[Path, typer.Option(metavar="FILE.npz", show_default=False, help="the file to write")]
_Splits = Annotated[
    list[Split] | None,
    typer.Option("--split", help="of these splits: --split train val (default: all three)", show_default=False),
]


_Maps = Annotated[
    bool,
    typer.Option("--maps", help="write the last feature maps, too: FILE.maps.npy, [N, K, H, W], for numpy.load"),
]  # fmt: skip


def run(
    path: Checkpoint, out: _Out, words: CheckpointsRecipe = None, splits: _Splits = None, maps: _Maps = False
) -> int:
    """Write what a run's network makes of images, before its head.

    Pooled features, a row for each image, with file, patient, split and labels, for numpy.load. On several GPUs:
    accelerate launch -m distcxr.cli embed ...
    """
    splits = splits or list(Split)
    check_writable(out, ".npz")

    import numpy as np

    from distcxr.engine.checkpoint import open_checkpoint
    from distcxr.engine.embeddings import as_embedder, embed, write_embedded, write_maps
    from distcxr.engine.opening import opened
    from distcxr.recipe import load_recipe

    checkpoint = open_checkpoint(path)
    recipe = load_recipe(*recipe_of(checkpoint.path, words or []))
    with opened(recipe, checkpoint, as_embedder) as setup:
        rows = np.concatenate([setup.splits.rows(split) for split in dict.fromkeys(splits)])
        beside = out.with_suffix(".maps.npy")
        shape = write_maps(beside, setup, rows) if maps else ()
        found = embed(setup, rows)
        if setup.runtime.is_main:
            write_embedded(out, setup, found, checkpoint)
            num, width = found.values_NK.shape
            print(f"{out}: {num:,} images of {', '.join(splits)}, {width:,} features each")
            if maps:
                print(f"{beside}: the same images' last feature maps, float32 {list(shape)}")
            for row, reason in found.unreadable:
                print(f"left out {setup.index.file_name(row)}: {reason}")
    return 0
