"""A scenario: what a step of DenseNet-121 asks of the device, for the budget; one process, then one of four ranks.

The rank is one of a site that shows every process its own GPU alone: local rank 1 on device 0.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import tiny
import torch
from nullcuda import counts, parts, ranks, scenario
from nullcuda.parts import NUM_UNTIL_SETTLED, figures, no_sync, step_counts
from rich.console import Console

from distcxr.engine.build import build_run
from distcxr.engine.fit import begin_next_stage, updates
from distcxr.recipe import load_recipe

RANK, LOCAL_RANK, WORLD_SIZE = 1, 1, 4
Figures = dict[str, int]

_RECIPE = Path(__file__).parents[2] / "recipes" / "densenet121.yaml"
_STAGES = "train.stages=[{epochs: 1}, {epochs: 1, optimizer: carry}]"


def one_process(folder: Path) -> dict[str, Figures]:
    run = _build(folder, _STAGES, "train.ema=0.999")
    plain = replace(run, ema=None)
    step = figures(step_counts(plain))
    assert run.ema is not None
    ema_update = _measured(lambda: run.ema.update(run.state.step))
    with closing(updates(run)) as global_batches:
        next(global_batches)
        batch_to_device = _measured(lambda: next(global_batches))
    skipping = run.setup.recipe.train.model_copy(update={"on_nan": "skip"})
    setup = replace(run.setup, recipe=run.setup.recipe.model_copy(update={"train": skipping}))
    skipping_step = figures(step_counts(replace(plain, setup=setup)))
    begin_next_stage(run)
    carried = figures(step_counts(plain))
    return {
        "step": step,
        "step_skipping": skipping_step,
        "step_with_carried_moments": carried,
        "ema_update": ema_update,
        "batch_to_device": batch_to_device,
    }


def one_rank_of_four(folder: Path) -> dict[str, Figures]:
    ranks.pretend(RANK, WORLD_SIZE, LOCAL_RANK)
    return {"step_of_a_rank": figures(step_counts(_build(folder), NUM_UNTIL_SETTLED))}


def _build(folder: Path, *overrides: str) -> tiny.Run:
    recipe = load_recipe(
        _RECIPE,
        [
            f"data.root={folder / 'phantom'}", "data.loader=torch", "data.num_workers=0", "data.val_fraction=0.25",
            "model.weights=none", "train.global_batch_size=16", "logging.images=0", f"output={folder / 'run'}",
            *overrides,
        ],
    )  # fmt: skip
    return build_run(recipe, "densenet121", tiny.runtime(recipe), Console(quiet=True))


def _measured(work: Callable[[], object]) -> Figures:
    work()
    torch.cuda.synchronize()
    with no_sync():
        return figures(counts.during(work))


if __name__ == "__main__":
    scenario.main(parts.prepare, (one_process, one_rank_of_four))
