"""Networks by their names in torchvision and timm: which there are, which sizes they take, and how they are built.

What is around them, weights of others and heads, is `factory.py`'s.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from distcxr.models.drop_path import set_stochastic_depth, without_stochastic_depth
from distcxr.models.heads import find_head, head_parameter_names, init_head, replace_head, set_head_dropout
from distcxr.models.importers import WeightsFile, split
from distcxr.models.variants import VARIANTS, of_timm
from distcxr.models.weights import fetch_timm_file, fetch_torch_file, load_backbone, make_first_conv_grey

Library = Literal["torchvision", "timm", "python"]

REFUSED = {
    name: f"torchvision's {name} returns auxiliary logits beside its own and normalises its input again; "
    "inception_v3 of model.library=timm does neither"
    for name in ("googlenet", "inception_v3")
}
"""Torchvision's classifiers that are not built, and why."""
_IMAGENET_CLASSES = 1000
USUAL_SIDE = 224
"""Of a network that is asked for without the size of its images, in pixels."""
_TORCHVISION_MULTIPLES = {
    "vit_b_16": 16, "vit_b_32": 32, "vit_l_16": 16, "vit_l_32": 32, "vit_h_14": 14, "maxvit_t": 224,
}  # fmt: skip
"""Networks that take sides that are multiples of this alone."""


@dataclass(frozen=True)
class Wanted:
    """A network to build; what is not described here is as of `factory.build_model`.

    Attributes:
        imagenet: with the library's default weights for this name; else as the library initialises it.
    """

    library: Literal["torchvision", "timm"]
    name: str
    num_classes: int
    in_chans: int
    image_size: int | None
    drop_rate: float | None
    drop_path: float | None
    imagenet: bool


def build_network(wanted: Wanted) -> nn.Module:
    """The network with a new last layer, on the CPU, in training mode.

    Raises:
        ValueError: an unknown name, a size it can't take, or stochastic depth for a network that has none.
        WeightsUnavailable: ImageNet's weights are neither on this machine nor can be downloaded.
    """
    check_name(wanted.library, wanted.name)
    return _build_torchvision(wanted) if wanted.library == "torchvision" else _build_timm(wanted)


def check_name(library: Literal["torchvision", "timm"], name: str) -> None:
    """Raises ValueError: the library has no such classifier, or it is not built; with the nearest names."""
    (_check_torchvision_name if library == "torchvision" else _check_timm_name)(name)


def torchvision_size(name: str, side: int) -> dict[str, Any]:
    """torchvision's arguments that build the network for images of `side` pixels; most need none."""
    if name not in _TORCHVISION_MULTIPLES:
        return {}
    return {"input_size": (side, side)} if name == "maxvit_t" else {"image_size": side}


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


def _build_torchvision(wanted: Wanted) -> nn.Module:
    name, side = wanted.name, wanted.image_size
    import torchvision

    from distcxr.models.joined_maps import join_maps

    if side and side % (multiple := _TORCHVISION_MULTIPLES.get(name, 1)):
        raise _wrong_multiple(name, side, multiple)
    size = torchvision_size(name, side) if side else {}
    model: nn.Module = torchvision.models.get_model(name, weights=None, **size)
    join_maps(model)
    head = find_head(model)[1]
    assert (head.out_features if isinstance(head, nn.Linear) else head.out_channels) == _IMAGENET_CLASSES
    replace_head(model, wanted.num_classes)
    if wanted.drop_rate is not None:
        set_head_dropout(model, wanted.drop_rate)
    if wanted.drop_path is not None:
        set_stochastic_depth(model, name, wanted.drop_path)
    if wanted.in_chans == 1:
        make_first_conv_grey(model)
    if wanted.imagenet:
        default = torchvision.models.get_model_weights(name).DEFAULT
        parts = split(WeightsFile(str(default), fetch_torch_file(default.url)), model)
        load_backbone(model, parts.backbone, source=str(default), but=head_parameter_names(model))
    return model


def _build_timm(wanted: Wanted) -> nn.Module:
    name = wanted.name
    import timm

    known, more = of_timm(name)
    if wanted.imagenet and more:
        raise ValueError(
            f"model.weights=imagenet: there are none for {name}: take weights by name (docs/foundation.md)"
        )
    shape: dict[str, Any] = more | {"in_chans": wanted.in_chans}
    if wanted.drop_rate is not None:
        shape["drop_rate"] = wanted.drop_rate
    if wanted.drop_path is not None:
        shape["drop_path_rate"] = wanted.drop_path
    cfg = timm.get_pretrained_cfg(known)
    side = wanted.image_size if getattr(cfg, "fixed_input_size", False) else None
    if side:
        shape["img_size"] = side
    model: Any  # timm's are modules with `reset_classifier`
    try:
        if wanted.imagenet:
            # With its own number of classes first: given ours, timm would load without asking for every key.
            overlay = {"file": str(fetch_timm_file(cfg)), "custom_load": False}
            model = timm.create_model(known, pretrained=True, pretrained_cfg_overlay=overlay, **shape)
            model.reset_classifier(wanted.num_classes)
        else:
            model = timm.create_model(known, pretrained=False, num_classes=wanted.num_classes, **shape)
    except TypeError as error:
        if wanted.drop_path is None or "drop_path_rate" not in str(error):
            raise
        raise without_stochastic_depth(name, "timm") from error
    except AssertionError as error:
        raise _wrong_size(name, side or USUAL_SIDE, error) from error
    except RuntimeError as error:
        where = f"{overlay['file']} does not fit timm's {name}" if wanted.imagenet else f"model.name={name}"
        raise ValueError(f"{where}: {error}") from error
    init_head(find_head(model)[1])
    assert isinstance(model, nn.Module)
    if side and side != cfg.input_size[-1]:
        _try_size(model, name, side, wanted.in_chans)
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
