"""`build_model`: a network by its name in torchvision or timm, with weights and a head for the findings."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from distcxr.models.drop_path import set_stochastic_depth, without_stochastic_depth
from distcxr.models.foundation import FOUNDATIONS, check_fits, described, find_file, near
from distcxr.models.heads import (
    Headed,
    find_head,
    head_parameter_names,
    init_head,
    replace_head,
    set_head_dropout,
    with_head,
)
from distcxr.models.importers import WeightsFile, load_head, read_weights, split
from distcxr.models.own_network import build_own
from distcxr.models.variants import VARIANTS, of_timm
from distcxr.models.weights import fetch_timm_file, fetch_torch_file, load_backbone, make_first_conv_grey
from distcxr.recipe.model import Head

logger = logging.getLogger(__name__)

Library = Literal["torchvision", "timm", "python"]

REFUSED = {
    name: f"torchvision's {name} returns auxiliary logits beside its own and normalises its input again; "
    "inception_v3 of model.library=timm does neither"
    for name in ("googlenet", "inception_v3")
}
"""Torchvision's classifiers that are not built, and why."""
_IMAGENET_CLASSES = 1000
_USUAL_SIDE = 224
_TORCHVISION_MULTIPLES = {
    "vit_b_16": 16, "vit_b_32": 32, "vit_l_16": 16, "vit_l_32": 32, "vit_h_14": 14, "maxvit_t": 224,
}  # fmt: skip
"""Networks that take sides that are multiples of this alone."""


def build_model(
    name: str,
    *,
    library: Library,
    num_classes: int,
    in_chans: int = 3,
    image_size: int | None = None,
    weights: str = "none",
    drop_rate: float | None = None,
    drop_path: float | None = None,
    head: Head | None = None,
    num_metadata: int = 0,
    new_head: bool = False,
    findings: Sequence[str] | None = None,
) -> nn.Module:
    """Build a classifier: float32 [B, in_chans, H, W] to logits [B, num_classes]; on the CPU, training mode.

    With metadata it is called as `model(images, metadata_BM)`. Its own names are the library's; with another head than
    the network's own those of `heads.Headed`.

    Args:
        name: as the library spells it; timm's may carry a tag (`resnet50.a1_in1k`). Of `python` a function of a
            user's own, which `own_parts` has opened: the network makes its logits itself.
        num_classes: findings; the head is new for them unless a local file has one (`importers.load_head`).
        in_chans: 1 sums the first convolution's weights over its 3 input channels: a grey image then gives
            the activations that it gives repeated in 3 channels, if all 3 are normalised alike.
        image_size: side of the images in pixels, for networks that are built for one size (ViT, Swin); None is the
            network's own. Position embeddings of timm's are resized, torchvision's weights need their own size.
        weights: `none`; `imagenet`, the library's default for this name; a name of `foundation.FOUNDATIONS`; or a path
            (`importers.read_weights`). The last two must have all of the backbone.
        drop_rate: dropout before the head, in place of the network's own; None keeps that.
        drop_path: stochastic depth of the last block, the blocks before it have less; None keeps the network's own.
        head: the recipe's `model.head`; None is the network's own last layer.
        num_metadata: columns M of the metadata that the head takes beside the image; 0 for none.
        new_head: whatever head a local file has, take a new one.
        findings: the logits' findings, compared with those that a checkpoint was trained for.

    Raises:
        ValueError: an unknown name, a size the network can't take, weights that don't fit, or stochastic depth for a
            network that has none.
        WeightsUnavailable: `imagenet` or a name, and they are neither on this machine nor can be downloaded.
    """
    if weights in FOUNDATIONS:
        check_fits(weights, library=library, name=name)
        logger.info(described(weights))
    if library == "python":
        model = build_own(name, num_classes=num_classes, in_chans=in_chans, image_size=image_size or _USUAL_SIDE)
    else:
        build = _build_torchvision if library == "torchvision" else _build_timm
        model = build(name, num_classes, in_chans, image_size, drop_rate, drop_path, imagenet=weights == "imagenet")
    file = None if weights in ("imagenet", "none") else _read(weights)
    side = image_size or _USUAL_SIDE

    def headed() -> nn.Module:
        return with_head(
            model, head or Head(), num_classes=num_classes, num_metadata=num_metadata, drop_rate=drop_rate, side=side
        )

    if file is None:
        return headed()
    parts = split(file, model)
    if head and head.kind == "attention" and "attention.weight" in parts.head:  # saved without what follows the map
        built = headed()
        assert isinstance(built, Headed)
        load_backbone(built.backbone, parts.backbone, source=file.source)
    else:
        load_backbone(model, parts.backbone, source=file.source, but=head_parameter_names(model))
        built = headed()
    if new_head:
        logger.info(f"{file.source}: the head is new, as model.new_head asks")
    else:
        load_head(built, parts.head, file, num_classes=num_classes, findings=findings)
    return built


def check_named(name: str, *, library: Library, weights: str) -> None:
    """Refuse a misspelt name or path, as `build_model` does, before anything is read, built or downloaded.

    Raises:
        ValueError: an unknown name, weights by name of another network, or a path where there is nothing.
        WeightsUnavailable: weights by name that have to be put here by hand, and are not.
    """
    if library != "python":  # `own_parts` has imported that
        check_name = _check_torchvision_name if library == "torchvision" else _check_timm_name
        check_name(name)
    if weights in FOUNDATIONS:
        check_fits(weights, library=library, name=name)
        if not FOUNDATIONS[weights].hub:
            find_file(weights)
    elif weights not in ("imagenet", "none") and not Path(weights).expanduser().exists():
        _read(weights)


def _read(weights: str) -> WeightsFile:
    one = FOUNDATIONS.get(weights)
    path = find_file(weights) if one else Path(weights)
    try:
        file = read_weights(path)
    except ValueError as error:  # begins with the path
        hint = "" if one or path.expanduser().exists() else near(weights)
        raise ValueError(f"model.weights={error}{hint}") from error
    return replace(file, layout=one.layout) if one else file


def torchvision_size(name: str, side: int) -> dict[str, Any]:
    """torchvision's arguments that build the network for images of `side` pixels; most need none."""
    if name not in _TORCHVISION_MULTIPLES:
        return {}
    return {"input_size": (side, side)} if name == "maxvit_t" else {"image_size": side}


def sync_batchnorm(model: nn.Module) -> nn.Module:
    """The model with BatchNorm statistics over all ranks; weights and state-dict keys stay.

    timm's conversion, for models of both libraries: PyTorch's own would take the activation out of timm's
    normalise-and-activate layers.
    """
    from timm.layers import convert_sync_batchnorm

    converted: nn.Module = convert_sync_batchnorm(model)
    return converted


def _check_torchvision_name(name: str) -> None:
    if name in REFUSED:
        raise ValueError(f"model.name={name}: {REFUSED[name]}")
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)  # classifiers; not detection or video
    if name not in known:
        raise _unknown(name, "torchvision", [n for n in known if n not in REFUSED])


def _check_timm_name(name: str) -> None:
    import timm

    if name in VARIANTS:
        return
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise _unknown(name, "timm", [*timm.list_models(), *VARIANTS])
    tagged = timm.list_models(f"{architecture}.*", pretrained=True)
    if tag and name not in tagged:
        raise _unknown(name, "timm", tagged)


def _build_torchvision(
    name: str,
    num_classes: int,
    in_chans: int,
    image_size: int | None,
    drop_rate: float | None,
    drop_path: float | None,
    imagenet: bool,
) -> nn.Module:
    _check_torchvision_name(name)
    import torchvision

    from distcxr.models.joined_maps import join_maps

    if image_size and image_size % (multiple := _TORCHVISION_MULTIPLES.get(name, 1)):
        raise _wrong_multiple(name, image_size, multiple)
    size = torchvision_size(name, image_size) if image_size else {}
    model: nn.Module = torchvision.models.get_model(name, weights=None, **size)
    join_maps(model)
    head = find_head(model)[1]
    assert (head.out_features if isinstance(head, nn.Linear) else head.out_channels) == _IMAGENET_CLASSES
    replace_head(model, num_classes)
    if drop_rate is not None:
        set_head_dropout(model, drop_rate)
    if drop_path is not None:
        set_stochastic_depth(model, name, drop_path)
    if in_chans == 1:
        make_first_conv_grey(model)
    if imagenet:
        default = torchvision.models.get_model_weights(name).DEFAULT
        parts = split(WeightsFile(str(default), fetch_torch_file(default.url)), model)
        load_backbone(model, parts.backbone, source=str(default), but=head_parameter_names(model))
    return model


def _build_timm(
    name: str,
    num_classes: int,
    in_chans: int,
    image_size: int | None,
    drop_rate: float | None,
    drop_path: float | None,
    imagenet: bool,
) -> nn.Module:
    _check_timm_name(name)
    import timm

    known, more = of_timm(name)
    if imagenet and more:
        raise ValueError(
            f"model.weights=imagenet: there are none for {name}: take weights by name (docs/foundation.md)"
        )
    shape: dict[str, Any] = more | {"in_chans": in_chans} | ({} if drop_rate is None else {"drop_rate": drop_rate})
    if drop_path is not None:
        shape["drop_path_rate"] = drop_path
    cfg = timm.get_pretrained_cfg(known)
    side = image_size if getattr(cfg, "fixed_input_size", False) else None
    if side:
        shape["img_size"] = side
    model: Any  # timm's are modules with `reset_classifier`
    try:
        if imagenet:
            # With its own number of classes first: given ours, timm would load without asking for every key.
            overlay = {"file": str(fetch_timm_file(cfg)), "custom_load": False}
            model = timm.create_model(known, pretrained=True, pretrained_cfg_overlay=overlay, **shape)
            model.reset_classifier(num_classes)
        else:
            model = timm.create_model(known, pretrained=False, num_classes=num_classes, **shape)
    except TypeError as error:
        if drop_path is None or "drop_path_rate" not in str(error):
            raise
        raise without_stochastic_depth(name, "timm") from error
    except AssertionError as error:
        raise _wrong_size(name, side or _USUAL_SIDE, error) from error
    except RuntimeError as error:
        where = f"{overlay['file']} does not fit timm's {name}" if imagenet else f"model.name={name}"
        raise ValueError(f"{where}: {error}") from error
    init_head(find_head(model)[1])
    assert isinstance(model, nn.Module)
    if side and side != cfg.input_size[-1]:
        _try_size(model, name, side, in_chans)
    return model


def _try_size(network: nn.Module, name: str, side: int, in_chans: int) -> None:
    """Run a network that is built for one size on an image of another: timm checks the size only then, and some
    networks silently crop what no patch covers."""
    from timm.layers import PatchEmbed

    patches = next((part for part in network.modules() if isinstance(part, PatchEmbed)), None)
    if patches is not None and side % patches.patch_size[0]:
        raise _wrong_multiple(name, side, patches.patch_size[0])
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, in_chans, side, side))
    except (AssertionError, RuntimeError, IndexError) as error:
        raise _wrong_size(name, side, error) from error
    network.train()


def _wrong_size(name: str, side: int, error: Exception) -> ValueError:
    message = f"data.image_size: model.name={name} can't take images of {side} pixels (after augment's crops): {error}"
    return ValueError(
        f"{message}. Take the size in its name, or that of timm.get_pretrained_cfg('{of_timm(name)[0]}').input_size"
    )


def _wrong_multiple(name: str, side: int, multiple: int) -> ValueError:
    near = max(multiple, round(side / multiple) * multiple)
    return ValueError(
        f"data.image_size: model.name={name} takes sides that are multiples of {multiple} pixels, and gets {side} "
        f"(after augment's crops); the nearest is {near}"
    )


def _unknown(name: str, library: str, known: list[str]) -> ValueError:
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"nearest: {', '.join(near)}" if near else "no name is similar"
    return ValueError(
        f"model.name={name}: no such classifier in {library} ({hint}); `distcxr models` lists all of "
        "them, and with '*resnet*' behind it those of such names"
    )
