"""Networks that timm builds and has no name for: those of published X-ray weights.

| name | | |
|---|---|---|
| `eva_x_{tiny,small,base}_patch16_224` | EVA-02 with patches of 16 pixels | as hustvl/EVA-X builds it |
| `vit_{small,base}_patch16_gap_224` | ViT with the mean of its patches | as lambert-x/medical_mae fine-tunes it |
"""

from __future__ import annotations

from typing import Any

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"eva_x_{size}_patch16_224": (f"eva02_{size}_patch14_224", {"patch_size": 16, "ref_feat_shape": (14, 14)})
        for size in ("tiny", "small", "base")
    },
    **{
        f"vit_{size}_patch16_gap_224": (f"vit_{size}_patch16_224", {"global_pool": "avg"}) for size in ("small", "base")
    },
}
"""Name to what timm is asked for: a name of its own and arguments."""


def of_timm(name: str) -> tuple[str, dict[str, Any]]:
    """timm's own name of a network and what to build it with besides: nothing for timm's own names."""
    return VARIANTS.get(name, (name, {}))
