"""`distcxr cache RECIPE`: decode a recipe's images once, for `data.loader: cache`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from distcxr.cli.building import Bar, images, num_workers, report_made, report_unreadable
from distcxr.cli.options import Overrides, Recipe, Workers, check_writable

_Npy = Annotated[
    Path | None,
    typer.Option(
        "--export-npy", metavar="FILE.npy", show_default=False,
        help="write the images as one array, too, for numpy.load(FILE, mmap_mode='r'); their paths into FILE.npy.txt",
    ),
]  # fmt: skip


def run(
    recipe_path: Recipe, overrides: Overrides = None, workers: Workers = None, export: _Npy = None
) -> int:  # fmt: skip
    """Decode a recipe's images once, or bring such a cache up to date.

    Writes all images of a recipe, decoded and resized to data.image_size, into one file. Run again, it resumes where it
    was stopped, or checks every image and makes again what has changed or is damaged.
    """
    from distcxr.data.dataset import open_dataset
    from distcxr.data.store.cache_building import build_cache
    from distcxr.data.store.cache_format import cache_folder, export_npy
    from distcxr.data.store.store_files import shown_size
    from distcxr.recipe import load_recipe

    check_writable(export, ".npy")
    recipe = load_recipe(recipe_path, overrides or ())
    threads = num_workers(workers)
    if recipe.data.source == "npz":
        raise ValueError(f"data.dataset: {recipe.data.dataset} is decoded already: there is nothing to cache")
    if recipe.data.reader is not None:
        raise ValueError(f"data.reader={recipe.data.reader}: a cache is decoded from PNG and JPEG files, not by it")
    if recipe.data.source == "pack":
        raise ValueError("data.source: pack: a cache is decoded from the image files; add data.source=png")
    index = open_dataset(recipe).index
    folder, size = cache_folder(recipe.data, index.root), recipe.data.image_size
    started_s = time.monotonic()
    try:
        with Bar() as bar:
            built = build_cache(index, folder, size, workers=threads, report=bar.show)
    except KeyboardInterrupt:
        print(f"stopped; the same command resumes {folder}", file=sys.stderr)
        return 130
    seconds = time.monotonic() - started_s
    print(f"{folder}: {images(built.num_images)} of {size} x {size} pixels, {shown_size(built.num_bytes)}")
    report_made(built, built.num_made, "decoded", seconds, threads)
    report_unreadable(built, folder / "cache.json")
    if export:
        num = export_npy(folder, size, export)
        print(f"{export}: uint8 [{num}, {size}, {size}], and the path of each row in {export.name}.txt")
    return 0
