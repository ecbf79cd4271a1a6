"""What the recipes of a single stage claim, held against the running engine."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import watched
from torch import nn

import distcxr.engine.validate as validating
from distcxr.data.augment import COLUMNS, identity_parameters
from distcxr.engine.evaluate import Scores, evaluate
from distcxr.models.factory import build_model

BRIEF = ("data.image_size=32", "train.global_batch_size=4", "train.max_steps=1")
SIX = ("resnet18", "resnet34", "resnet50", "resnet101", "densenet121", "densenet169")


def batch_norms(module: nn.Module) -> int:
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())


# --- the study of six networks ------------------------------------------------------------------------------------


def test_the_study_trains_from_layer2_on_for_50_epochs(tmp_path: Path, nih: Path) -> None:
    cap = 15
    run = watched.build(
        "study/resnet18", tmp_path / "run", nih, "data.image_size=32", f"data.sampling.cap_per_label={cap}",
        "data.max_train_samples=90", "data.max_test_samples=16", "train.max_steps=2",
    )  # fmt: skip
    assert watched.published_batch("study/resnet18") == 64
    assert (len(run.setup.splits.train), len(run.setup.splits.test)) == (90, 16)
    (stage,) = run.stages
    assert stage.horizon.total_steps == 50 * len(stage.order) and len(stage.order.rows) < 90
    assert run.setup.index.targets_NC[stage.order.rows][:, -1].sum() == cap
    updates = watched.train(run)
    names = [name for name, _ in run.setup.module.named_parameters()]
    later = frozenset(name for name in names if not name.startswith(("conv1", "bn1", "layer1")))
    assert 0 < len(later) < len(names) and run.setup.index.findings[-1] == "No Finding"
    assert [(update.trained, update.lr) for update in updates] == [(later, frozenset({1e-5}))] * 2
    assert stage.lr_at(stage.horizon.total_steps - 1, [0.5] * 49) == 1e-5
    optimizer = run.training.optimizer.optimizer
    assert type(optimizer) is torch.optim.Adam
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0}


def test_the_study_differs_in_the_network_alone() -> None:
    recipes = [watched.load(f"study/{name}") for name in SIX]
    assert [recipe.model.name for recipe in recipes] == list(SIX)
    first = recipes[0]
    assert all(recipe.model_copy(update={"model": first.model}) == first for recipe in recipes)


# --- chexnet ------------------------------------------------------------------------------------------------------


def test_chexnet_takes_its_classes_from_the_csv(tmp_path: Path, nih: Path) -> None:
    data = shutil.copytree(nih, tmp_path / "data")
    table = data / "Data_Entry_2017_v2020.csv"
    table.write_text(table.read_text().replace(",Mass,", ",Mass|Other,"))
    run = watched.build("chexnet", tmp_path / "run", data, *BRIEF)
    run.setup.close()
    named = {name for row in tiny.rows(table) for name in row["Finding Labels"].split("|")}
    assert run.setup.index.findings == tuple(sorted(named)) and {"No Finding", "Other"} <= named
    assert run.setup.module(torch.zeros(2, 3, 64, 64)).shape == (2, len(named))


def test_chexnet_shows_its_network_256_px(tmp_path: Path, nih: Path) -> None:
    own = watched.load("chexnet").data.image_size
    run = watched.build("chexnet", tmp_path / "run", nih, f"data.image_size={own}", "train.global_batch_size=2")
    run.setup.close()
    assert run.setup.transform(torch.zeros(1, 1, own, own, dtype=torch.uint8), identity_parameters(1)).shape[-1] == 256
    option = watched.load("chexnet", "augment.center_crop=0.9", "data.image_size=284")
    assert round(option.data.image_size * option.augment.center_crop) == 256
    assert watched.published_batch("chexnet") == 12
    optimizer = run.training.optimizer.optimizer
    assert type(optimizer) is torch.optim.AdamW and optimizer.param_groups[0]["lr"] == 1e-4
    assert {group["name"]: group["weight_decay"] for group in optimizer.param_groups} == {"decay": 1e-4}
    (stage,) = run.stages
    assert stage.horizon.total_steps == 10 * len(stage.order) and stage.lr_at(stage.horizon.total_steps - 1, ()) == 1e-4


def test_chexnet_resumes_by_itself_and_prints_a_row_per_class(
    tmp_path: Path, nih: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = (
        "model.library=timm",
        "model.name=test_resnet",
        "data.image_size=32",
        "eval.splits=[test]",
        "data.max_test_samples=40",
    )
    for last in (2, 5):
        run = watched.build("chexnet", tmp_path / "run", nih, *small, f"train.max_steps={last}")
        updates = watched.train(run)
    assert len(updates) == 3 and run.state.step == 5
    table = caplog.text[caplog.text.rindex("AUROC", 0, caplog.text.rindex("Pneumothorax")) - 2000 :]
    assert all(name.replace("_", " ") in table or name in table for name in run.setup.index.findings)


# --- efficientnet -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["efficientnet_b4", "efficientnet_b4_metadata"])
def test_the_trunk_is_frozen_and_nobody_is_healthy(recipe: str, tmp_path: Path, nih: Path) -> None:
    run = watched.build(recipe, tmp_path / "run", nih, *BRIEF)
    rows = np.concatenate([run.setup.splits.train, run.setup.splits.val, run.setup.splits.test])
    sick = np.asarray(run.setup.index.targets_NC.any(axis=1))
    assert run.setup.index.targets_NC[rows].any(axis=1).all() and len(rows) == sick.sum() < len(sick)
    before = {name: tensor.clone() for name, tensor in run.setup.module.state_dict().items()}
    (update,) = watched.train(run)
    changed = {name for name, tensor in run.setup.module.state_dict().items() if not torch.equal(tensor, before[name])}
    assert update.stepped == update.trained == changed
    assert not update.measuring and batch_norms(run.setup.module) > 50
    widths = sorted(tensor.shape[0] for name, tensor in before.items() if name in changed and tensor.ndim == 2)
    assert widths[0] == 14 and 512 in widths
    assert update.lr == {1e-3} and watched.published_batch(recipe) == 32


def test_it_crops_turns_shifts_and_zooms(tmp_path: Path, nih: Path) -> None:
    run = watched.build("efficientnet_b4", tmp_path / "run", nih, *BRIEF, "model.name=efficientnet_b0")
    batch = next(iter(run.training.loader.epoch(0, 0)))
    run.setup.close()
    assert run.training.transform(batch.pixels, batch.augment).shape[-1] == round(32 * 0.875)
    column = dict(zip(COLUMNS, batch.augment.T, strict=True))
    assert all(column[name].unique().numel() > 1 for name in ("rotate_deg", "translate_x", "translate_y", "scale"))
    assert not column["flip"].any()
    assert watched.load("efficientnet_b4").data.image_size * 0.875 == 224


def test_age_sex_and_view_reach_the_head(tmp_path: Path, nih: Path) -> None:
    run = watched.build("efficientnet_b4_metadata", tmp_path / "run", nih, *BRIEF)
    batch = next(iter(run.training.loader.epoch(0, 0)))
    run.setup.close()
    run.setup.module.eval()
    with torch.no_grad():
        logits = run.setup.logits(run.setup.module, batch)
        other = run.setup.logits(run.setup.module, replace(batch, metadata=1 - batch.metadata))
    assert batch.metadata.shape[1] > 3 and (logits != other).any(dim=1).all()


# --- convnext -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["convnext_tiny", "convnext_small", "convnext_large", "swin_base_patch4_window12_384", "vit_base_patch16_384"],
)
def test_other_networks_by_override(name: str) -> None:
    recipe = watched.load("convnext_base", f"model.name={name}")
    with torch.device("meta"):
        module = build_model(
            recipe.model.name, library=recipe.model.library, num_classes=14, image_size=recipe.data.image_size
        )
        assert module(torch.zeros(1, 3, 384, 384)).shape == (1, 14)
    assert f"{name}" in (watched.RECIPES / "convnext_base.yaml").read_text()


def test_convnext_lowers_its_rate_and_ends_when_validation_no_longer_gains(
    tmp_path: Path, nih: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = watched.build(
        "convnext_base", tmp_path / "run", nih, "model.name=test_convnext", "data.image_size=32",
        "data.findings=[Infiltration]", "data.max_train_samples=24", "data.max_val_samples=16",
        "data.max_test_samples=16",
    )  # fmt: skip
    assert [len(run.setup.splits.rows(split)) for split in ("train", "test")] == [24, 16]
    assert watched.published_batch("convnext_base") == 64
    first: list[Scores] = []

    def never_better(*args: object, **kwargs: object) -> Scores:
        first.append(evaluate(*args, **kwargs)) if not first else None  # type: ignore[arg-type]
        return first[0]

    monkeypatch.setattr(validating, "evaluate", never_better)
    updates = watched.train(run)
    rates = [max(update.lr) for update in updates]
    epochs = [update.epoch for update in updates]
    assert epochs[-1] == 15  # the first, and 15 without a better one
    assert rates == pytest.approx([1e-4 if epoch <= 11 else 1e-5 for epoch in epochs])  # as ReduceLROnPlateau: after 11
    optimizer = run.training.optimizer.optimizer
    assert type(optimizer) is torch.optim.AdamW and optimizer.param_groups[0]["weight_decay"] == 0.01


def test_convnext_minimises_focal_loss_with_alpha(tmp_path: Path, nih: Path) -> None:
    run = watched.build("convnext_base", tmp_path / "run", nih, *BRIEF, "model.name=test_convnext")
    run.setup.close()
    assert run.stages[0].horizon.total_steps == 30 * len(run.stages[0].order)
    logits, targets = torch.randn(5, 14), (torch.rand(5, 14) < 0.3).byte()
    known = torch.ones_like(targets)
    p = torch.where(targets > 0, logits.sigmoid(), 1 - logits.sigmoid())
    expected = -(torch.where(targets > 0, 0.25, 0.75) * (1 - p) ** 2 * p.log()).sum()
    torch.testing.assert_close(run.training.loss(logits, targets, known), expected)


# --- two classes --------------------------------------------------------------------------------------------------

HEART = (r"data.patient_pattern='^(\d+)_'", "model.library=timm", "model.name=test_resnet", "data.image_size=32")


def test_two_classes_by_patient_with_a_rate_that_falls_every_7_epochs(tmp_path: Path, heart: Path) -> None:
    run = watched.build(
        "cardiomegaly_binary", tmp_path / "run", heart, *HEART, "train.epochs=8", "data.max_train_samples=16",
        "eval.splits=[test]",
    )  # fmt: skip
    assert run.setup.index.findings == ("abnormal", "normal") and run.setup.module.get_submodule("fc").out_features == 2
    patients = [set(run.setup.index.patient_id[run.setup.splits.rows(split)]) for split in ("train", "val", "test")]
    assert not (patients[0] & patients[1] or patients[0] & patients[2] or patients[1] & patients[2])
    assert run.setup.transform.mean == run.setup.transform.std == (0.5, 0.5, 0.5)
    updates = watched.train(run)
    assert [max(update.lr) for update in updates] == pytest.approx([1e-5] * 14 + [1e-6] * 2)
    scores = json.loads((tmp_path / "run" / "metrics_test.json").read_text())
    assert {"auroc", "accuracy"} <= flat_keys(scores["findings"]["abnormal"])
    logits, targets = torch.randn(6, 2), torch.eye(2)[torch.randint(2, (6,))].byte()
    expected = nn.functional.cross_entropy(logits, targets.argmax(1), reduction="sum")
    torch.testing.assert_close(run.setup.loss(logits, targets, torch.ones_like(targets)), expected)


def flat_keys(values: object) -> set[str]:
    if isinstance(values, dict):
        return set(values) | {key for value in values.values() for key in flat_keys(value)}
    return set()


def test_two_classes_split_7_1_2(tmp_path: Path, heart: Path) -> None:
    run = watched.build("cardiomegaly_binary", tmp_path / "run", heart, *HEART[1:])  # an image is a patient
    run.setup.close()
    shares = np.array([len(run.setup.splits.rows(split)) for split in ("train", "val", "test")]) / len(run.setup.index)
    assert np.abs(shares - (0.7, 0.1, 0.2)).max() < 0.1  # drawn for each patient, so they are met on average
    assert run.stages[0].horizon.total_steps == 50 * len(run.stages[0].order)


@pytest.mark.parametrize("logits", [1, 2])
def test_two_classes_from_a_csv_and_one_logit(logits: int, tmp_path: Path, heart: Path) -> None:
    table = tmp_path / "labels.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "class", "patient"])
        for path in sorted(heart.rglob("*.png")):
            writer.writerow([path.relative_to(heart), path.parent.name, path.name[:8]])
    columns = (
        "data.dataset=csv", f"data.columns.table={table}", "data.columns.image=file", "data.columns.label=class",
        "data.columns.patient=patient",
    )  # fmt: skip
    one = ("loss.name=bce", "data.findings=[abnormal]") if logits == 1 else ()
    more = ("train.max_steps=1", "eval.splits=[test]")
    run = watched.build("cardiomegaly_binary", tmp_path / "run", heart, *columns, *HEART[1:], *one, *more)
    watched.train(run)
    assert run.setup.module.get_submodule("fc").out_features == logits
    scores = json.loads((tmp_path / "run" / "metrics_test.json").read_text())
    assert scores["findings"]["abnormal"]["auroc"] is not None
