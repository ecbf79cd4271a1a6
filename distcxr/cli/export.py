"""`distcxr export CHECKPOINT OUT`: weights that others can load, with what they need to know beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from distcxr.cli.options import Checkpoint

_Out = Annotated[
    Path, typer.Argument(metavar="OUT", show_default=False, help="the file to write, for example densenet121.pth")
]
_Format = Annotated[
    Literal["torchvision", "safetensors"],
    typer.Option(
        "--format",
        help="torchvision: torch.save of a state dict, names of torchvision or timm; safetensors: the same tensors "
        "with distcxr's names where the head is not the library's own",
    ),
]


def run(path: Checkpoint, out: _Out, format_: _Format = "torchvision") -> int:
    """Write a checkpoint's weights for others to load.

    Writes the weights as a plain state dict with the names that torchvision or timm give them, and beside it a JSON
    file: findings in order, size, mean and std, and the lines of Python that load it.
    """
    if out.suffix == ".json" or out.is_dir():
        raise ValueError(f"{out}: name a file for the weights, such as model.pth; the JSON is written beside it")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"{out} can't be written: the folder {out.parent} is not there")

    import torch
    from safetensors.torch import save_file

    from distcxr.data.augment import input_side
    from distcxr.engine.checkpoint import open_checkpoint
    from distcxr.engine.opening import load_network
    from distcxr.models.exported import export_weights
    from distcxr.runfolder.whole import being_written, write_json

    checkpoint = open_checkpoint(path)
    meta = checkpoint.meta
    recipe, findings = checkpoint.recipe, meta["findings"]
    side = input_side(recipe.data.image_size, recipe.augment)
    plain = format_ == "torchvision"
    state, about = export_weights(load_network(checkpoint), recipe, findings, side, plain=plain)
    read = [f"state = torch.load({out.name!r}, weights_only=True)"]
    if plain:
        read = ["import torch", *read]
    else:
        read = ["from safetensors.torch import load_file", f"state = load_file({out.name!r})"]
    mean, std = ([*meta[key], *meta[key] * 2][: about["in_chans"]] for key in ("mean", "std"))
    softmax = recipe.loss.name == "cross_entropy"
    content = about | {
        "load": [*read, *about["load"], "model.eval()"],
        "image_size": side,
        "mean": mean,
        "std": std,
        "input": f"float32 [B, {about['in_chans']}, {side}, {side}]: {_prepared(recipe)}; less mean, divided by std"
        + ("; and beside it float32 [B, M], see distcxr.data.metadata" if recipe.model.head.metadata else ""),
        "output": f"logits [B, {len(findings)}] in the order of findings; "
        + ("softmax over them" if softmax else "sigmoid of each")
        + " gives probabilities",
        "step": checkpoint.step,
        "hashes": meta["hashes"],
    }
    with being_written(out) as part:
        torch.save(state, part) if plain else save_file(state, part, metadata={"format": "pt"})
    beside = out.with_suffix(".json")
    write_json(beside, content)
    print(f"{out}: {len(state)} tensors of {recipe.model.name}, step {checkpoint.step}; how to load it is in {beside}")
    for note in about["notes"]:
        print(f"note: {note}")
    return 0


def _prepared(recipe: object) -> str:
    """How pixels become the network's input, before normalisation."""
    from distcxr.recipe import Recipe

    assert isinstance(recipe, Recipe)
    size = recipe.data.image_size
    image = f"the image in grey, resized to {size} x {size} (bilinear with antialiasing, as Pillow does), in 0 to 1"
    crops = []
    if recipe.augment.center_crop < 1:
        crops.append(f"{round(size * recipe.augment.center_crop)} px around the centre")
    if recipe.augment.crop is not None:
        crops.append(f"{recipe.augment.crop} px around the centre")
    return image + (f", cut to {', then '.join(crops)}" if crops else "")
