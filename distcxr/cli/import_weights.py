"""`distcxr import SRC DST`: weights that somebody saved, as a safetensors file for `model.weights`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "import",
        help="turn somebody's weights into a safetensors file for model.weights",
        description="Takes the weights out of a PyTorch file (.pth, .pt, .tar, .ckpt) and writes them as safetensors, "
        "by the names they have. State dicts need no import: model.weights reads them as they are. Whole pickled "
        "models (torchxrayvision's files, torch.save(model)) do, and --trust with it.",
    )
    parser.add_argument("source", type=Path, metavar="SRC", help="the PyTorch file")
    parser.add_argument("destination", type=Path, metavar="DST", help="the file to write, NAME.safetensors")
    parser.add_argument(
        "--trust", action="store_true",
        help="unpickle it: this runs whatever code the file holds, in a process of its own but with your rights "
        "to your files and network. Only for files of people you trust",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Import the file; a ValueError goes to the caller."""
    from distcxr.models.unpickle import import_weights

    num_tensors = import_weights(args.source, args.destination, trust=args.trust)
    print(f"{num_tensors:,} tensors: {args.destination}; use it with model.weights={args.destination}")
    return 0
