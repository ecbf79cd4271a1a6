"""`train.deterministic`: what PyTorch has to do the same way every time, and operations that it can't.

The same recipe, loader, ranks, devices and versions then give the same bits twice. Order, augmentation and dropout are
functions of the seed in any case.
"""

from __future__ import annotations

import logging
import os
import re

import torch

logger = logging.getLogger(__name__)

_CUBLAS, _WORKSPACE = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
_NO_KERNEL = re.compile(r"(\S+) does not have a deterministic implementation")


def set_deterministic(wanted: bool) -> None:
    """Have PyTorch take deterministic kernels alone, or the fastest; for the whole process.

    Called before anything computes on a GPU: cuBLAS reads its variable once.
    """
    if wanted:
        os.environ[_CUBLAS] = _WORKSPACE  # any other value may let cuBLAS share a workspace between streams
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.deterministic = wanted
    torch.backends.cudnn.benchmark = not wanted  # by measured time, which differs from run to run


def log_deterministic() -> None:
    """Log what `set_deterministic` has switched, and how to see what that costs."""
    logger.info(
        "train.deterministic=true: torch.use_deterministic_algorithms and cudnn.deterministic are on, cudnn.benchmark "
        f"is off, {_CUBLAS}={_WORKSPACE}. `python benchmarks/step.py --loops ours --ours eager,deterministic` measures "
        "what that costs"
    )


def without_kernel(error: BaseException) -> str | None:
    """The sentence for an operation that has no deterministic kernel; None for any other error."""
    found = _NO_KERNEL.search(str(error)) if isinstance(error, RuntimeError) else None
    if found is None:
        return None
    return (
        f"train.deterministic=true: {found[1]} has no deterministic kernel on this device. Set "
        "train.deterministic=false, or take a network, loss or augmentation without this operation"
    )
