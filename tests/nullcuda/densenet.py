"""A scenario: what a step of DenseNet-121 asks of the device, for the budget; one process, then one of four ranks.

The rank is one of a site that shows every process its own GPU alone: local rank 1 on device 0.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
from nullcuda import counts, parts, ranks, scenario
from nullcuda.parts import NUM_UNTIL_SETTLED, figures, no_sync, step_counts
from rich.console import Console

from distcxr.data.augment import DeviceTransform, draw_parameters
from distcxr.data.batch import Batch
from distcxr.engine.build import build_run
from distcxr.engine.fit import begin_next_stage, updates
from distcxr.recipe import load_recipe
from distcxr.recipe.augmentation import Augment

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
        (batch,) = next(global_batches)
        batch_to_device = _measured(lambda: next(global_batches))
    rand_augment = _transforming(batch, rand_augment="m6-mstd0.5-inc1")
    mixing = _transforming(batch, erase=0.5, mixup=0.4, cutmix=1)
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
        "rand_augment": rand_augment,
        "erasing_and_mixing": mixing,
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


def _transforming(batch: Batch, **augment: Any) -> Figures:
    """Of a batch's images and labels, changed by these keys of `augment` and normalised."""
    spec = Augment(**augment)
    drawn = draw_parameters(spec, seed=0, epoch=0, positions=np.arange(len(batch))).to(batch.pixels.device)
    changed, transform = replace(batch, augment=drawn), DeviceTransform(spec, (0.5,), (0.5,))

    def work() -> None:
        transform.with_mixed_labels(changed)
        transform(changed.pixels, changed.augment)

    return _measured(work)


def _measured(work: Callable[[], object]) -> Figures:
    work()
    torch.cuda.synchronize()
    with no_sync():
        return figures(counts.during(work))


if __name__ == "__main__":
    scenario.main(parts.prepare, (one_process, one_rank_of_four))
