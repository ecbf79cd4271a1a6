"""Overrides that change nothing are named; those that do are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from distcxr.recipe import load_recipe
from distcxr.recipe.idle import idle_overrides

STAGES = "train: {stages: [{epochs: 1, trainable: [head], lr: 1e-3}, {epochs: 2, LAST}]}\n"


def lines_of(folder: Path, text: str, *overrides: str) -> list[str]:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return idle_overrides(load_recipe(path, overrides), overrides)


@pytest.mark.parametrize(
    ("last", "override", "reason"),
    [
        ("", "train.epochs=7", "train.stages.0.epochs"),
        ("lr: 1e-4", "optim.lr=1e-4", "train.stages.0.lr"),
        ("", "optim.lr=1e-4", None),
        ("trainable: [fc]", "train.trainable=[fc]", "train.stages.0.trainable"),
        ("", "train.trainable=[fc]", None),
        ("loss: {name: focal}", "loss.gamma=3", None),
        ("schedule: {name: step}", "schedule.every=1ep", None),
    ],
)
def test_stages_decide(tmp_path: Path, last: str, override: str, reason: str | None) -> None:
    lines = lines_of(tmp_path, STAGES.replace("LAST", last), override)
    assert len(lines) == (reason is not None)
    assert reason is None or (lines[0].startswith(override.partition("=")[0]) and reason in lines[0])


@pytest.mark.parametrize(
    ("idle", "active"),
    [
        ("loss.gamma=3", "loss.name=focal"),
        ("loss.clip=0.1", "loss.name=asymmetric"),
        ("loss.margin=0.5", "loss.name=auc_margin"),
        ("loss.margin=0.5", "loss.name=partial_auc"),
        ("loss.parts=[{name: bce}]", "loss.name=combined"),
        ("schedule.every=1ep", "schedule.name=step"),
        ("schedule.patience=3", "schedule.name=plateau"),
        ("optim.momentum=0.8", "optim.name=sgd"),
        ("model.head.hidden=[32]", "model.head.kind=mlp"),
        ("train.max_skips=3", "train.on_nan=skip"),
        ("train.early_stop.min_delta=0.1", "train.early_stop.patience=3"),
    ],
)
def test_a_key_of_another_choice(tmp_path: Path, idle: str, active: str) -> None:
    assert [line.split()[0] for line in lines_of(tmp_path, "", idle)] == [idle.partition("=")[0]]
    assert lines_of(tmp_path, "", idle, active) == []
