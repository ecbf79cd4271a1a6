"""A run that continues on another number of ranks ends where one does that never stopped."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
import two_views
from saved import tensors

from distcxr.engine.checkpoint import open_checkpoint

# An epoch has three steps: the stop is in mid-epoch, and so is the end. All that may depend on the rank is
# on: average, augmentation, weighted sampling, warm-up and cosine; dropout and BatchNorm where the case has them.
RUN = (
    "optim={name: sgd, lr: 0.1}", "schedule={name: cosine, warmup: 2st}", "train.ema=0.5", "train.epochs=2",
    "data.sampling={balance: sqrt}", "eval.splits=[]", "eval.every=9st", "checkpoint.every=9st", "checkpoint.keep=9",
    "logging.every=1st",
)  # fmt: skip
NO_BATCH_NORM = ("model.name=test_convnext", "augment.rand_augment=m6-mstd0.5-inc1", "augment.mixup=0.4")
TWO_VIEWS = ("model.name=test_convnext", "augment.rand_augment=m6-mstd0.5-inc1", *two_views.KEYS)
MICRO_BATCHES = (  # of one size on any number of ranks
    "model.name=test_efficientnet", "model.drop_rate=0.3", "model.drop_path=0.3", "train.per_device_batch_size=4",
    "train.bn_averages=global", "train.gradient_checkpointing=true",
)  # fmt: skip
STOP, STEPS = 2, 5


def launch(folder: str, overrides: list[str]) -> None:
    tiny.train(Path(folder), *overrides)


@pytest.mark.parametrize(
    ("model", "worlds"),
    [
        pytest.param(NO_BATCH_NORM, (4, 2), id="no BatchNorm, 4 to 2 ranks"),
        pytest.param(TWO_VIEWS, (2, 1), id="lateral views, 2 to 1 rank"),
        pytest.param(MICRO_BATCHES, (1, 4), id="BatchNorm and dropout, 1 to 4 ranks"),
    ],
)
def test_a_run_continues_on_another_number_of_ranks(
    tmp_path: Path, in_world: Callable[..., None], model: tuple[str, ...], worlds: tuple[int, int]
) -> None:
    (two_views.studies if model == TWO_VIEWS else tiny.phantom)(tmp_path)
    straight, changed = tmp_path / "straight", tmp_path / "changed"

    tiny.train(tmp_path, *RUN, *model, f"output={straight}", f"train.max_steps={STEPS}")
    for world_size, max_steps in zip(worlds, (STOP, STEPS), strict=True):
        named = [*RUN, *model, f"output={changed}", f"train.max_steps={max_steps}"]
        in_world(world_size, launch, folder=str(tmp_path), overrides=named)

    ends = [open_checkpoint(folder / "checkpoints" / f"last-{STEPS:08}") for folder in (straight, changed)]
    assert [ends[0].meta["state"][key] for key in ("epoch", "batch")] == [
        ends[1].meta["state"][key] for key in ("epoch", "batch")
    ]
    expected, found = (tensors(end.path) for end in ends)
    counted = {name for name in expected if name.endswith("num_batches_tracked")}  # passes of rank 0; nothing reads it
    assert expected.keys() == found.keys()
    apart = {
        name: (expected[name] - found[name]).abs().max().item() / max(1, expected[name].abs().max().item())
        for name in expected.keys() - counted
    }
    assert max(apart.values()) < 2e-5, sorted(apart, key=apart.__getitem__)[-3:]
    losses = [[float(row["loss"]) for row in tiny.rows(folder / "steps.csv")] for folder in (straight, changed)]
    assert losses[0] == pytest.approx(losses[1], abs=2e-6) and len(losses[0]) == STEPS
    validated = [end.meta["state"]["last_val"]["val_loss"] for end in ends]
    assert validated[0] == pytest.approx(validated[1], abs=1e-5)

    (logged,) = re.findall("resumed under other conditions: (.*)", (changed / "log.txt").read_text())
    assert logged.startswith(f"ranks {worlds[0]} before, {worlds[1]} now")
    assert logged.endswith(
        "As before: the order of samples, global batches, augmentation and learning rates. Not as before: sums, which "
        "are rounded in another order"
    )
