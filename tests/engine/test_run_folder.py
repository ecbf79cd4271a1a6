"""A run folder that others can rely on, and `--test` on its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from distcxr.engine.checkpoint import CheckpointError
from distcxr.engine.testing import score_test_split
from distcxr.recipe import load_recipe
from distcxr.runfolder.predictions import read_predictions


def test_every_file_is_there(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        "recipe.yaml", "environment.json", "log.txt", "checkpoints", "steps.csv", "history.csv",
        "augmented.png", "validations.csv", "predictions_val.csv", "predictions_test.csv", "metrics_val.json",
        "metrics_test.json", "operating.json", "pictures", "report.html", "report.md", "report.json",
    }  # fmt: skip
    assert any(name.startswith("events.out.tfevents.") for name in names)
    with Image.open(finished / "augmented.png") as sheet:  # of logging.images=4, in one row
        assert sheet.width > 4 * 160 > 2 * sheet.height and len(set(np.asarray(sheet)[20:120, 20:120].flat)) > 20
    assert sorted(name for name in names if name.startswith(".")) == [".images.npz", ".lock"]


def test_recipe_is_resolved(finished: Path) -> None:
    written = load_recipe(finished / "recipe.yaml")
    environment = json.loads((finished / "environment.json").read_text())
    assert written.identity() == environment["identity"]
    assert written.output == finished and written.data.root == finished.parent / "phantom"
    assert environment["world_size"] == 1 and environment["versions"]["torch"] == torch.__version__.split("+")[0]
    assert {"labels", "train", "val", "test", "test_list.txt"} <= environment["hashes"].keys()
    counts = environment["splits"]
    assert sum(split["num_images"] for split in counts.values()) == 96
    assert all(0 < split["num_patients"] <= split["num_images"] for split in counts.values())


def test_steps_and_history(finished: Path) -> None:
    steps = tiny.rows(finished / "steps.csv")
    history = tiny.rows(finished / "history.csv")
    per_epoch = len(steps) // 3
    assert [int(row["step"]) for row in steps] == list(range(1, 3 * per_epoch + 1))
    assert [int(row["epoch"]) for row in history] == [0, 1, 2]
    for epoch, row in enumerate(history):
        losses = [float(step["loss"]) for step in steps if int(step["epoch"]) == epoch]
        assert float(row["train_loss"]) == pytest.approx(np.mean(losses))
        assert 0 < float(row["val_auroc"]) < 1 and float(row["val_loss"]) > 0


@pytest.mark.parametrize("split", ["val", "test"])
def test_metrics_follow_from_predictions(finished: Path, split: str) -> None:
    """The JSON's AUROC is scikit-learn's of the logits in the predictions file, and probabilities are their sigmoid."""
    metrics = json.loads((finished / f"metrics_{split}.json").read_text(), parse_constant=pytest.fail)
    found = read_predictions(finished / f"predictions_{split}.csv")
    for column, name in enumerate(found.findings):
        entry = metrics["findings"][name]
        targets = found.targets_NC[:, column]
        assert entry["num"] == len(targets) and entry["num_positive"] == targets.sum()
        if 0 < targets.sum() < len(targets):
            assert entry["auroc"] == pytest.approx(roc_auc_score(targets, found.logits_NC[:, column]), abs=1e-12)
        else:
            assert entry["auroc"] is None and entry["reason"]
    defined = [metrics["findings"][name]["auroc"] for name in metrics["macro"]["findings"]]
    assert metrics["macro"]["auroc"] == pytest.approx(np.mean(defined), abs=1e-12)


def test_a_row_a_validation_with_every_finding(finished: Path) -> None:
    """Macro AUROC and loss are history's, `best` is the best so far, and the best row's areas are the report's."""
    rows, history = tiny.rows(finished / "validations.csv"), tiny.rows(finished / "history.csv")
    for name in ("step", "epoch", "stage", "val_loss", "val_auroc", "lr"):
        assert [float(row[name]) for row in rows] == pytest.approx([float(row[name]) for row in history]), name
    scores = [float(row["val_auroc"]) for row in rows]
    assert [float(row["best"]) for row in rows] == list(np.maximum.accumulate(scores))
    best = [row for row in rows if row["is_best"] == "1"][-1]
    metrics = json.loads((finished / "metrics_val.json").read_text())
    assert metrics["step"] == int(best["step"]) == int(rows[-1]["best_step"])
    for name, entry in metrics["findings"].items():
        written = best[f"auroc_{name}"]
        assert (None if written == "" else pytest.approx(float(written))) == entry["auroc"], name
    batches = tiny.rows(finished / "validation_batches.csv")  # the newest validation's, of 16 images each
    num = json.loads((finished / "metrics_val.json").read_text())["num_samples"]
    assert [int(row["num_images"]) for row in batches] == [16] * (num // 16) + [num % 16] * (num % 16 > 0)
    assert {row["step"] for row in batches} == {rows[-1]["step"]}
    known, losses = ([float(row[name]) for row in batches] for name in ("num_known", "loss"))
    assert np.average(losses, weights=known) == pytest.approx(float(rows[-1]["val_loss"]), rel=1e-12)
    assert f"saved best, of step {best['step']}: " in (finished / "log.txt").read_text()


def test_best_is_the_best_of_history(finished: Path) -> None:
    history = tiny.rows(finished / "history.csv")
    best = max(history, key=lambda row: float(row["val_auroc"]))
    meta = json.loads((finished / "checkpoints" / "best" / "checkpoint.json").read_text())
    assert meta["state"]["step"] == int(best["step"])
    metrics = json.loads((finished / "metrics_val.json").read_text())
    assert metrics["step"] == int(best["step"])
    assert metrics["macro"]["auroc"] == pytest.approx(float(best["val_auroc"]), abs=1e-12)


def test_last_checkpoints_are_kept_as_asked(finished: Path) -> None:
    names = sorted(path.name for path in (finished / "checkpoints").iterdir())
    steps = len(tiny.rows(finished / "steps.csv"))
    assert names[0] == "best" and names[-1] == f"last-{steps:08d}" and len(names) == 4


def test_tensorboard_holds_scalars_pictures_and_hparams(finished: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished), size_guidance={"tensors": 0})
    events.Reload()
    tags = events.Tags()
    assert {"train/loss", "train/lr", "val/loss", "val/auroc/macro", "val/auroc/best"} <= set(tags["scalars"])
    assert len(events.Images("train/images")) == 3  # one sheet an epoch
    losses = [event.value for event in events.Scalars("train/loss")]
    written = [float(row["loss"]) for row in tiny.rows(finished / "steps.csv")]
    assert losses == pytest.approx(written, rel=1e-6)
    assert {"recipe/text_summary", "val/text_summary", "test/text_summary"} <= set(tags["tensors"])
    images = [tag for tag in tags["images"] if tag.startswith("val_images/")]
    assert len(images) == 4 and "val_images/none" in images
    for tag in images:
        steps = [event.step for event in events.Images(tag)]
        assert steps == [number * len(losses) // 3 for number in (1, 2, 3)]  # the first, the 2nd, the last


def test_tensorboard_has_the_final_scores_and_a_curve_of_each_finding(finished: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.metadata import parse_experiment_plugin_data
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(finished), size_guidance={"tensors": 0})
    events.Reload()
    metrics = {split: json.loads((finished / f"metrics_{split}.json").read_text()) for split in ("val", "test")}
    for split, found in metrics.items():
        (final,) = events.Scalars(f"when_done/{split}_auroc")
        assert final.value == pytest.approx(found["macro"]["auroc"])
    hparams = events.PluginTagToContent("hparams")
    experiment = parse_experiment_plugin_data(hparams["_hparams_/experiment"])
    assert [info.name.tag for info in experiment.metric_infos] == [
        "val/auroc/best", "when_done/val_auroc", "when_done/test_auroc",
    ]  # fmt: skip
    assert {"_hparams_/session_start_info", "_hparams_/session_end_info"} < set(hparams)

    defined = {name for name, found in metrics["val"]["findings"].items() if found["auroc"] is not None}
    assert {tag[7:] for tag in events.Tags()["tensors"] if tag.startswith("val/pr/")} == defined
    for name in defined:
        curves = events.Tensors(f"val/pr/{name}")
        assert len(curves) == 3
        tp, fp, tn, fn, precision, recall = make_ndarray(curves[-1].tensor_proto)
        found = metrics["val"]["findings"][name]
        assert tp[0] == found["num_positive"] and tp[0] + fp[0] == found["num"] and fn[0] == tn[0] == 0
        assert recall[0] == 1 and precision[0] == pytest.approx(found["num_positive"] / found["num"])


def test_testing_the_checkpoint_repeats_the_report(finished: Path, tmp_path: Path) -> None:
    before = json.loads((finished / "metrics_test.json").read_text())
    recipe = tiny.recipe(finished.parent, f"output={tmp_path / 'test'}", tiny.BF16)
    score_test_split(recipe, [finished / "checkpoints" / "best"], tiny.runtime(recipe))
    after = json.loads((tmp_path / "test" / "metrics_test.json").read_text())
    assert after == before
    predictions = (tmp_path / "test" / "predictions_test.csv").read_bytes()
    assert predictions == (finished / "predictions_test.csv").read_bytes()


def test_testing_with_another_model_is_refused(finished: Path, tmp_path: Path) -> None:
    recipe = tiny.recipe(finished.parent, "data.image_size=64", "data.findings=[Mass]")
    with pytest.raises(CheckpointError, match=r"data.image_size: 32 in the checkpoint, 64 in the recipe"):
        score_test_split(recipe, [finished], tiny.runtime(recipe))


def test_testing_on_patients_that_were_trained_on_is_refused(finished: Path, tmp_path: Path) -> None:
    recipe = tiny.recipe(
        finished.parent,
        "data.split=by_patient",
        "data.ratios=[0.4, 0.3, 0.3]",
        f"output={tmp_path / 'test'}",
        tiny.BF16,
    )
    with pytest.raises(ValueError, match=r"was trained or chosen on \d+ patients of this test split"):
        score_test_split(recipe, [finished], tiny.runtime(recipe))


def test_testing_another_checkpoint_leaves_the_runs_report(finished: Path) -> None:
    before = (finished / "metrics_test.json").read_text()
    recipe = tiny.recipe(finished.parent, tiny.BF16)
    first = min((finished / "checkpoints").glob("last-*"))
    score_test_split(recipe, [first], tiny.runtime(recipe))
    assert (finished / "metrics_test.json").read_text() == before
    assert json.loads((finished / f"test_{first.name}" / "metrics_test.json").read_text())["step"] == int(
        first.name[5:]
    )
