"""What of a launch is not in the recipe, or may change on resume, and still moves the last bits of the weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from distcxr.data.readers.make import PackReader
from distcxr.engine.setup import Setup
from distcxr.runtime import device_name

logger = logging.getLogger(__name__)

_WORDS = {
    "world_size": "ranks",
    "per_device_batch_size": "images per device and pass",
    "loader": "loader",
    "device": "device",
    "threads": "CPU threads",
    "torch": "PyTorch",
}
"""How a message names them."""


def conditions(setup: Setup) -> dict[str, Any]:
    """Of this launch, for `checkpoint.json`."""
    reader, device = setup.reader, setup.runtime.device
    inner = reader.inner if isinstance(reader, PackReader) else reader
    found = {
        "world_size": setup.runtime.world_size,
        "per_device_batch_size": setup.plan.per_device_batch_size,
        "loader": type(inner).__name__.removesuffix("Reader"),
        "device": device_name(device),
        "torch": torch.__version__,
    }
    return found if device.type == "cuda" else found | {"threads": torch.get_num_threads()}


def log_changed(before: Mapping[str, Any], setup: Setup) -> None:
    """Warn of what is no longer as it was when the checkpoint was made.

    Args:
        before: `conditions` of the checkpoint; empty for one that is older than them.
    """
    changed = [
        f"{_WORDS[name]} {before[name]} before, {now} now"
        for name, now in conditions(setup).items()
        if name in before and before[name] != now
    ]
    if changed:
        logger.warning(
            f"resumed under other conditions: {'; '.join(changed)}. Sums are rounded in another order, and a loader "
            "may read pixels a grey level apart, so the weights may differ from those of an undisturbed run"
        )
