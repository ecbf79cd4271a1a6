"""Reads weights from others' files and from checkpoints, and renames them to a network's own parameters.

| in the file | what is done |
|---|---|
| a state dict in a checkpoint (`state_dict`, `model`, ...: Lightning, timm, most scripts) | it is taken out |
| a moving average beside it (`state_dict_ema`, `model_ema`: timm) | it is taken instead, as timm does |
| names behind a prefix (`module.`, `model.`, `net.`, arnoweng's `module.densenet121.`) | it is taken off |
| `denselayer3.norm.1`, of old DenseNets | becomes `denselayer3.norm1` |
| `classifier.0`, a head in a Sequential (arnoweng, zoogzog) | becomes `classifier` |
| `op_threshs`, of torchxrayvision | first convolution times 1024: exact with `augment.normalize: half` |
| a checkpoint or run folder of distcxr, with any of its heads | is read with the findings it was trained for |
| RAD-DINO, CXformer, EVA-X, Medical MAE, Ark and the like | `key_maps` renames them and resizes their positions |

Only `weights_only=True`, safetensors and JSON are read here; what needs more goes through `distcxr import`.
"""

from __future__ import annotations

import logging
import re
from argparse import Namespace
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from distcxr.models.adapters import merged
from distcxr.models.heads import BACKBONE, HEAD, find_head, head_name
from distcxr.models.key_maps import from_hugging_face, to_timm
from distcxr.models.weights import first_conv, remap_densenet_keys
from distcxr.recipe.model import Lora
from distcxr.runfolder.layout import find_checkpoint
from distcxr.runfolder.manifest import META, MODEL, read_meta

logger = logging.getLogger(__name__)

XRAYVISION = "torchxrayvision"
_XRAYVISION_SCALE = 1024.0  # its images go from -1024 to 1024; those of augment.normalize: half from -1 to 1
_XRAYVISION_EXTRA = "op_threshs"
_CONTAINERS = (
    "state_dict_ema", "model_ema", "teacher", "state_dict", "model_state_dict", "model_state", "model", "module", "net",
    "network", "weights", "params",
)  # fmt: skip
"""The first that is there counts. Ark's files hold the student as `state_dict` beside the teacher, which is what its
authors publish."""
_PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))  # how files of PyTorch before 1.6 begin
_IMAGENET_CLASSES = (1000, 1001, 11821, 21841, 21843)  # of ImageNet-1k, TensorFlow's, timm's in12k, in21k and in22k
_ROW_A_FINDING = ("weight", "bias", "out.weight", "out.bias", "attention.weight")


class NeedsTrust(ValueError):
    """A file that can be read only by running the code in it; the message has the command."""


@dataclass(frozen=True)
class WeightsFile:
    """Weights as a file holds them, by its own names; `source` is what to call them in messages.

    `findings` are what the head was trained for, in its order, None where the file does not name them; `layout` is
    `torchxrayvision`, or empty.
    """

    source: str
    state: dict[str, Tensor]
    findings: tuple[str, ...] | None = None
    layout: str = ""


@dataclass(frozen=True)
class WeightsParts:
    """Weights by this network's own names; those of the head (none where there is none) by names within the head."""

    backbone: dict[str, Tensor]
    head: dict[str, Tensor]


def read_weights(path: Path) -> WeightsFile:
    """Read `model.weights`: a safetensors file, a PyTorch file, a checkpoint folder or a run folder.

    Raises:
        ValueError: there is nothing, it is damaged, or it has no weights.
        NeedsTrust: reading it could run code.
    """
    path = path.expanduser()
    if path.is_dir():
        return _read_checkpoint(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file or folder; relative paths start at {Path.cwd()}")
    if path.suffix == ".safetensors":
        if path.name == MODEL and (path.parent / META).is_file():
            return _read_checkpoint(path.parent)
        return _read_safetensors(path)
    with path.open("rb") as opened:
        if opened.read(2) not in (b"PK", *_PICKLES):
            raise ValueError(f"{path}: neither a safetensors nor a PyTorch file")
    try:
        with torch.serialization.safe_globals([Namespace]):  # plain values by name; MAE's and EVA's scripts save theirs
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, ModuleNotFoundError) as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        more = f"more than tensors and plain values{f' ({named[1]})' if named else ''}"
        imported = f"{path.stem}.safetensors"
        raise NeedsTrust(
            f"{path}: it holds {more}, as a whole pickled model does, and reading that would run whatever code is in "
            f"it. If you trust who made it: distcxr import {path} {imported} --trust, then model.weights={imported}"
        ) from error
    except Exception as error:  # PyTorch documents few of what it raises for damaged files
        raise ValueError(f"{path}: not a whole PyTorch file ({_first_line(error)})") from error
    state = find_state(loaded)
    if state is None:
        raise ValueError(f"{path}: no weights in it, {_described(loaded)}")
    return WeightsFile(str(path), state)


def find_state(loaded: Any) -> dict[str, Tensor] | None:
    """The state dict in what a file held: itself, a module's own, or one under a checkpoint's usual keys."""
    if isinstance(loaded, nn.Module):
        return dict(loaded.state_dict())
    if not isinstance(loaded, Mapping):
        return None
    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    if any("." in name for name in tensors):
        return tensors
    for container in _CONTAINERS:
        if container in loaded and (inside := find_state(loaded[container])):
            return inside
    return tensors or None


def split(file: WeightsFile, network: nn.Module) -> WeightsParts:
    """Give a file's weights the names that `network` has for them; others keep theirs.

    Args:
        network: with its own linear head.

    Raises ValueError: as `key_maps`.
    """
    state = from_hugging_face(remap_densenet_keys(file.state), file.source)
    if f"{HEAD}out.weight" in state and all(name.startswith((BACKBONE, HEAD)) for name in state):
        return WeightsParts(to_timm(_within(state, BACKBONE), network, file.source), _within(state, HEAD))
    conv, _ = first_conv(network)
    state = to_timm(_without_prefix(state, network.state_dict()), network, file.source)
    if (file.layout == XRAYVISION or _XRAYVISION_EXTRA in state) and f"{conv}.weight" in state:
        state.pop(_XRAYVISION_EXTRA, None)
        state[f"{conv}.weight"] = state[f"{conv}.weight"] * _XRAYVISION_SCALE
        logger.info(
            f"{file.source} is torchxrayvision's: take augment.normalize=half, with which the network sees exactly "
            "what it was trained on"
        )
    prefix = f"{find_head(network)[0]}."
    rest = {name: value for name, value in state.items() if not name.startswith(prefix)}
    return WeightsParts(rest, _out_of_sequential(_within(state, prefix)))


def load_head(
    model: nn.Module, head: dict[str, Tensor], file: WeightsFile, *, num_classes: int, findings: Sequence[str] | None
) -> None:
    """Copy a file's head into the model's, in place; where it has none, or ImageNet's, the model's stays new.

    Rows of a head for the same findings in another order are put in the model's.

    Args:
        head: as in `WeightsParts`.
        findings: of the model's logits; None where the caller does not know them.

    Raises ValueError: the file's head is for other findings, or of another kind.
    """
    ours = model.get_submodule(head_name(model))
    own = ours.state_dict()
    last = next((name for name in ("out.weight", "weight") if name in head), None)
    rows = len(head[last]) if last else 0
    if not last or (rows in _IMAGENET_CLASSES and rows != num_classes):
        there = [f"{name} {list(value.shape)}" for name, value in head.items()]
        logger.info(f"{file.source}: the head is new, the file has {' and '.join(there) or 'none'}")
        return
    advice = "model.new_head=true takes the rest of the weights and a new head"
    if file.findings is not None and findings is not None:
        if set(file.findings) != set(findings):
            raise ValueError(
                f"{file.source}: its head is for {rows} findings ({', '.join(file.findings)}), and data.findings are "
                f"{num_classes} ({', '.join(findings)}): {advice}"
            )
        order = [file.findings.index(name) for name in findings]
        head = {name: value[order] if name in _ROW_A_FINDING else value for name, value in head.items()}
    elif rows != num_classes:
        raise ValueError(
            f"{file.source}: its head is for {rows} findings, and data.findings are {num_classes}: {advice}"
        )
    if {name: value.shape for name, value in head.items()} != {name: value.shape for name, value in own.items()}:
        theirs, mine = (
            ", ".join(f"{name} {list(value.shape)}" for name, value in state.items()) for state in (head, own)
        )
        raise ValueError(f"{file.source}: its head is of another kind ({theirs}) than model.head's ({mine}): {advice}")
    ours.load_state_dict(head)
    if file.findings is None:
        logger.warning(
            f"{file.source}: the head is kept, and the file does not name the {rows} findings that it was trained "
            f"for: if they are not data.findings in this order, {advice}"
        )


def _within(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _out_of_sequential(head: dict[str, Tensor]) -> dict[str, Tensor]:
    """`0.weight` and `0.bias`, the one layer with parameters of a Sequential, as `weight` and `bias`."""
    layers = {name.partition(".")[0] for name in head}
    return _within(head, f"{layers.pop()}.") if len(layers) == 1 and next(iter(layers)).isdigit() else head


def _without_prefix(state: dict[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """Take off, from all names that begin with it, the prefix behind which most of the network's `own` names are."""
    prefixes = {""}
    for name in state:
        parts = name.split(".")
        prefixes |= {".".join([*parts[:cut], ""]) for cut in range(1, len(parts)) if ".".join(parts[cut:]) in own}
    hits = {prefix: sum(f"{prefix}{name}" in state for name in own) for prefix in prefixes}
    best = max(hits, key=lambda prefix: (hits[prefix], -len(prefix)))
    return {name.removeprefix(best): value for name, value in state.items()}


def _read_safetensors(path: Path) -> WeightsFile:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}
            layout = (file.metadata() or {}).get("layout", "")
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error
    return WeightsFile(str(path), state, layout=layout)


def _read_checkpoint(folder: Path) -> WeightsFile:
    """A checkpoint of distcxr; of a run folder, its best."""
    folder = find_checkpoint(folder)
    if not (folder / MODEL).is_file() or not (folder / META).is_file():
        raise ValueError(
            f"{folder}: not a checkpoint of distcxr, which has {MODEL} and "
            f"{META}; give runs/<recipe>/<time>, or a folder in its checkpoints/"
        )
    try:
        meta = read_meta(folder)
        findings, recipe = tuple(map(str, meta["findings"])), meta["recipe"]
        trained = f"{recipe['model']['name']}, augment.normalize={recipe['augment']['normalize']}"
        adapters = recipe["model"].get("lora")
        lora = Lora.model_validate(adapters) if adapters else None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}: {META} is damaged ({error}); use another checkpoint") from error
    logger.info(f"{folder} was trained as {trained}, for {', '.join(findings)}")
    read = _read_safetensors(folder / MODEL)
    try:
        state = merged(read.state, lora.scale) if lora else read.state
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            f"{folder / MODEL}: not the adapters of model.lora ({error}); use another checkpoint"
        ) from error
    return replace(read, state=state, source=str(folder), findings=findings)


def _described(loaded: Any) -> str:
    if isinstance(loaded, Mapping):
        return f"but a dict of {', '.join(str(name) for name in list(loaded)[:5]) or 'nothing'}"
    return f"but a {type(loaded).__name__}"


def _first_line(error: Exception) -> str:
    return re.split(r"\n|\. ", str(error).strip())[0][:200] or type(error).__name__
