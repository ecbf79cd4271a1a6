"""Checks that on one GPU the same run with 1, 2 and 4 ranks learns the same and scores every image once.

    python -m gpu_suite.ranks gloo RECIPE [key=value ...] --output FOLDER --json FILE
    python -m gpu_suite.ranks nccl RECIPE [key=value ...] --output FOLDER --json FILE [--library libnccl.so.2]

NCCL takes several ranks on a GPU from 2.30 on, where NCCL_MULTI_RANK_GPU_ENABLE=1 asks for it. With gloo the tensors of
a GPU are exchanged through the host. The network has no BatchNorm, as its statistics are each rank's own.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

from gpu_suite.training_runs import Row, arguments, difference, figures, finite, launch

RANKS = (1, 2, 4)
MOST_DIFFERENCE = 1e-3
"""Between the losses of 1 and several ranks, relative: float32 sums in another order, over some steps."""
_NETWORK = (
    "model.library=timm", "model.name=test_vit", "model.weights=none", "train.precision=no", "train.tf32=false",
    "train.max_steps=6", "eval.splits=[test]",
)  # fmt: skip


def main() -> int:
    """Run with each number of ranks; 1 where a run failed or learnt something else."""
    args = arguments(__doc__ or "", {"gloo": compare, "nccl": compare})
    rows = args.work(args)
    for row in rows:
        print(row)
    return int(any(row["note"] for row in rows))


def compare(args: argparse.Namespace) -> list[Row]:
    """A row for each number of ranks; written as they come."""
    environment = {"DISTCXR_BACKEND": args.verb}
    if args.verb == "nccl":
        environment |= {"NCCL_MULTI_RANK_GPU_ENABLE": "1", "NCCL_DEBUG": "VERSION"}
        if args.library:
            environment["LD_PRELOAD"] = f"{args.library}:{os.environ.get('LD_PRELOAD', '')}".rstrip(":")
    rows: list[Row] = []
    alone = args.output / f"{args.verb}-1"
    for ranks in RANKS:
        folder = args.output / f"{args.verb}-{ranks}"
        ended = launch(args.recipe, [*args.overrides, *_NETWORK], folder, ranks=ranks, environment=environment)
        row = {"what": args.verb, "ranks": ranks, **figures(folder, ended), **found_in(folder)}
        row["scored"] = num_scored(folder)
        differs_by = difference(alone, folder)
        row["differs_by"] = finite(differs_by)
        if not row["note"] and row["world_size"] != ranks:
            row["note"] = f"the run's world has {row['world_size']} ranks"
        if not row["note"] and row["scored"] != num_scored(alone):
            row["note"] = f"{row['scored']} images scored, and {num_scored(alone)} by one rank"
        if not row["note"] and not differs_by <= MOST_DIFFERENCE:
            row["note"] = "other losses than with one rank"
        row["library"] = library_version(args.library) if args.library else ""
        rows.append(row)
        args.json.write_text(json.dumps(rows, indent=1))
    return rows


def found_in(folder: Path) -> Row:
    """A run's ranks, from its environment.json."""
    try:
        content: dict[str, Any] = json.loads((folder / "environment.json").read_text())
    except (OSError, ValueError):
        return {"world_size": None, "backend": None}
    return {"world_size": content["world_size"], "backend": content["backend"]}


def num_scored(folder: Path) -> int:
    """Rows of the test split's predictions."""
    try:
        with (folder / "predictions_test.csv").open(newline="") as file:
            return sum(1 for _ in csv.reader(file)) - 1
    except OSError:
        return 0


def library_version(library: Path) -> str:
    """The version that an NCCL library names, for example 23007 for 2.30.7."""
    version = ctypes.c_int()
    ctypes.CDLL(str(library)).ncclGetVersion(ctypes.byref(version))
    return str(version.value)


if __name__ == "__main__":
    sys.exit(main())
