"""Weights of other projects by timm's names; `importers` calls it for every file.

| in the file | of | what is done |
|---|---|---|
| `embeddings.*`, `encoder.layer.N.*` | DINOv2 of transformers: RAD-DINO, CXformer | renamed; query, key, value joined |
| `register_tokens`, `pos_embed` of the class token, too | DINOv2 with registers | that is added to the class token |
| `mlp.w1`, `w2`, `w12`, `w3`, `ffn_ln` | EVA-02: EVA-X | renamed; the last norm becomes that of the mean |
| `mask_token`, `decoder_*`, `lm_head`, `rope.*` | pretraining alone | left out |
| `layers.0.downsample`, `attn_mask` | Swin before timm 0.9: Ark, Ark+ | a stage later; masks are left out |
| `projector`, `omni_heads` | heads of Ark's pretraining | left out |
| `pos_embed` for another number of patches | any ViT | resized, bicubic, as timm does |

Anything else keeps its name, so that strict loading lists it.
"""

from __future__ import annotations

import logging
import math
import re
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_HUGGING_FACE = "embeddings.patch_embeddings.projection.weight"
_HUGGING_FACE_NAMES = (  # the attention's second names are of transformers 5, in memory
    (r"embeddings\.cls_token$", "cls_token"),
    (r"embeddings\.position_embeddings$", "pos_embed"),
    (r"embeddings\.register_tokens$", "register_tokens"),
    (r"embeddings\.mask_token$", "mask_token"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"encoder\.layer\.(\d+)\.attention\.(?:output\.dense|o_proj)\.", r"blocks.\1.attn.proj."),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.", r"blocks.\1.attn.\2."),
    (r"encoder\.layer\.(\d+)\.attention\.([qkv]_proj)\.", r"blocks.\1.attn.\2."),
    (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1$", r"blocks.\1.ls\2.gamma"),
    (r"encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"layernorm\.", "norm."),
)
_EVA_NAMES = (
    ("mlp.ffn_ln.", "mlp.norm."), ("mlp.w12.", "mlp.fc1."), ("mlp.w1.", "mlp.fc1_g."), ("mlp.w2.", "mlp.fc1_x."),
    ("mlp.w3.", "mlp.fc2."),
)  # fmt: skip
_OLD_SWIN = "layers.0.downsample.reduction.weight"
_PRETRAINING = re.compile(
    r"mask_token$|decoder_|lm_head\.|projector\.|omni_heads\.|(?:.*\.)?(?:rope\.freqs_|attn_mask$|relative_position_index$)"
)
_PATCHES, _POSITIONS = "patch_embed.proj.weight", "pos_embed"


def from_hugging_face(state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """DINOv2 as transformers names it, behind any prefix, by DINOv2's own names; other files as they are.

    Raises ValueError: query, key and value of a block can't be joined.
    """
    prefix = next((name.removesuffix(_HUGGING_FACE) for name in state if name.endswith(_HUGGING_FACE)), None)
    if prefix is None:
        return state
    _log(source, "transformers' DINOv2 (RAD-DINO, CXformer)")
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            for pattern, replacement in _HUGGING_FACE_NAMES:
                name, found = re.subn(f"^{pattern}", replacement, name)
                if found:
                    break
        renamed[name] = value
    for parts in (("query", "key", "value"), ("q_proj", "k_proj", "v_proj")):
        for name in [name for name in renamed if f".attn.{parts[0]}." in name]:
            joined = [renamed.pop(name.replace(parts[0], part), None) for part in parts]
            try:
                renamed[name.replace(parts[0], "qkv")] = torch.cat(joined)  # type: ignore[arg-type]
            except (TypeError, RuntimeError) as error:
                raise ValueError(f"{source}: {', '.join(parts)} of {name} are not all there, or do not fit") from error
    return renamed


def to_timm(state: dict[str, Tensor], network: Any, source: str) -> dict[str, Tensor]:
    """A state dict by timm's names for `network`; of a network that is none of timm's, and of files that need
    nothing, as it is.

    Args:
        state: without a prefix.
        source: of the weights, for messages.

    Raises ValueError: patches of another size or tokens of another width; positions that can't be resized.
    """
    if not hasattr(network, "forward_features"):
        return state
    own = network.state_dict()
    pretrained = "mask_token" in state
    if _OLD_SWIN in state:
        _log(source, "a Swin of before timm 0.9 (Ark, Ark+)")
        state = {_later_stage(name): value for name, value in state.items()}
    if "blocks.0.mlp.w3.weight" in state and "blocks.0.attn.v_bias" in state:
        _log(source, "EVA-02 (EVA-X)")
        state = _from_eva(state, norm_is_of_mean=pretrained and "fc_norm.weight" in own)
    state = {name: value for name, value in state.items() if name in own or not _PRETRAINING.match(name)}
    if "register_tokens" in state:
        state["reg_token"] = state.pop("register_tokens")
    if "norm.weight" in state.keys() - own.keys() and "fc_norm.weight" in own.keys() - state.keys():
        logger.info(f"{source}: its norm is of each patch; that of their mean is new, as in MAE's fine-tuning")
        state = {name: value for name, value in state.items() if not name.startswith("norm.")}
        state |= {name: own[name] for name in ("fc_norm.weight", "fc_norm.bias")}
    if _PATCHES in state and _PATCHES in own:
        _check_patches(state[_PATCHES], own[_PATCHES], source)
    return _fit_positions(state, network, source) if _POSITIONS in state and _POSITIONS in own else state


def _log(source: str, what: str) -> None:
    logger.info(f"{source} has the names of {what}, which become timm's; docs/foundation.md has what input those saw")


def _later_stage(name: str) -> str:
    """timm's name of one of an old Swin's parameters."""
    name = re.sub(r"^layers\.(\d+)\.downsample\.", lambda match: f"layers.{int(match[1]) + 1}.downsample.", name)
    return re.sub(r"^head\.(weight|bias)$", r"head.fc.\1", name)


def _from_eva(state: dict[str, Tensor], *, norm_is_of_mean: bool) -> dict[str, Tensor]:
    renamed = {}
    parted = "blocks.0.attn.q_proj.weight" in state
    for name, value in state.items():
        for theirs, ours in _EVA_NAMES:
            name = name.replace(theirs, ours)
        if parted:
            name = re.sub(r"attn\.([qv])_bias$", r"attn.\1_proj.bias", name)
        if norm_is_of_mean:
            name = re.sub(r"^norm\.", "fc_norm.", name)
        renamed[name] = value
    return renamed


def _check_patches(theirs: Tensor, ours: Tensor, source: str) -> None:
    if theirs.ndim != ours.ndim:
        return  # strict loading names both shapes
    for what, of_file, of_network in (
        ("patches", f"{theirs.shape[-1]} pixels a side", f"{ours.shape[-1]} pixels a side"),
        ("tokens", f"{len(theirs)} channels", f"{len(ours)} channels"),
    ):
        if of_file != of_network:
            raise ValueError(
                f"{source}: its {what} have {of_file}, and model.name's {of_network}: take the model.name that "
                "docs/foundation.md has for these weights, or other weights"
            )


def _fit_positions(state: dict[str, Tensor], network: Any, source: str) -> dict[str, Tensor]:
    """Position embeddings [1, prefix + N, D] for the network's patches; those of the class token go into the token
    where the network keeps positions of patches alone (with registers)."""
    from timm.layers import resample_abs_pos_embed

    positions, wanted = state[_POSITIONS], network.pos_embed
    alone = getattr(network, "no_embed_class", False)
    prefix = 0 if alone else getattr(network, "num_prefix_tokens", 0)
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    if positions.shape == wanted.shape or positions.ndim != 3 or grid is None:
        return state
    token = state.get("cls_token")
    if alone and token is not None and not _is_square(positions.shape[1]) and token.shape == positions[:, :1].shape:
        state = state | {"cls_token": token + positions[:, :1]}
        positions = positions[:, 1:]
    patches = positions.shape[1] - prefix
    if positions.shape[1] != wanted.shape[1]:
        if not _is_square(patches):
            raise ValueError(f"{source}: {_POSITIONS} has {patches} positions of patches, which is no square")
        side, (height, width) = math.isqrt(patches), grid
        logger.info(f"{source}: position embeddings resized from {side} x {side} patches to {height} x {width}")
        positions = resample_abs_pos_embed(
            positions, new_size=[height, width], old_size=[side, side], num_prefix_tokens=prefix
        )
    return state | {_POSITIONS: positions}


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number
