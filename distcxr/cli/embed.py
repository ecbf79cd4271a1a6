"""`distcxr embed CHECKPOINT [RECIPE]`: what a network makes of images before its head, as an npz file."""

from __future__ import annotations

import argparse
from pathlib import Path


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
    from rich.console import Console

    from distcxr.data.dataset import open_dataset
    from distcxr.engine.build import batch_plan, build_evaluation
    from distcxr.engine.checkpoint import open_checkpoint
    from distcxr.engine.embed import as_embedder, embed, write_embedded
    from distcxr.recipe import load_recipe
    from distcxr.runtime import start_logging, start_runtime

    checkpoint = open_checkpoint(args.checkpoint)
    recipe = load_recipe(*_recipe_of(checkpoint.path, args.overrides))
    start_logging(Console(stderr=True))
    runtime = start_runtime(recipe)
    dataset = open_dataset(recipe)
    own, loaded = as_embedder(recipe, checkpoint, dataset.index.findings)
    run = build_evaluation(own, runtime, dataset, batch_plan(own, runtime), loaded)
    rows = np.concatenate([dataset.splits.rows(split) for split in dict.fromkeys(args.split)])
    try:
        found = embed(run, rows)
    finally:
        run.reader.close()
    if runtime.is_main:
        write_embedded(args.out, run, found, dataset, checkpoint)
        num, width = found.features_ND.shape
        print(f"{args.out}: {num:,} images of {', '.join(args.split)}, {width:,} features each")
        for row, reason in found.unreadable:
            print(f"left out {dataset.index.file_name(row)}: {reason}")
    runtime.close()
    return 0


def _recipe_of(checkpoint: Path, words: list[str]) -> tuple[Path, list[str]]:
    """The recipe that the command names, or the one in the checkpoint's run folder; and the overrides."""
    from distcxr.runfolder.layout import recipe_beside

    named = [word for word in words if "=" not in word or Path(word).is_file()]
    overrides = [word for word in words if word not in named]
    if len(named) > 1:
        raise ValueError(f"one recipe at a time, not {', '.join(named)}")
    if named:
        return Path(named[0]), overrides
    return recipe_beside(checkpoint), overrides
