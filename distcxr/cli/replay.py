"""`distcxr replay FILE`: a training step that was not finite, made again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distcxr.cli.options import Json, Overrides, check_writable

_File = Annotated[
    Path,
    typer.Argument(
        metavar="FILE|RUN", show_default=False,
        help="for example runs/NAME/TIME/diverged-step-37.json; of a run folder its newest",
    ),
]  # fmt: skip
_NUM_SHOWN = 10


def run(path: _File, overrides: Overrides = None, json: Json = None) -> int:
    """Replay a training step that was not finite, to find the cause.

    Shows where its numbers stop being finite, and which images are behind it. The run left a file with the step's
    images and their augmentation. They go forward and backward through the network, with the weights of the newest
    checkpoint before that step, or with the initial ones.
    """
    check_writable(json)

    from dataclasses import asdict

    from rich.console import Console

    from distcxr.engine.replay_step import recipe_to_replay, replay
    from distcxr.logs import start_logging
    from distcxr.runfolder.diverged import find_diverged, in_json, read_diverged
    from distcxr.runfolder.whole import write_json
    from distcxr.tracking.terminal import table_text

    path = find_diverged(path)
    content = read_diverged(path)
    start_logging(Console(stderr=True))
    found = replay(content, path.parent, recipe_to_replay(content, overrides or []))
    step, between = content["step"], content["step"] - 1 - found.weights_step
    norm = "not known" if content["grad_norm"] is None else content["grad_norm"]
    print(f"{path}: step {step}, epoch {content['epoch']}: loss {content['loss']}, gradient norm {norm}")
    weights = f"{found.checkpoint}, after step {found.weights_step}" if found.checkpoint else "the initial weights"
    print(f"replayed with {weights}: loss {found.loss:.6g}, gradient norm {found.grad_norm:.6g}")
    if found.layer:
        print(f"the first output that is not finite: {found.layer}")
    if found.parameter:
        print(f"the first gradient that is not finite, from the loss back: {found.parameter}")
    rows = [["image", "rank", "loss", "loss alone"]]
    for one in found.samples[:_NUM_SHOWN]:
        name = f"{one.file} ({one.problem})" if one.problem else one.file
        rows.append([name, str(one.rank), *("-" if x is None else f"{x:.6g}" for x in (one.loss, one.alone))])
    print(table_text(rows, width=None))
    if len(found.samples) > _NUM_SHOWN:
        print(f"and {len(found.samples) - _NUM_SHOWN} images with lower losses")
    if not found.layer and not found.parameter:
        print("everything is finite with these weights" + _weights_of_the_step(between, found.weights_step))
    if json:
        plain = asdict(found) | {"checkpoint": str(found.checkpoint) if found.checkpoint else None, "step": step}
        plain |= {name: in_json(plain[name]) for name in ("loss", "grad_norm")}
        plain["samples"] = [one | {name: in_json(one[name]) for name in ("loss", "alone")} for one in plain["samples"]]
        write_json(json, plain)
        print(f"written: {json}")
    return 0


def _weights_of_the_step(between: int, weights_step: int) -> str:
    """What to do where the weights are older than the step."""
    if between == 0:
        return ", which are those of the step: what broke it was not in them or in these images"
    updates = "an update lies" if between == 1 else f"{between} updates lie"
    return (
        f", but {updates} between them and the step: run it again from step {weights_step} with checkpoint.every=1st, "
        "and replay what that leaves"
    )
