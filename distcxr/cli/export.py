"""`distcxr export RUN ... OUT`: a network for others to run, with its card and what they need to know beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from distcxr.cli.options import Force, SeveralWords, check_writable

if TYPE_CHECKING:
    from distcxr.engine.checkpoint import Checkpoint
    from distcxr.runfolder.contents import RunFiles

Format = Literal["torchvision", "safetensors", "onnx", "torch-export"]

_Runs = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN", show_default=False,
        help="run folders or checkpoints; several are averaged, as predict does, for onnx and torch-export",
    ),
]  # fmt: skip
_Out = Annotated[
    Path,
    typer.Argument(
        metavar="OUT", show_default=False, help="the file to write: model.onnx, model.pt2, model.safetensors, model.pth"
    ),
]
_Format = Annotated[
    Format | None,
    typer.Option(
        "--format", show_default=False,
        help="onnx, torch-export: grey pixels in, calibrated probabilities out. torchvision: torch.save of a state "
        "dict, names of torchvision or timm; safetensors: the same tensors, with distcxr's names where the head is "
        "not the library's own. By default by the ending of OUT: .onnx, .pt2, .safetensors, any other a state dict",
    ),
]  # fmt: skip
_Push = Annotated[
    str | None,
    typer.Option(
        metavar="REPO", show_default=False,
        help="upload file, JSON and card to this repository of huggingface.co with your token; made private where it "
        "is not there",
    ),
]  # fmt: skip

_ENDINGS: dict[str, Format] = {".onnx": "onnx", ".pt2": "torch-export", ".safetensors": "safetensors"}
_HUB_CARD = "README.md"


class FileComesLast(SeveralWords):
    """The verb that takes its last word for the file: of one word alone it is the run that would be missed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Add that to the error."""
        try:
            return super().parse_args(ctx, args)
        except typer.TyperException as error:
            if getattr(getattr(error, "param", None), "name", None) == "runs":
                error.message = "The last word is the file to write: distcxr export RUN model.onnx"
            raise


def run(
    runs: _Runs, out: _Out, format_: _Format = None, push: _Push = None, force: Force = False
) -> int:  # fmt: skip
    """Write a run's network for others to run.

    As ONNX or by torch.export: with normalisation and validation's temperatures inside, compared with the run on
    images before it is kept. Or its weights alone, with the names that torchvision or timm give them. Beside the file
    a JSON (findings in order, thresholds, input, the lines of Python that use it) and a model card: model.json and
    model.md, or model.onnx.json and model.onnx.md where model.json is about another file.
    """
    format_ = format_ or _ENDINGS.get(out.suffix.lower(), "torchvision")
    check_writable(out)
    if out.suffix in (".json", ".md"):
        raise ValueError(
            f"{out}: name a file for the model, such as model.onnx or model.pth; JSON and card are written beside it"
        )
    beside, card = _beside(out)
    if not force and (there := [str(file) for file in (out, beside, card) if file.exists()]):
        raise ValueError(f"{', '.join(there)} there already: name another file, or add --force to replace")

    from distcxr.api import NOT_CLINICAL
    from distcxr.engine.export_file import chosen_by_validation, origin, write_network, write_weights
    from distcxr.engine.validated import opened_together
    from distcxr.models.hub import open_repository, upload
    from distcxr.models.serialized import check_onnx_installed
    from distcxr.report.card import CardFacts, model_card
    from distcxr.runfolder.whole import write_json, write_whole

    if len(runs) > 1 and format_ not in ("onnx", "torch-export"):
        raise ValueError(
            f"--format {format_} holds the weights of one run, not of {len(runs)}: onnx and torch-export hold the mean"
        )
    if format_ == "onnx":
        check_onnx_installed()
    checkpoints, each, known = opened_together(runs)
    files = _card_files(checkpoints)
    if paired := next((one for one in checkpoints if one.recipe.data.lateral != "none"), None):
        raise ValueError(
            f"{paired.path} takes a lateral view beside each frontal image (data.lateral), and an export has one image "
            "as its input: there is no export of such a run"
        )
    hub = open_repository(push, [out.name, beside.name, _HUB_CARD], force=force) if push else None
    if format_ == "onnx" or format_ == "torch-export":
        about, reason = write_network(checkpoints, each, known, out, format_)
        if reason:
            print(f"note: the run's images are not at hand: {reason}")
        _print_check(about["check"])
    else:
        about = write_weights(checkpoints[0], known, out, plain=format_ == "torchvision")
    about = {"file": out.name, "format": format_, **about, **origin(checkpoints)}
    about |= chosen_by_validation(known)
    facts = CardFacts(about, "\n".join(about["load"]), NOT_CLINICAL)
    write_json(beside, about)
    write_whole(card, model_card(files, facts), errors="replace")
    weights = ", ".join(f"step {checkpoint.step}" for checkpoint in checkpoints)
    print(f"{out}: {about['model']}, {weights}; how to use it is in {beside} and {card}")
    for note in (*about["notes"], *known.problems):
        print(f"note: {note}")
    if hub is not None:
        named = {out.name: out, beside.name: beside, _HUB_CARD: card}
        print(f"uploaded: {upload(*hub, named, f'{out.name}, {weights}')}")
    return 0


def _beside(out: Path) -> tuple[Path, Path]:
    """JSON and card of a file; those of another export of its name stay as they are."""
    beside, longer = out.with_suffix(".json"), out.with_name(f"{out.name}.json")
    try:
        about = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or not of an export
        about = None
    if longer.exists() or (isinstance(about, dict) and about.get("file", out.name) != out.name):
        beside = longer
    return beside, beside.with_suffix(".md")


def _card_files(checkpoints: Sequence[Checkpoint]) -> RunFiles:
    """What the runs have for the card; the figures of one are not those of the mean."""
    import yaml

    from distcxr.engine.export_file import origin
    from distcxr.engine.validated import scored_folder
    from distcxr.recipe.load import to_yaml
    from distcxr.report.card import card_files
    from distcxr.runfolder.layout import run_folder_of

    first = checkpoints[0]
    values, hashes = first.recipe.model_dump(mode="json"), origin(checkpoints)["hashes"]
    if len(checkpoints) == 1:
        folders = run_folder_of(first.path), scored_folder(first.path)
        return card_files(*folders, first.step, values, to_yaml(first.recipe), hashes)
    recipes = {f"run {number}": yaml.safe_load(to_yaml(one.recipe)) for number, one in enumerate(checkpoints, start=1)}
    return card_files(None, None, first.step, values, yaml.safe_dump(recipes, sort_keys=False), hashes)


def _print_check(check: dict[str, Any]) -> None:
    largest = check["largest_difference"]
    print(
        f"compared with the run on {check['images']} images ({check['source']}): largest difference "
        f"{largest['logit']:.2g} in a logit, {largest['probability']:.2g} in a probability; "
        f"{check['tolerance_logit']:.2g} is allowed in a logit"
    )
