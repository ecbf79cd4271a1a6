"""Measures an epoch of training from start to end: whether the device starves, and the time of ten epochs of NIH.

    python benchmarks/epoch.py recipes/densenet121.yaml --root /data/nih --json epoch.json
    python benchmarks/epoch.py recipes/densenet121.yaml --root /data/nih data.loader=cache data.cache.resident=device
    python benchmarks/epoch.py recipes/densenet121.yaml train.global_batch_size=16 --steps 20      on synthetic X-rays

Trains as launch.py does, with the recipe's loader, and times updates after an epoch's first ones; then the same updates
over one batch that stays on the device, which is what the device takes in when it never waits. Without --root and
DISTCXR_NIH_ROOT the images are synthetic and of the recipe's size already: decoding is then cheaper than it is of
real ones. One process.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from step_bench.ours import host_clock, update

from distcxr.data.batch import Batch
from distcxr.device import device_name
from distcxr.engine.build import build_run
from distcxr.engine.fit import updates
from distcxr.engine.state import Run
from distcxr.engine.step_writing import write_steps
from distcxr.recipe import load_recipe
from distcxr.runtime import start_runtime

Row = dict[str, Any]
EPOCHS, NIH_TRAIN_IMAGES = 10, 77_766  # of the official split, val_fraction 0.1 and split_seed 0
WARM_UPS = 2  # an epoch's first steps, for which loaders start
ALONE_STEPS = 10
MANY_EPOCHS = 100_000
PHANTOM_BATCHES = 8  # what an epoch of synthetic images has at least, before some are put aside for val and test
FEWEST_PHANTOMS = 400
COLUMNS = (
    "loader", "batch", "img_per_s", "step_img_per_s", "starvation_pct", "host_outside_pct", "epoch_start_s",
    "minutes_10_epochs",
)  # fmt: skip
LEGEND = f"""\
img_per_s: whole updates, loader included. step_img_per_s: the same over one batch on the device. starvation_pct: of the
time, waiting for the loader. host_outside_pct: the host's time outside forward, backward, update and waiting, of a
step's. epoch_start_s: to an epoch's first batch. minutes_10_epochs: {EPOCHS} epochs of so many images at that speed,
without evaluation."""


def main() -> None:
    """Measure one recipe and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--root", type=Path, help="the data set's folder (default: data.root, DISTCXR_NIH_ROOT)")
    parser.add_argument("--steps", type=int, default=50, help="that are timed (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the row")
    args = parser.parse_intermixed_args()
    try:
        if args.steps < 1:
            raise ValueError(f"--steps {args.steps}: has to be at least 1")
        with tempfile.TemporaryDirectory(prefix="distcxr-epoch-") as place:
            row = measure(args, Path(place))
    except ValueError as error:
        parser.error(str(error))
    if args.json:
        args.json.write_text(json.dumps([row], indent=1, allow_nan=False))
    print(f"{args.recipe}, {row['device']}, precision {row['precision']}, {row['steps']} steps; {row['note']}\n")
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    print("| " + " | ".join(f"{row[name]:,}" if name != "loader" else row[name] for name in COLUMNS) + " |\n")
    print(LEGEND)


def measure(args: argparse.Namespace, work: Path) -> Row:
    """The row of a recipe.

    Raises:
        ValueError: what is wrong with the recipe or its data.
    """
    overrides = [
        "data.missing=skip",
        "model.weights=none",
        *args.overrides,
        "logging.images=0",
        f"output={work / 'run'}",
    ]
    recipe = load_recipe(args.recipe, overrides)
    # Steps of a few synthetic images would soon be more than the schedule has.
    overrides.append(f"train.{'stages.0.' if recipe.train.stages else ''}epochs={MANY_EPOCHS}")
    root = args.root or recipe.data.root or os.environ.get("DISTCXR_NIH_ROOT")
    if not root:
        root = work / "phantom"
        _draw(root, max(FEWEST_PHANTOMS, PHANTOM_BATCHES * recipe.train.global_batch_size), recipe.data.image_size)
    overrides.append(f"data.root={root}")
    if root == work / "phantom" and recipe.data.loader == "cache":
        overrides.append(f"data.cache.path={work / 'cache'}")
        building = [sys.executable, "-m", "distcxr.cli", "cache", str(args.recipe), *overrides]
        subprocess.run(building, check=True, stdout=subprocess.DEVNULL)
    recipe = load_recipe(args.recipe, overrides)
    run = build_run(recipe, "benchmark", start_runtime(recipe), Console(quiet=True))
    if run.setup.runtime.world_size > 1:
        raise ValueError("several processes were started, and this measures one: benchmarks/scaling.py measures more")
    row = timed_epochs(run, args.steps)
    run.setup.close()
    phantom = root == work / "phantom"
    row["images_of_epoch"] = NIH_TRAIN_IMAGES if phantom else len(run.stage.order.rows)
    seconds = row["images_of_epoch"] / row["img_per_s"] + row["epoch_start_s"]
    facts: Row = {
        "kind": "epoch", "recipe": str(args.recipe), "model": recipe.model.name, "precision": recipe.train.precision,
        "image_size": recipe.data.image_size, "loader": recipe.data.loader, "reader": type(run.setup.reader).__name__,
        "batch": recipe.train.global_batch_size, "mode": run.setup.mode,
        "minutes_10_epochs": round(EPOCHS * seconds / 60, 2),
        "phantom": phantom, "note": f"{row['images_of_epoch']:,} images an epoch, "
        + (f"synthetic ones of {recipe.data.image_size} px stand in for them" if phantom else str(root)),
        "device": device_name(run.setup.runtime.device), "on_gpu": run.setup.runtime.device.type == "cuda",
        "torch": torch.__version__, "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/epoch.py", *sys.argv[1:]]),
    }  # fmt: skip
    return facts | row


def timed_epochs(run: Run, num_steps: int) -> Row:
    """Train over as many epochs as it takes to time `num_steps` updates."""
    batch = run.setup.recipe.train.global_batch_size
    elapsed_s = waited_s = first_s = 0.0
    timed = 0
    last: list[Batch] = []
    while timed < num_steps:
        before = timed
        run.steps.start_window()
        with closing(updates(run)) as global_batches:
            for number, last in enumerate(global_batches, start=1):
                if number == 1:
                    first_s = run.steps.data_s
                update(run, last)
                if number > WARM_UPS:
                    timed += 1
                if number <= WARM_UPS or run.due(run.horizon.log_every):
                    waited_s += run.steps.data_s if number > WARM_UPS else 0.0
                    write_steps(run)  # as training does; begins to count the waiting anew
                if number == WARM_UPS:
                    _wait(run)
                    started_s = time.perf_counter()
                if timed == num_steps:
                    break
        if timed == before:
            raise ValueError(
                f"an epoch has {number} updates of {batch} images, too few to time one: lower train.global_batch_size"
            )
        _wait(run)
        elapsed_s += time.perf_counter() - started_s
        waited_s += run.steps.data_s
    alone_s = _alone_s(run, last)
    with host_clock(run) as inside_s:
        host_s = 0.0
        for _ in range(ALONE_STEPS):
            started_s = time.perf_counter()
            update(run, last)
            host_s += time.perf_counter() - started_s
            _wait(run)  # before the next: a full queue would have the host wait anywhere
    outside_s = (host_s - sum(inside_s)) / ALONE_STEPS
    return {
        "steps": timed, "img_per_s": float(f"{timed * batch / elapsed_s:.4g}"),
        "step_img_per_s": float(f"{batch / alone_s:.4g}"), "starvation_pct": round(100 * waited_s / elapsed_s, 2),
        "host_outside_pct": round(100 * outside_s * timed / elapsed_s, 2), "epoch_start_s": round(first_s, 3),
        "memory_mb": round(torch.cuda.max_memory_allocated() / 1e6) if torch.cuda.is_initialized() else None,
    }  # fmt: skip


def _alone_s(run: Run, micro_batches: list[Batch]) -> float:
    """Seconds of an update with its images on the device."""
    _wait(run)
    started_s = time.perf_counter()
    for _ in range(ALONE_STEPS):
        update(run, micro_batches)
    _wait(run)
    return (time.perf_counter() - started_s) / ALONE_STEPS


def _wait(run: Run) -> None:
    if run.setup.runtime.device.type == "cuda":
        torch.cuda.synchronize(run.setup.runtime.device)


def _draw(folder: Path, num: int, size: int) -> None:
    from distcxr.phantom.writing import write_phantom

    write_phantom(folder, images=num, size=size)


if __name__ == "__main__":
    main()
