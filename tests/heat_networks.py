"""Networks and images for tests of heat maps."""

from __future__ import annotations

from typing import Any

import torch
import torchvision.models as tv
from torch import Tensor, nn


def colour(side: int = 64, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def lively(model: nn.Module) -> nn.Module:
    """Heads drawn wide, so that logits differ."""
    for part in model.modules():
        if isinstance(part, nn.Linear) and part.out_features == 14:
            nn.init.normal_(part.weight, std=0.5)
    return model


def small_swin() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    torch.manual_seed(0)
    return SwinTransformer(
        img_size=96, window_size=3, embed_dim=16, depths=(1, 1), num_heads=(2, 2), num_classes=14
    )  # fmt: skip


def small_vit(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"image_size": 96, "patch_size": 16, "num_layers": 2, "num_heads": 2, "hidden_dim": 32}
    model = tv.VisionTransformer(**(sizes | {"mlp_dim": 64, "num_classes": 14} | changes))
    nn.init.normal_(model.heads.head.weight, std=0.5)
    return model
