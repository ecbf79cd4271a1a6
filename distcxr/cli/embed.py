"""`distcxr embed CHECKPOINT [RECIPE]`: what a network makes of images before its head, as an npz file."""

from __future__ import annotations

import argparse
from pathlib import Path

from distcxr.runfolder import filenames


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "embed",
        help="write a checkpoint's pooled features of images",
        description="Writes what the network makes of every image before its head: one row each, with file, patient, "
        "split and labels, for numpy.load. On several GPUs: accelerate launch -m distcxr.cli embed ...",
    )
    parser.add_argument("checkpoint", type=Path, help="folder, for example runs/NAME/checkpoints/best, or a run folder")
    parser.add_argument(
        "overrides", nargs="*", metavar="RECIPE | key=value",
        help="a YAML file whose images are taken (default: those of the checkpoint's run), and keys that differ",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.npz", help="the file to write")
    parser.add_argument(
        "--split", nargs="+", choices=("train", "val", "test"), default=["train", "val", "test"],
        help="images of these splits (default: all three)",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Make the features and write them from rank 0; a ValueError goes to the caller."""
    if args.out.suffix != ".npz" or not args.out.absolute().parent.is_dir():
        raise ValueError(f"--out {args.out}: name an .npz file in a folder that is there")

    import numpy as np

    from distcxr.engine.checkpoint import open_checkpoint
    from distcxr.engine.embed import as_embedder, embed, write_embedded
    from distcxr.engine.opening import opened
    from distcxr.recipe import load_recipe

    checkpoint = open_checkpoint(args.checkpoint)
    recipe = load_recipe(*_recipe_of(checkpoint.path, args.overrides))
    with opened(recipe, checkpoint, as_embedder) as setup:
        found = embed(setup, np.concatenate([setup.splits.rows(split) for split in dict.fromkeys(args.split)]))
        if setup.runtime.is_main:
            write_embedded(args.out, setup, found, checkpoint)
            num, width = found.values_NK.shape
            print(f"{args.out}: {num:,} images of {', '.join(args.split)}, {width:,} features each")
            for row, reason in found.unreadable:
                print(f"left out {setup.index.file_name(row)}: {reason}")
    return 0


def _recipe_of(checkpoint: Path, words: list[str]) -> tuple[Path, list[str]]:
    """The recipe that the command names, or the one in the checkpoint's run folder; and the overrides."""
    from distcxr.runfolder.layout import run_folder_of

    named = [word for word in words if "=" not in word or Path(word).is_file()]
    overrides = [word for word in words if word not in named]
    if len(named) > 1:
        raise ValueError(f"one recipe at a time, not {', '.join(named)}")
    if named:
        return Path(named[0]), overrides
    folder = run_folder_of(checkpoint)
    if folder is None or not (kept := folder / filenames.RECIPE).is_file():
        raise ValueError(
            f"{checkpoint} is not in a run folder that has a {filenames.RECIPE}: name the recipe whose images to take"
        )
    return kept, overrides
