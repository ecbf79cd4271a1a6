"""How many processes `train` and `test` start."""

from __future__ import annotations

import argparse

_ON_CPU = 2


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Add the option `--processes`."""
    parser.add_argument(
        "--processes", type=int, metavar="N", help="processes (default: one per GPU; without GPUs two, or one per core)"
    )


def num_processes(asked: int | None) -> int:
    """Processes to start.

    Raises:
        ValueError: fewer than one, or more than there are GPUs.
    """
    from distcxr.cluster.slots import usable_cores, visible_gpus, whole_machine

    gpus = visible_gpus()
    if asked is None and not gpus:
        return min(_ON_CPU, len(usable_cores()))
    return whole_machine(asked, gpus)[0].processes
