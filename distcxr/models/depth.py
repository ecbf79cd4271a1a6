"""What an optimiser wants to know of parameters: their depth, counted in blocks from the head, for layer-wise learning
rates; and which are embeddings, for weight decay."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from types import SimpleNamespace
from typing import Any

from torch import nn

from distcxr.models.heads import BACKBONE, Headed, head_parameter_names

_BESIDE_THE_HEAD = "-"
_OF_TORCHVISION = ("*class_token", "*pos_embedding", "*relative_position_bias_table")
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def layer_depths(module: nn.Module) -> dict[str, int]:
    """Depth of each parameter by name: the head has 0, the block below it 1, and so on to the first layers.

    timm's networks define their blocks (`group_matcher`), and what is in none of them counts as head, such as the
    normalisation before ConvNeXt's last layer: depths are those of timm's `param_groups_layer_decay`. In torchvision's
    a block is a member of a list of layers, such as `layer3.2`, `features.denseblock1.denselayer4` or
    `encoder.layers.encoder_layer_7`; a normalisation layer between blocks goes with the one before it.
    """
    below = _groups(module.backbone, BACKBONE) if isinstance(module, Headed) else _groups(module)
    beside = below.pop(_BESIDE_THE_HEAD, None)
    head = dict.fromkeys(head_parameter_names(module), 0) | {name: 0 for name, at in below.items() if at == beside}
    ranks = {group: rank for rank, group in enumerate(sorted({below[name] for name in below if name not in head}))}
    return {name: len(ranks) - ranks[group] for name, group in below.items() if name not in head} | head


def embedding_names(module: nn.Module) -> frozenset[str]:
    """Names of class tokens, position embeddings and tables of relative positions: of timm's networks what they leave
    out of weight decay (`no_weight_decay`), of others what torchvision's training script does."""
    network, prefix = (module.backbone, BACKBONE) if isinstance(module, Headed) else (module, "")
    named: Any = getattr(network, "no_weight_decay", lambda: _OF_TORCHVISION)
    patterns = named()
    return frozenset(
        f"{prefix}{name}" for name, _ in network.named_parameters() if any(fnmatch(name, one) for one in patterns)
    )


def block_names(module: nn.Module) -> list[str]:
    """Names of the modules that are blocks: the largest ones with layers within that are of one depth, the head not
    among them. None overlap."""
    depths = layer_depths(module)
    found: list[str] = []

    def look(within: nn.Module, prefix: str) -> None:
        for name, part in within.named_children():
            below = {depths[f"{prefix}{name}.{own}"] for own, _ in part.named_parameters()}
            if len(below) > 1:
                look(part, f"{prefix}{name}.")
            elif below - {0} and any(True for child in part.children() for _ in child.parameters()):
                found.append(f"{prefix}{name}")

    look(module, "")
    return found


def _groups(module: Any, prefix: str = "") -> dict[str, int]:
    """Number of each parameter's block, from the first layer; of timm's networks that of what is in none, too."""
    if not hasattr(module, "group_matcher"):
        return {f"{prefix}{name}": number for name, number in _listed_groups(module).items()}
    from timm.models import group_parameters

    named = [*module.named_parameters(), (_BESIDE_THE_HEAD, None)]  # a name that no pattern knows
    whole: Any = SimpleNamespace(named_parameters=lambda: named)
    found: dict[str, int] = group_parameters(whole, module.group_matcher(coarse=False), reverse=True)
    return {name if name == _BESIDE_THE_HEAD else f"{prefix}{name}": number for name, number in found.items()}


def _listed_groups(module: nn.Module) -> dict[str, int]:
    groups: dict[str, int] = {}
    number = 0
    for prefix, block in _blocks(module, ""):
        names = [f"{prefix}{name}" for name, _ in block.named_parameters()]
        if any(parameter.ndim > 1 for parameter in block.parameters()):
            number += 1
        groups |= dict.fromkeys(names, number)
    # Tokens and position embeddings are parameters of no layer: they go in with the first.
    first = min(groups.values(), default=0)
    return {name: groups.get(name, first) for name, _ in module.named_parameters()}


def _blocks(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        below = f"{prefix}{name}."
        if _is_list(child, top=not prefix):
            yield from _blocks(child, below)
        else:
            yield below, child


def _is_list(layer: nn.Module, *, top: bool) -> bool:
    """Whether a layer only holds blocks: a list of composed layers, or the trunk (a list of any, or a module
    around such a list, as a ViT's encoder)."""
    composed = any(True for child in layer.children() for _ in child.children())
    if isinstance(layer, _CONTAINERS):
        return composed or top
    return top and any(isinstance(child, _CONTAINERS) and _is_list(child, top=False) for child in layer.children())
