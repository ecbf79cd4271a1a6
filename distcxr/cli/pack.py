"""`distcxr pack RECIPE`: put a recipe's images, lossless, into a few large files, for `data.source: pack`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from distcxr.cli.building import Bar, images, num_workers, report_made, report_unreadable
from distcxr.cli.options import Overrides, Recipe, Workers

if TYPE_CHECKING:
    from distcxr.recipe.data import Data


def run(recipe_path: Recipe, overrides: Overrides = None, workers: Workers = None) -> int:
    """Put a recipe's images into a few large files, lossless.

    GPUs can decode them, and file systems like them better than many small ones. Writes all images of a recipe at full
    size, lossless (HTJ2K), into files of about 1,024 images. Run again, it resumes where it was stopped, or checks
    every image and makes again what has changed or is damaged.
    """
    from distcxr.data.dataset import data_root
    from distcxr.data.read import read_index
    from distcxr.data.store.pack_building import build_pack
    from distcxr.data.store.pack_format import pack_and_files, pack_folder
    from distcxr.data.store.store_files import shown_size
    from distcxr.own_parts import open_parts
    from distcxr.recipe import load_recipe

    recipe = load_recipe(recipe_path, overrides or ())
    threads = num_workers(workers)
    if recipe.data.reader is not None:
        raise ValueError(
            f"data.reader={recipe.data.reader}: a pack holds PNG and JPEG files, and nothing that it reads"
        )
    if recipe.data.source == "npz":
        raise ValueError(f"data.dataset: {recipe.data.dataset} is one file of decoded arrays: there is nothing to pack")
    if recipe.data.dataset == "joint":
        raise ValueError(
            "data.dataset: joint: a pack holds one data set; `distcxr cache` makes one cache of all members"
        )
    root = data_root(recipe)
    open_parts(recipe.own_functions(), recipe.sources, only="data.function")
    try:
        index = read_index(recipe.data, root, pack_and_files(recipe.data))
    except ValueError as error:
        _explain_by_the_pack(recipe.data, root, error)
        raise
    folder = pack_folder(recipe.data, index.root)
    started_s = time.monotonic()
    try:
        with Bar() as bar:
            built = build_pack(index, folder, workers=threads, report=bar.show)
    except KeyboardInterrupt:
        print(f"stopped; the same command resumes {folder}", file=sys.stderr)
        return 130
    seconds = time.monotonic() - started_s
    shards = f"{built.num_shards:,} shard{'s' * (built.num_shards != 1)}"
    print(f"{folder}: {images(built.num_images)} in {shards}, {shown_size(built.num_bytes)}")
    report_made(built, built.num_made, "encoded", seconds, threads)
    if built.num_without_file:
        print(f"{images(built.num_without_file)} without a file here: the pack's own checksums were compared")
    report_unreadable(built, folder / "pack.json")
    return 0


def _explain_by_the_pack(data: Data, root: Path, error: ValueError) -> None:
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
