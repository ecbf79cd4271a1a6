"""`distcxr cache RECIPE`: decode a recipe's images once, for `data.loader: cache`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from distcxr.cli.bar import Bar

_SHOWN = 5


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "cache",
        help="decode a recipe's images once, or bring such a cache up to date",
        description="Writes all images of a recipe, decoded and resized to data.image_size, into one file. Run again, "
        "it goes on where it was stopped, or checks every image and makes again what has changed or is damaged.",
    )
    parser.add_argument("recipe", type=Path, help="YAML file, for example recipes/densenet121.yaml")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="for example data.image_size=256")
    parser.add_argument("--workers", type=int, default=None, help="threads (default: one per core)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Build the cache and say what was done; a ValueError goes to the caller."""
    from distcxr.data.built import shown_size
    from distcxr.data.cache import cache_folder
    from distcxr.data.cache.build import build_cache
    from distcxr.data.dataset import open_dataset
    from distcxr.data.loaders.budget import thread_budget
    from distcxr.recipe import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    workers = thread_budget(1) if args.workers is None else args.workers
    if workers < 1:
        raise ValueError(f"--workers {workers}: at least 1 thread is needed")
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
    print(f"{folder}: {built.num_images:,} images of {size} x {size} pixels, {shown_size(built.num_bytes)}")
    if not built.num_decoded and not built.num_resumed:
        print(f"nothing to do: every image was checked in {seconds:.1f} s")
    else:
        reasons = {
            "changed": built.num_changed, "damaged": built.num_damaged, "new": built.num_new,
            "kept from a build that was stopped": built.num_resumed,
        }  # fmt: skip
        detail = "".join(f", {num:,} {word}" for word, num in reasons.items() if num)
        print(f"{built.num_decoded:,} images decoded in {seconds:.1f} s with {workers} threads{detail}")
    if built.unreadable:
        print(f"{len(built.unreadable):,} images can't be read; training names them and counts them for nothing:")
        for path, reason in list(built.unreadable.items())[:_SHOWN]:
            print(f"  {path}: {reason}")
        if len(built.unreadable) > _SHOWN:
            print(f"  and {len(built.unreadable) - _SHOWN:,} more, in {folder / 'cache.json'}")
    return 0
