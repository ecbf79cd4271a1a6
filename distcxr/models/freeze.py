"""Freezing: which parameters are trained, by patterns of their names, and the mode of their layers meanwhile.

A pattern is a parameter's name as the library's network has it (`fc.weight`), the beginning of names up to a dot
(`layer4`), or either with `*` for any characters (`layer*.conv1`). `head` is what makes logits of features
(`head_parameter_names`), whatever the network calls it, and nothing else: ConvNeXt's `head.norm` has to be named.
The names of a ResNet's parts, `layer1` to `layer4` and `fc`, hold for other families, too:

    layer2   DenseNet: denseblock2   ConvNeXt: stages.1   Swin: layers.1   (as timm has them)
    layer4   DenseNet: denseblock4 and the norm5 after it
    fc       head
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from distcxr.models.heads import head_parameter_names, network_name

HEAD = "head"

_PART = re.compile(r"layer([1-4])")
_FAMILIES: tuple[tuple[str, dict[str, list[str]]], ...] = (
    ("features.denseblock{number}", {"layer4": ["features.norm5"]}),
    ("stages.{before}", {}),
    ("layers.{before}", {}),
)
"""What other families than ResNets call their four parts, and what belongs to one of them besides."""


def trainable_names(module: nn.Module, patterns: Sequence[str] | None) -> list[str]:
    """Names of the parameters that `patterns` mean (None: all), in the network's order.

    What requires no gradient in the module as built (a ViT's fixed position embedding) is never trained.
    Raises ValueError: no pattern at all, or one that names no parameter, with the nearest that do.
    """
    return [name for name in _named(module, patterns) if module.get_parameter(name).requires_grad]


def set_trainable(module: nn.Module, patterns: Sequence[str] | None) -> list[str]:
    """Have the parameters that `patterns` mean require a gradient and no others; their names, in the network's order.

    The gradients that were there are dropped. Wrap in DDP afterwards: it reduces what required a gradient when it
    wrapped.
    Raises ValueError: as `trainable_names`.
    """
    names = _named(module, patterns)
    chosen = set(names)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in chosen)
        parameter.grad = None
    return names


def training_mode(module: nn.Module, frozen_bn: Literal["eval", "train"]) -> None:
    """Training mode; with `eval`, BatchNorm layers with all parameters frozen keep their statistics.

    A BatchNorm layer without parameters continues to update its statistics.
    """
    module.train()
    if frozen_bn == "train":
        return
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            own = list(layer.parameters(recurse=False))
            if own and not any(parameter.requires_grad for parameter in own):
                layer.eval()


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every layer has the mode that it had, frozen BatchNorm layers theirs."""
    modes = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for layer, mode in modes:
            layer.training = mode


def _named(module: nn.Module, patterns: Sequence[str] | None) -> list[str]:
    names = [name for name, _ in module.named_parameters()]
    if patterns is None:
        return names
    if not patterns:
        raise ValueError(f"no pattern, so nothing would be trained; the network has {', '.join(_parts(names))}")
    # A network with another head than its own has `backbone.` before the names that its library gives.
    known = {name: (name, network_name(module, name)) for name in names}
    chosen: set[str] = set()
    for pattern in patterns:
        if pattern == HEAD:
            chosen |= set(head_parameter_names(module))
            continue
        found = _found(pattern, known)
        if not found and pattern == "fc":
            found = set(head_parameter_names(module))
        if not found and (part := _PART.fullmatch(pattern)):
            found = _found_elsewhere(int(part[1]), known)
        if not found:
            raise ValueError(f"{pattern!r} names no parameter of the network{_nearest(pattern, known)}")
        chosen |= found
    return [name for name in names if name in chosen]


def _found(pattern: str, known: Mapping[str, tuple[str, str]]) -> set[str]:
    return {name for name, called in known.items() if any(_matches(pattern, one) for one in called)}


def _found_elsewhere(number: int, known: Mapping[str, tuple[str, str]]) -> set[str]:
    """Parameters of `layer<number>` in a network that is no ResNet, empty where it has no four parts."""
    for form, more in _FAMILIES:
        parts = [_found(form.format(number=one, before=one - 1), known) for one in range(1, 5)]
        if all(parts):
            besides = [_found(pattern, known) for pattern in more.get(f"layer{number}", [])]
            return parts[number - 1].union(*besides)
    return set()


def _matches(pattern: str, name: str) -> bool:
    if "*" not in pattern:
        return name == pattern or name.startswith(f"{pattern}.")
    escaped = pattern.replace("[", "[[]").replace("?", "[?]")  # only * is a wildcard
    return fnmatchcase(name, escaped) or fnmatchcase(name, f"{escaped}.*")


def _nearest(pattern: str, known: Mapping[str, tuple[str, str]]) -> str:
    names = dict.fromkeys(called for pair in known.values() for called in pair)
    beginnings = dict.fromkeys(
        ".".join(parts[:length]) for parts in (name.split(".") for name in names) for length in range(1, len(parts) + 1)
    )
    near = difflib.get_close_matches(pattern, beginnings, n=3)
    return f"; did you mean {' or '.join(near)}?" if near else f"; it has {', '.join(_parts(list(known)))}, and head"


def _parts(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name.partition(".")[0] for name in names))
