"""What of a launch is not in the recipe, or may change on resume, and what of the results that leaves as it was."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from distcxr.data.readers.make import PackReader
from distcxr.device import device_name
from distcxr.engine.setup import Setup

logger = logging.getLogger(__name__)

_WORDS = {
    "world_size": "ranks",
    "per_device_batch_size": "images per device and pass",
    "loader": "loader",
    "device": "device",
    "threads": "CPU threads",
    "torch": "PyTorch",
    "deterministic": "train.deterministic",
}
"""How a message names them."""
_RATES = ("p", "drop_prob", "drop_rate", "dropout")
"""How layers of PyTorch, torchvision and timm call the probability with which they drop something."""


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
        "deterministic": setup.recipe.train.deterministic,
    }
    return found if device.type == "cuda" else found | {"threads": torch.get_num_threads()}


def log_changed(before: Mapping[str, Any], setup: Setup) -> None:
    """Warn of what is no longer as it was when the checkpoint was made, with what that changes and what it does not.

    Args:
        before: `conditions` of the checkpoint; empty for one that is older than them.
        setup: its network as it is trained: layers in evaluation mode count for nothing.
    """
    now = conditions(setup)
    changed = [name for name in now if name in before and before[name] != now[name]]
    if not changed:
        return
    named = "; ".join(f"{_WORDS[name]} {before[name]} before, {now[name]} now" for name in changed)
    others = ["sums, which are rounded in another order"]
    if "loader" in changed:
        others.append("pixels, where the loaders read them a grey level apart")
    if {"world_size", "per_device_batch_size"} <= before.keys():
        others += _batch_norm(setup, before["world_size"], before["per_device_batch_size"])
    if {"per_device_batch_size", "device", "torch"} & set(changed) and _drops(setup.module):
        others.append("dropout, which has other masks")
    logger.warning(
        f"resumed under other conditions: {named}. As before: the order of samples, global batches, augmentation and "
        f"learning rates. Not as before: {'; '.join(others)}"
    )


def _batch_norm(setup: Setup, world_size: int, per_device: int) -> list[str]:
    """What is no longer as before in the network's BatchNorm, if anything."""
    layers = [name for name, layer in setup.module.named_modules() if isinstance(layer, _BatchNorm) and layer.training]
    if not layers:
        return []
    plan, train, found = setup.plan, setup.recipe.train, []
    ours, theirs = plan.per_device_batch_size, per_device
    if train.sync_bn:  # of each rank's micro-batch together: the same images again only where that is the whole batch
        ours, theirs = ours * plan.world_size, theirs * world_size
    is_same = ours == theirs and (not train.sync_bn or world_size == plan.world_size or ours == plan.global_batch_size)
    if not is_same:
        keeps = not train.sync_bn and plan.global_batch_size % (per_device * plan.world_size) == 0
        where = layers[0] if len(layers) == 1 else f"{len(layers)} layers, {layers[0]} to {layers[-1]}"
        hint = f" (train.per_device_batch_size={per_device} would keep them)" if keeps else ""
        found.append(f"BatchNorm's groups, of {ours} images now, {theirs} before, in {where}{hint}")
    accumulation = plan.global_batch_size // (world_size * per_device)
    if train.bn_averages == "device" and plan.accumulation != accumulation:
        found.append(
            f"BatchNorm's running averages, with which evaluation computes: rank 0 averages {plan.accumulation} "
            f"micro-batches an update now, {accumulation} before (a new run with "
            "train.bn_averages=global would not depend on it)"
        )
    return found


def _drops(module: nn.Module) -> bool:
    rates = (getattr(layer, name, None) for layer in module.modules() for name in _RATES)
    return any(isinstance(rate, float) and rate > 0 for rate in rates)
