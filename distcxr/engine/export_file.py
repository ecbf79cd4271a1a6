"""What `distcxr export` writes: the whole network as one file, or its weights alone; and the description beside it.

A description is what the JSON beside the file holds: `model`, `library`, `findings`, `image_size`, `input`, `output`,
`load` (lines of Python), `notes`, `begun_with` where that is known by name, and what validation chose.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from distcxr.data.augment import input_side
from distcxr.data.metadata import metadata_columns
from distcxr.engine.agreement import check_images, compare
from distcxr.engine.checkpoint import Checkpoint
from distcxr.engine.inference import open_member
from distcxr.engine.opening import load_network
from distcxr.engine.portable import METADATA, OUTPUTS, example_inputs, portable, temperatures_of
from distcxr.engine.validated import Validated
from distcxr.models import serialized
from distcxr.models.exported import export_weights
from distcxr.models.foundation import begun_with
from distcxr.recipe import Recipe
from distcxr.runfolder.whole import being_written

Format = Literal["onnx", "torch-export"]


def write_network(
    checkpoints: Sequence[Checkpoint], each: Sequence[Validated], known: Validated, out: Path, format_: Format
) -> tuple[dict[str, Any], str | None]:
    """Write what makes calibrated probabilities of pixels, after comparing the file with the run, or with the mean of
    several.

    Args:
        each: what the runs kept of validation.
        known: what that makes of their mean; of a single run the same.

    Returns its description, and why it was compared on synthetic images, None where it was not.
    Raises ValueError: the format can't express it, or it differs too much; then no file is left. Or several runs take
    different inputs.
    """
    members = [
        open_member(checkpoint, torch.device("cpu"), one.tta, "no")
        for checkpoint, one in zip(checkpoints, each, strict=True)
    ]
    network, inputs = portable(members, temperatures_of(known)).eval(), example_inputs(members[0])
    recipe, findings, num = checkpoints[0].recipe, list(known.findings), len(known.findings)
    names, libraries = (dict.fromkeys(names) for names in zip(*map(_named, checkpoints), strict=True))
    size, columns = recipe.data.image_size, metadata_columns(recipe.model.head.metadata)
    also = f"; {METADATA}, float32 [N, {len(columns)}]: {', '.join(columns)}; 0 where unknown" if columns else ""
    calibrated = "calibrated by validation's temperatures" if known.operating else "not calibrated"
    about: dict[str, Any] = {
        "model": " + ".join(names), "library": ", ".join(libraries), "findings": findings, "image_size": size,
        "input": f"image, uint8 [N, 1, {size}, {size}]: the image in grey, resized to {size} x {size}{also}",
        "output": f"probabilities, float32 [N, {num}], in the order of findings, {calibrated}; logits, float32 "
        f"[N, {num}], before that",
        "load": _use(format_, out.name, size, len(columns)),
        "notes": [],
    }  # fmt: skip
    begun = [text for one in checkpoints for text in begun_with(one.recipe.model.weights).values()]
    about |= {"begun_with": "; ".join(dict.fromkeys(begun))} if begun else {}
    texts = {"findings": json.dumps(findings), "distcxr": json.dumps(about | chosen_by_validation(known))}
    with being_written(out) as part:
        if format_ == "onnx":
            serialized.write_onnx(network, inputs, OUTPUTS, texts, part)
            runner, runtime = serialized.run_onnx(part), f"onnxruntime {version('onnxruntime')}"
        else:
            serialized.write_torch_export(network, inputs, texts["distcxr"], part)
            runner, runtime = serialized.run_torch_export(part), f"torch.export.load of PyTorch {torch.__version__}"
        with check_images(recipe, known.findings) as images:
            precisions = [one.precision for one in each]
            check = compare(members, known, runner, images, precisions) | {"runtime": runtime}
    if images.reason:
        about["notes"].append("compared on synthetic images, as the run's own were not at hand")
    return about | {"check": check}, images.reason


def _named(checkpoint: Checkpoint) -> tuple[str, str]:
    return checkpoint.recipe.model.name, checkpoint.recipe.model.library


def origin(checkpoints: Sequence[Checkpoint]) -> dict[str, Any]:
    """Step and hashes of the weights; of several runs those of each, under `members`, and what hashes they share."""
    if len(checkpoints) == 1:
        return {"step": checkpoints[0].step, "hashes": checkpoints[0].meta["hashes"]}
    hashes = [one.meta["hashes"] for one in checkpoints]
    shared = {key: value for key, value in hashes[0].items() if all(one.get(key) == value for one in hashes)}
    members = [
        dict(zip(("model", "library"), _named(one), strict=True)) | {"step": one.step, "hashes": one.meta["hashes"]}
        for one in checkpoints
    ]
    return {"members": members, "hashes": shared}


def _use(format_: Format, name: str, size: int, num_columns: int) -> list[str]:
    """Lines of Python that need neither distcxr nor, for ONNX, PyTorch."""
    image = f'image = Image.open("chest.png").convert("L").resize(({size}, {size}), Image.Resampling.BILINEAR)'
    beside = f"np.zeros((1, {num_columns}), np.float32)" if num_columns else ""
    if format_ == "onnx":
        metadata = f', "metadata": {beside}' if beside else ""
        return [
            "import json",
            "import numpy as np, onnxruntime",
            "from PIL import Image",
            f"session = onnxruntime.InferenceSession({name!r})",
            image,
            f'inputs = {{"image": np.asarray(image)[None, None]{metadata}}}',
            "probabilities, logits = session.run(None, inputs)",
            'about = json.loads(session.get_modelmeta().custom_metadata_map["distcxr"])',
            'for finding, probability in zip(about["findings"], probabilities[0]):',
            '    print(finding, probability, about["thresholds"].get("youden", {}).get(finding))',
        ]
    metadata = f", torch.from_numpy({beside})" if beside else ""
    return [
        "import numpy as np, torch",
        "from PIL import Image",
        f"model = torch.export.load({name!r}).module()",
        image,
        f"probabilities, logits = model(torch.from_numpy(np.array(image))[None, None]{metadata})",
    ]


def write_weights(checkpoint: Checkpoint, known: Validated, out: Path, *, plain: bool) -> dict[str, Any]:
    """Write a state dict; returns its description. Raises ValueError: `plain`, and the head is not the library's.

    Args:
        known: what the run kept of validation.
    """
    meta, recipe, findings = checkpoint.meta, checkpoint.recipe, checkpoint.meta["findings"]
    side = input_side(recipe.data.image_size, recipe.augment)
    state, about = export_weights(load_network(checkpoint), recipe, findings, side, plain=plain)
    read = [f"state = torch.load({out.name!r}, weights_only=True)"]
    if plain:
        read = ["import torch", *read]
    else:
        read = ["from safetensors.torch import load_file", f"state = load_file({out.name!r})"]
    mean, std = ([*meta[key], *meta[key] * 2][: about["in_chans"]] for key in ("mean", "std"))
    softmax = recipe.loss.name == "cross_entropy"
    if known.rules and known.tta:
        about["notes"].append(
            "temperatures and thresholds are of the mean of the logits of the image as it is and of eval.tta="
            f"[{', '.join(known.tta)}]: of its logits alone they do not hold"
        )
    with being_written(out) as part:
        torch.save(state, part) if plain else save_file(state, part, metadata={"format": "pt"})
    return (
        about
        | begun_with(recipe.model.weights)
        | {
            "load": [*read, *about["load"], "model.eval()"],
            "image_size": side,
            "mean": mean,
            "std": std,
            "input": f"float32 [B, {about['in_chans']}, {side}, {side}]: {_prepared(recipe)}; less mean, divided by std"
            + ("; and beside it float32 [B, M], see distcxr.data.metadata" if recipe.model.head.metadata else ""),
            "output": f"logits [B, {len(findings)}] in the order of findings; "
            + ("softmax over them" if softmax else "sigmoid of each")
            + " gives probabilities"
            + ("; temperatures and logit_thresholds are of log p - log(1 - p)" if softmax else ""),
        }
    )


def chosen_by_validation(known: Validated) -> dict[str, Any]:
    """Temperatures, thresholds of the calibrated probabilities and of the logits, by finding; null where unknown."""
    findings = list(enumerate(known.findings))
    return {
        "temperatures": {name: known.operating and known.operating.temperatures[at].value for at, name in findings},
        "thresholds": {rule: {name: known.threshold(rule, at) for at, name in findings} for rule in known.rules},
        "logit_thresholds": {
            rule: {name: known.logit_threshold(rule, at) for at, name in findings} for rule in known.rules
        },
    }


def _prepared(recipe: Recipe) -> str:
    """How pixels become the network's input, before normalisation."""
    size = recipe.data.image_size
    image = f"the image in grey, resized to {size} x {size} (bilinear with antialiasing, as Pillow does), in 0 to 1"
    crops = []
    if recipe.augment.center_crop < 1:
        crops.append(f"{round(size * recipe.augment.center_crop)} px around the centre")
    if recipe.augment.crop is not None:
        crops.append(f"{recipe.augment.crop} px around the centre")
    return image + (f", cut to {', then '.join(crops)}" if crops else "")
