"""`distcxr cache RECIPE`: decode a recipe's images once, for `data.loader: cache`."""

from __future__ import annotations

import argparse
import sys
import time

from distcxr.cli.building import Bar, add_arguments, images, num_workers, say_made, say_unreadable


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "cache",
        help="decode a recipe's images once, or bring such a cache up to date",
        description="Writes all images of a recipe, decoded and resized to data.image_size, into one file. Run again, "
        "it goes on where it was stopped, or checks every image and makes again what has changed or is damaged.",
    )
    add_arguments(parser, "data.image_size=256")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Build the cache and say what was done; a ValueError goes to the caller."""
    from distcxr.data.dataset import open_dataset
    from distcxr.data.store.cache_building import build_cache
    from distcxr.data.store.cache_format import cache_folder
    from distcxr.data.store.store_files import shown_size
    from distcxr.recipe import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    workers = num_workers(args.workers)
    if recipe.data.source == "npz":
        raise ValueError(f"data.dataset: {recipe.data.dataset} is decoded already: there is nothing to cache")
    if recipe.data.source == "pack":
        raise ValueError("data.source: pack: a cache is decoded from the image files; add data.source=png")
    index = open_dataset(recipe).index
    folder, size = cache_folder(recipe.data, index.root), recipe.data.image_size
    started_s = time.monotonic()
    try:
        with Bar() as bar:
            built = build_cache(index, folder, size, workers=workers, report=bar.show)
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on with {folder}", file=sys.stderr)
        return 130
    seconds = time.monotonic() - started_s
    print(f"{folder}: {images(built.num_images)} of {size} x {size} pixels, {shown_size(built.num_bytes)}")
    say_made(built, built.num_made, "decoded", seconds, workers)
    say_unreadable(built, folder / "cache.json")
    return 0
