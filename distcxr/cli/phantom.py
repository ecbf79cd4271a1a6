"""`distcxr phantom OUT`: write a folder of synthetic chest X-rays laid out like NIH ChestX-ray14 or another dataset."""

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the verb to what `ArgumentParser.add_subparsers` returned."""
    parser = subparsers.add_parser("phantom", help="write synthetic chest X-rays laid out like NIH's, or others'")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write; new, empty or of an earlier run")
    parser.add_argument("--images", type=int, default=2000, help="how many images (default %(default)s)")
    parser.add_argument("--size", type=int, default=256, help="width and height in pixels (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other patients (default %(default)s)")
    parser.add_argument(
        "--layout", choices=("nih", "csv", "folders", "chexpert", "chestmnist"), default="nih",
        help="the dataset to look like, data.dataset of a recipe (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one per core)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the folder and say so; a ValueError goes to the caller."""
    from distcxr.data.phantom.dataset import write_phantom

    settings = {"images": args.images, "size": args.size, "seed": args.seed, "workers": args.workers}
    write_phantom(args.out, layout=args.layout, **settings)
    print(f"{args.out}: {args.images} synthetic X-rays of {args.size} x {args.size} pixels, seed {args.seed}")
    return 0
