"""`distcxr pack RECIPE`: put a recipe's images, lossless, into a few large files, for `data.source: pack`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from distcxr.cli.building import Bar, add_arguments, images, num_workers, say_made, say_unreadable

if TYPE_CHECKING:
    from distcxr.recipe.data import Data


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "pack",
        help="put a recipe's images into a few large files that GPUs can decode, or bring such a pack up to date",
        description="Writes all images of a recipe at full size, lossless (HTJ2K), into files of about 1,024 images. "
        "Run again, it goes on where it was stopped, or checks every image and makes again what has changed or is "
        "damaged.",
    )
    add_arguments(parser, "data.pack.path=/scratch/pack")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Build the pack and say what was done; a ValueError goes to the caller."""
    from distcxr.data.dataset import data_root
    from distcxr.data.sources.read import read_index
    from distcxr.data.store.pack_building import build_pack
    from distcxr.data.store.pack_format import pack_folder
    from distcxr.data.store.pack_listing import pack_and_files
    from distcxr.data.store.store_files import shown_size
    from distcxr.recipe import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    workers = num_workers(args.workers)
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
    print(f"{folder}: {images(built.num_images)} in {shards}, {shown_size(built.num_bytes)}")
    say_made(built, built.num_made, "encoded", seconds, workers)
    if built.num_without_file:
        print(f"{images(built.num_without_file)} without a file here: the pack's own checksums were compared")
    say_unreadable(built, folder / "pack.json")
    return 0


def _say_if_the_pack_is_why(data: Data, root: Path, error: ValueError) -> None:
    """A pack that lacks a file can't stand in for image files that are not there: ValueError with both reasons."""
    from distcxr.data.store.pack_format import Pack, pack_folder
    from distcxr.data.store.store_files import StoreError

    folder = pack_folder(data, root)
    if not (folder / "pack.json").exists():
        return
    try:
        Pack(folder).close()
    except StoreError as problem:
        raise ValueError(f"{problem}\nThat takes the image files, and: {error}") from error
