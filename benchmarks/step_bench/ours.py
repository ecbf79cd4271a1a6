"""Our own loop: a recipe's run, its `train_step`, and what `engine.fit` does beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console

import distcxr
from distcxr.engine import step as engine_step
from distcxr.engine.build import build_run
from distcxr.engine.fit import updates
from distcxr.engine.setup import Setup
from distcxr.engine.state import Run
from distcxr.engine.step import train_step
from distcxr.engine.step_writing import write_steps
from distcxr.recipe import load_recipe
from distcxr.runtime import start_runtime
from step_bench.data import make_batches
from step_bench.job import NUM_BATCHES, Job
from step_bench.loops import MODES
from step_bench.meter import Meter

RECIPE = Path(__file__).parents[2] / "recipes" / "densenet121.yaml"


def train(job: Job, meter: Meter) -> None:
    """Train until the meter ends."""
    meter.starts_building()
    recipe = load_recipe(
        RECIPE,
        [
            f"model.name={job.model}", "model.weights=none", f"data.root={job.data}", "logging.images=0",
            f"data.image_size={job.image_size}", "data.loader=torch", "data.num_workers=0", f"output={job.output}",
            f"train.global_batch_size={job.batch}", "train.epochs=100000", f"train.precision={job.precision}",
            *MODES[job.mode],
        ],
    )  # fmt: skip
    run = build_run(recipe, "benchmark", start_runtime(recipe), Console(quiet=True))
    with closing(updates(run)) as from_loader:  # for their augmentation
        batches = [batch for [batch] in islice(from_loader, NUM_BATCHES)]
    run.setup.close()
    own = [
        replace(batch, pixels=pixels, targets=labels, mask=torch.ones_like(labels), unreadable=())
        for batch, (pixels, labels) in zip(batches, make_batches(job), strict=True)
    ]
    meter.facts |= {
        "version": distcxr.__version__, "mode": run.setup.mode,
        "parameters": sum(parameter.numel() for parameter in run.setup.module.parameters()),
    }  # fmt: skip
    meter.host_clock = lambda: host_clock(run)
    run.steps.start_window()
    for batch in meter.batches(own):
        update(run, [batch])
        if run.due(run.horizon.log_every):
            write_steps(run)


def update(run: Run, micro_batches: list[Any]) -> None:
    """One update with the bookkeeping of `fit.train_pass`."""
    run.stop.agreed()
    row = {"step": run.state.step + 1, "epoch": run.state.epoch, "lr": run.lr}
    run.steps.add(row, run.state.batch, train_step(run, micro_batches))
    run.state.advance(run.horizon.steps_per_epoch)


@contextmanager
def host_clock(run: Run) -> Generator[list[float]]:
    """Within the block, a list of the host's seconds in each forward pass, backward pass and update."""
    inside: list[float] = []

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            started_s = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                inside.append(time.perf_counter() - started_s)

        return wrapper

    accelerator = run.setup.runtime.accelerator
    with (
        patch.object(Setup, "call", timed(Setup.call)),
        patch.object(accelerator, "backward", timed(accelerator.backward)),
        patch.object(engine_step, "update", timed(engine_step.update)),
    ):
        yield inside
    assert len(inside) % 3 == 0 and inside, "train_step no longer calls what is timed here"
