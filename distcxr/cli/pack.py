"""`distcxr pack RECIPE`: put a recipe's images, lossless, into a few large files, for `data.source: pack`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from distcxr.cli.bar import Bar

if TYPE_CHECKING:
    from distcxr.recipe.data import Data

_SHOWN = 5


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "pack",
        help="put a recipe's images into a few large files that GPUs can decode, or bring such a pack up to date",
        description="Writes all images of a recipe at full size, lossless (HTJ2K), into files of about 1,024 images. "
        "Run again, it goes on where it was stopped, or checks every image and makes again what has changed or is "
        "damaged.",
    )
    parser.add_argument("recipe", type=Path, help="YAML file, for example recipes/densenet121.yaml")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="for example data.pack.path=/scratch/pack"
    )
    parser.add_argument("--workers", type=int, default=None, help="threads (default: one per core)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Build the pack and say what was done; a ValueError goes to the caller."""
    from distcxr.data.built import shown_size
    from distcxr.data.dataset import data_root
    from distcxr.data.loaders.budget import thread_budget
    from distcxr.data.pack import pack_folder
    from distcxr.data.pack.build import build_pack
    from distcxr.data.pack.listing import pack_and_files
    from distcxr.data.sources.read import read_index
    from distcxr.recipe import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    workers = thread_budget(1) if args.workers is None else args.workers
    if workers < 1:
        raise ValueError(f"--workers {workers}: at least 1 thread is needed")
    if recipe.data.source == "npz":
        raise ValueError(f"data.dataset: {recipe.data.dataset} is one file of decoded arrays: there is nothing to pack")
    root = data_root(recipe)
    try:
        index = read_index(recipe.data, root, pack_and_files(recipe.data))
    except ValueError as error:
        _say_if_the_pack_is_why(recipe.data, root, error)
        raise
    folder = pack_folder(recipe.data, index.root)
    started_s = time.monotonic()
    try:
        with Bar() as bar:
            built = build_pack(index, folder, workers=workers, report=bar.show)
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on with {folder}", file=sys.stderr)
        return 130
    seconds = time.monotonic() - started_s
    shards = f"{built.num_shards:,} shard{'s' * (built.num_shards != 1)}"
    print(f"{folder}: {_images(built.num_images)} in {shards}, {shown_size(built.num_bytes)}")
    if not built.num_encoded and not built.num_resumed:
        print(f"nothing to do: every image was checked in {seconds:.1f} s")
    else:
        reasons = {
            "changed": built.num_changed, "damaged": built.num_damaged, "new": built.num_new,
            "kept from an earlier build": built.num_resumed,
        }  # fmt: skip
        detail = "".join(f", {num:,} {word}" for word, num in reasons.items() if num)
        print(f"{_images(built.num_encoded)} encoded in {seconds:.1f} s with {workers} threads{detail}")
    if built.num_without_file:
        print(f"{_images(built.num_without_file)} without a file here: the pack's own checksums were compared")
    if built.unreadable:
        print(f"{_images(len(built.unreadable))} can't be read; in training each is named and counts for nothing:")
        for path, reason in list(built.unreadable.items())[:_SHOWN]:
            print(f"  {path}: {reason}")
        if len(built.unreadable) > _SHOWN:
            print(f"  and {len(built.unreadable) - _SHOWN:,} more, in {folder / 'pack.json'}")
    return 0


def _images(num: int) -> str:
    return f"{num:,} image{'s' * (num != 1)}"


def _say_if_the_pack_is_why(data: Data, root: Path, error: ValueError) -> None:
    """A pack that lacks a file can't stand in for image files that are not there: ValueError with both reasons."""
    from distcxr.data.pack import Pack, PackError, pack_folder

    folder = pack_folder(data, root)
    if not (folder / "pack.json").exists():
        return
    try:
        Pack(folder).close()
    except PackError as problem:
        raise ValueError(f"{problem}\nThat takes the image files, and: {error}") from error
