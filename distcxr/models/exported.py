"""Exports weights as a plain state dict with torchvision's or timm's names, and the code that loads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from distcxr.models.heads import Headed
from distcxr.models.libraries import torchvision_size
from distcxr.models.variants import of_timm
from distcxr.models.weights import first_conv
from distcxr.recipe import Recipe


def export_weights(
    module: nn.Module, recipe: Recipe, findings: Sequence[str], side: int, *, plain: bool
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A network's weights, and what is needed to use them.

    Args:
        module: of `factory.build_model`, with its weights.
        recipe: that it was trained with.
        side: of the images that it sees, in pixels.
        plain: whether torchvision or timm alone must be able to load it. torchvision's networks then have 3 channels:
            a first convolution for 1 is spread over them, which gives the same for a grey image in all three.

    Returns contiguous tensors on the CPU by name; `model`, `library`, `findings`, `in_chans`, `load` (lines of Python
    that make the network `model` of the state dict `state`) and `notes`.

    Raises ValueError: `plain`, and the network has a head that is not the library's own.
    """
    name, library, in_chans = recipe.model.name, recipe.model.library, recipe.model.in_chans
    if plain and isinstance(module, Headed):
        raise ValueError(
            f"the head of this {name} ({_described(recipe)}) does not exist in {library}, so a plain {name} can't load "
            "it: write it with distcxr's own names, --format safetensors"
        )
    state = {key: value.detach().cpu().contiguous().clone() for key, value in module.state_dict().items()}
    notes = []
    if plain and library == "torchvision" and in_chans == 1:
        key = f"{first_conv(module)[0]}.weight"
        state[key] = (state[key] / 3).repeat(1, 3, 1, 1)
        in_chans = 3
        notes.append("trained with 1 channel, written with 3: give it the grey image three times")
    if isinstance(module, Headed):
        notes.append(f"the head ({_described(recipe)}) is distcxr's own: distcxr.models.heads describes its names")
        load = _load_with_distcxr(recipe, len(findings), side)
    elif library == "torchvision":
        load, network = _load_with_torchvision(name, len(findings), side)
        if in_chans == 3:
            network.load_state_dict(state)  # the lines are checked before they are given out
        else:
            load = _load_with_distcxr(recipe, len(findings), side)
    elif library == "python":
        module_name, _, function = name.partition(":")
        arguments = f"num_classes={len(findings)}, in_chans={in_chans}, image_size={side}"
        load = [f"from {module_name} import {function}", f"model = {function}({arguments})"]
        notes.append(f"the network is {name}: who loads it needs that module, too")
    else:
        known, more = of_timm(name)
        arguments = _arguments(known, **more, num_classes=len(findings), in_chans=in_chans)
        load = ["import timm", f"model = timm.create_model({arguments}{_timm_size(known, side)})"]
    about = {
        "model": name, "library": library, "findings": list(findings), "in_chans": in_chans,
        "load": [*load, "model.load_state_dict(state)"], "notes": notes,
    }  # fmt: skip
    return state, about


def _load_with_torchvision(name: str, num_classes: int, side: int) -> tuple[list[str], nn.Module]:
    import torchvision

    size = torchvision_size(name, side)
    network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **size)
    lines = [
        "import torch, torchvision",
        f"model = torchvision.models.get_model({_arguments(name, num_classes=num_classes, **size)})",
    ]
    if isinstance(network, torchvision.models.SqueezeNet):
        lines.append("model.classifier[2] = torch.nn.Identity()  # its ReLU would cut negative logits off")
    if isinstance(network, torchvision.models.MaxVit):
        width = network.classifier[-1].in_features
        network.classifier[-1] = nn.Linear(width, num_classes)
        lines.append(f"model.classifier[-1] = torch.nn.Linear({width}, {num_classes})  # torchvision's has no bias")
    return lines, network


def _load_with_distcxr(recipe: Recipe, num_classes: int, side: int) -> list[str]:
    model = recipe.model
    given: dict[str, Any] = {
        "library": model.library, "num_classes": num_classes, "in_chans": model.in_chans, "image_size": side,
    }  # fmt: skip
    lines = ["from distcxr.models.factory import build_model"]
    if model.head.kind != "linear" or model.head.metadata:
        lines += [
            "from distcxr.data.metadata import metadata_width",
            "from distcxr.recipe.model import Head",
            f"head = Head.model_validate({model.head.model_dump(mode='json')!r})",
        ]
        more = ", head=head, num_metadata=metadata_width(head.metadata)"
    else:
        more = ""
    return [*lines, f"model = build_model({_arguments(model.name, **given)}{more})"]


def _timm_size(name: str, side: int) -> str:
    import timm

    return f", img_size={side}" if getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False) else ""


def _arguments(name: str, **given: Any) -> str:
    return ", ".join([repr(name), *(f"{key}={value!r}" for key, value in given.items())])


def _described(recipe: Recipe) -> str:
    head = recipe.model.head
    return f"{head.kind}{' with ' + ', '.join(head.metadata) if head.metadata else ''}"
