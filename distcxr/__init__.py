# SPDX-FileCopyrightText: 2026 the distcxr authors
# SPDX-License-Identifier: Apache-2.0
"""Distributed multi-GPU training for chest X-ray classification, and `load` for the use of what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from distcxr.version import __version__ as __version__

if TYPE_CHECKING:
    from distcxr.api import Predictor


def load(*runs: str | Path, device: str | None = None) -> Predictor:
    """Trained networks that predict images: `distcxr.load("runs/a").predict(["chest.png"])`.

    Joins no process group, installs no signal handler, and leaves every setting of the process as it is.

    Args:
        runs: run folders (of each its best weights) or checkpoints; the logits of several are averaged.
        device: `cpu`, `cuda` (every visible GPU) or `cuda:1`; by default every visible GPU, without one the CPU.

    Raises:
        ValueError: no whole checkpoint there, one of another version, or several that can't be averaged.
    """
    from distcxr.api import load_runs  # torch and all: seconds

    return load_runs(runs, device)
