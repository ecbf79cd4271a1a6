"""A run that was stopped and went on ends where an undisturbed one does, bit for bit.

One of the two draws pictures of its validations, and the other none; one keeps what the backward pass needs, and the
other computes it anew: they change nothing either.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
import two_views
from saved import tensors

from distcxr.engine.checkpoint import newest_checkpoint


def losses(run_folder: Path) -> list[tuple[str, str]]:
    rows = [line.split(",") for line in (run_folder / "steps.csv").read_text().splitlines()[1:]]
    return [(row[0], row[2]) for row in rows]


def steps_in_tensorboard(run_folder: Path, tag: str) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_folder), size_guidance={"images": 0})
    events.Reload()
    return [event.step for event in (events.Images if tag.startswith("val_images") else events.Scalars)(tag)]


RECOMPUTED = "train.gradient_checkpointing=true"
PICTURES = ("logging.val_images=2", "logging.val_images_every=1")

MODELS = {
    # BatchNorm, and lateral views beside frontal images.
    "two views": ("model.name=test_resnet", *two_views.KEYS),
    # Dropout in the head, BatchNorm and stochastic depth in the trunk, and what augmentation has numbers of its own.
    "dropout": (
        "model.name=test_efficientnet",
        "model.drop_rate=0.3",
        "model.drop_path=0.3",
        "train.ema=0.9",
        "train.ema_warmup=false",
        "augment.rand_augment=m6-mstd0.5-inc1",
        "augment.erase=0.5",
        "augment.mixup=0.4",
        "augment.cutmix=1",
    ),
}


@tiny.worlds(1, 2, 4)
@pytest.mark.parametrize("model", sorted(MODELS))
def test_resumed_equals_straight(tmp_path: Path, world_size: int, model: str) -> None:
    if tiny.on_main(world_size):
        (two_views.studies if model == "two views" else tiny.phantom)(tmp_path)
    torch.distributed.barrier()
    common = (*MODELS[model], "train.per_device_batch_size=2", "train.precision=bf16", "eval.splits=[val]")
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    tiny.train(tmp_path, *common, f"output={straight}", "train.max_steps=5", *PICTURES)
    tiny.train(tmp_path, *common, f"output={stopped}", "train.max_steps=2", RECOMPUTED)
    tiny.train(tmp_path, *common, f"output={stopped}", "train.max_steps=5", RECOMPUTED)

    if tiny.on_main(world_size):
        assert newest_checkpoint(stopped) is not None and newest_checkpoint(stopped).step == 5  # type: ignore[union-attr]
        reference = tensors(straight / "checkpoints" / "last-00000005")
        resumed = tensors(stopped / "checkpoints" / "last-00000005")
        assert reference.keys() == resumed.keys() and len(reference) > 100
        different = [name for name in reference if not torch.equal(reference[name], resumed[name])]
        assert different == []
        assert losses(straight) == losses(stopped) and len(losses(straight)) == 5
    torch.distributed.barrier()


# Stages of 3, 8 and 3 steps: nothing is better by 1, so the second stage ends with its fourth validation, in mid-epoch.
STAGED = (
    "train.stages=[{trainable: [layer3, layer4, fc], epochs: 1, lr: 3e-3, loss: {name: focal}}, "
    "{trainable: [layer4, fc], epochs: 4, optimizer: carry, sampling: {balance: sqrt}, "
    "schedule: {name: plateau, patience: 0, factor: 0.5}}, "
    "{epochs: 1, optimizer: carry, augment: {flip: 0}, schedule: {name: step, every: 1st, factor: 0.5}}]",
    "train.early_stop={patience: 3, min_delta: 1}", "train.ema=0.5", "optim.layer_decay=0.7", "eval.every=2st",
    "train.per_device_batch_size=4", "train.precision=bf16", "eval.splits=[val]", "checkpoint.keep=20",
)  # fmt: skip


@tiny.worlds(1, 2)
def test_resumed_equals_straight_over_stages(tmp_path: Path, world_size: int) -> None:
    """Stopped in mid-stage, at a boundary, where a validation was not due, and in the stage that early stopping ends.

    What `best` is may differ: a launch that `max_steps` ended has validated at its last step.
    """
    if tiny.on_main(world_size):
        tiny.phantom(tmp_path)
    torch.distributed.barrier()
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    tiny.train(tmp_path, *STAGED, f"output={straight}")
    for max_steps in ("2", "3", "6", "9", "null"):
        tiny.train(tmp_path, *STAGED, f"output={stopped}", f"train.max_steps={max_steps}", *PICTURES)

    if tiny.on_main(world_size):
        ends = [newest_checkpoint(folder) for folder in (straight, stopped)]
        assert ends[0] is not None and ends[1] is not None
        assert [(row["stage"], row["step"]) for row in tiny.rows(straight / "history.csv")] == [
            ("1", "3"), ("2", "6"), ("2", "9"), ("2", "11"), ("3", "14")
        ]  # fmt: skip
        for name in ("stage-1", "stage-2", "stage-3", "last-00000014"):
            reference, resumed = (tensors(folder / "checkpoints" / name) for folder in (straight, stopped))
            assert reference.keys() == resumed.keys() and len(reference) > 100
            assert [key for key in reference if not torch.equal(reference[key], resumed[key])] == [], name
        ignored = {"epoch_train_s", "history", "validated", "best_score", "best_step"}
        states = [{key: value for key, value in end.meta["state"].items() if key not in ignored} for end in ends if end]
        assert states[0] == states[1] and states[0]["ended"]
        assert losses(straight) == losses(stopped)
        assert steps_in_tensorboard(straight, "train/loss") == list(range(1, 15))
        assert steps_in_tensorboard(stopped, "train/loss") == list(range(1, 15))  # each once
        assert steps_in_tensorboard(stopped, "val_images/none") == [2, 3, 5, 6, 7, 9, 11, 13, 14]
    torch.distributed.barrier()
