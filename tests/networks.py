"""Networks for tests: built from a fixed seed and run on fixed images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distcxr.models.factory import build_model


def build(name: str = "resnet18", library: Any = "torchvision", **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, library=library, **({"num_classes": 14} | changes))


def grey(side: int = 64) -> Tensor:
    return torch.randn(2, 1, side, side, generator=torch.Generator().manual_seed(1))


def forward(model: nn.Module, images: Tensor) -> Tensor:
    """In training mode: with the batch's own statistics, untrained networks give logits that differ."""
    torch.manual_seed(0)
    with torch.no_grad():
        logits: Tensor = model.train()(images)
    return logits
