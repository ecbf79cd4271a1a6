"""Low-rank adapters beside a network's linear layers (LoRA: Hu et al., ICLR 2022), by peft.

    x ──┬──► W x + b ─────────────────────┬──► y       W and b stay as they were
        └──► A ──► B ──► alpha / rank ────┘            A and B are trained; B begins at 0, so y does as it was

A layer NAME that has one has other names in the state dict:

| key | shape | |
|---|---|---|
| `NAME.base_layer.{weight,bias}` | as before | fixed |
| `NAME.lora_A.default.weight` | [rank, inputs] | trained |
| `NAME.lora_B.default.weight` | [outputs, rank] | trained |

Only what trains has them. What evaluates has plain layers with W + alpha / rank B A, and needs no peft.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor, nn

from distcxr.models.freeze import evaluation_mode
from distcxr.models.heads import head_name, head_parameter_names, pooled_features
from distcxr.recipe.model import Lora

_BASE, _A, _B = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"
_NO_PEFT = "model.lora needs peft: pip install 'distcxr[lora]'"
_NUM_NAMED = 6
_IMAGES = 5  # divides no number of positions in a window of 7 or 8, for which Swin V2 calls layers, too


def add_adapters(module: nn.Module, lora: Lora, *, network: str, in_chans: int, side: int, seed: int) -> None:
    """Give a network on the CPU its adapters, in place; afterwards they and the head alone require a gradient.

    It costs one pass of five images, which shows what layers there are: an adapter beside one that a network does not
    call, because it reads its weights (torchvision's attention), would never be used.

    Args:
        network: its name, for messages.
        side: of the images, in pixels.
        seed: of A.

    Raises:
        ValueError: peft is not installed, no such layer is there, or `lora.rank` is larger than one.
    """
    peft = _peft()
    for layer in module.modules():
        if hasattr(layer, "qkv_bias_separate"):  # timm's BEiT, EVA and Swin V2 read the weights of qkv without this
            layer.qkv_bias_separate = True  # type: ignore[assignment]
    layers = _chosen(_passed(module, torch.zeros(_IMAGES, in_chans, side, side)), lora, network)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        config = peft.LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, bias="none",
            target_modules="|".join(map(re.escape, layers)),  # as peft matches whole names: a list would match ends
        )  # fmt: skip
        peft.inject_adapter_in_model(config, module)
    for name in head_parameter_names(module):
        module.get_parameter(name).requires_grad_(True)


def is_adapter(name: str) -> bool:
    """Whether a parameter is an adapter's."""
    return name.endswith((_A, _B))


def has_adapters(names: Iterable[str]) -> bool:
    """Whether the parameters named are of a network with adapters."""
    return any(map(is_adapter, names))


def merged(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """A state dict without adapters that gives the same: each changes the weights of its layer, once and for all.

    Args:
        scale: `Lora.scale`.
    """
    plain: dict[str, Tensor] = {}
    for name, value in state.items():
        layer, is_base, own = name.rpartition(_BASE)
        if is_adapter(name):
            continue
        if is_base and own == "weight":
            change = state[f"{layer}{_B}"].double() @ state[f"{layer}{_A}"].double()  # never TF32
            value = (value.double() + scale * change).to(value.dtype)
        plain[f"{layer}.{own}" if is_base else name] = value
    return plain


def merge_adapters(module: nn.Module, scale: float) -> None:
    """Make a network with adapters the plain one that gives the same, in place."""
    state = merged(module.state_dict(), scale)
    for name, layer in list(module.named_modules()):
        if hasattr(layer, "lora_A"):
            module.set_submodule(name, layer.base_layer)  # type: ignore[arg-type]
    module.load_state_dict(state)


def check_peft_installed() -> None:
    """Without its import, which takes seconds. Raises ValueError."""
    if find_spec("peft") is None:
        raise ValueError(_NO_PEFT)


def _peft() -> ModuleType:
    try:
        import peft
    except ImportError as error:
        raise ValueError(f"{_NO_PEFT} ({error})") from error
    return peft


def _passed(module: nn.Module, images: Tensor) -> dict[str, nn.Linear]:
    """The linear layers that are called with something of each image, by name; without those of the head."""
    head = f"{head_name(module)}."
    found: dict[str, nn.Linear] = {}
    hooks = []
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and not f"{name}.".startswith(head):

            def note(layer: nn.Module, given: tuple[Tensor, ...], name: str = name) -> None:
                if given[0].shape[0] % len(images) == 0:
                    found[name] = layer  # type: ignore[assignment]

            hooks.append(layer.register_forward_pre_hook(note))
    try:
        with torch.no_grad(), evaluation_mode(module):
            pooled_features(module, images)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _chosen(layers: Mapping[str, nn.Linear], lora: Lora, network: str) -> list[str]:
    if not layers:
        raise ValueError(
            f"model.lora: {network} has no linear layer besides its head, which needs no adapter: adapters are for "
            "transformers, such as vit_base_patch16_224; leave it out, or name layers in train.trainable"
        )
    names = list(layers)
    if lora.targets != "auto":
        for target in lora.targets:
            if not any(_ends(name, target) for name in layers):
                ends = dict.fromkeys(name.rpartition(".")[2] for name in layers)
                raise ValueError(
                    f"model.lora.targets: {target!r} is no linear layer that the images pass in {network}; they end in "
                    f"{', '.join(ends)}, such as {', '.join(names[:_NUM_NAMED])}"
                )
        names = [name for name in names if any(_ends(name, target) for target in lora.targets)]
    for name in names:
        smallest = min(layers[name].in_features, layers[name].out_features)
        if lora.rank > smallest:
            raise ValueError(
                f"model.lora.rank={lora.rank} is larger than {name} of {network}, a layer of "
                f"{layers[name].in_features} inputs and {layers[name].out_features} outputs: at most {smallest}, or "
                "leave this layer out of model.lora.targets"
            )
    return names


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
