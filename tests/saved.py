"""What a checkpoint holds."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint: weights, buffers, optimiser."""
    found = dict(load_file(checkpoint / "model.safetensors"))
    if (checkpoint / "trained.safetensors").exists():
        trained = load_file(checkpoint / "trained.safetensors")
        assert any(not torch.equal(found[name], value) for name, value in trained.items())
        found |= {f"trained.{name}": value for name, value in trained.items()}
    optimizer = torch.load(checkpoint / "training.pt", weights_only=True)["optimizer"]
    for number, state in optimizer["state"].items():
        found |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
    return found
