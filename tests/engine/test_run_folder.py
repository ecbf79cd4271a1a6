"""A run folder that others can rely on, and what happens when a run is started again."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from distcxr.engine import main
from distcxr.engine.checkpoint import CheckpointError, open_checkpoint, save_last
from distcxr.engine.fit import UnreadableTrainingFile, fit
from distcxr.metrics.report import read_predictions
from distcxr.recipe import load_recipe


def train(folder: Path, *overrides: str) -> None:
    run = tiny.build(folder, *overrides)
    fit(run)
    run.reader.close()


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


BF16 = "train.precision=bf16"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of three epochs, with images drawn."""
    folder = tmp_path_factory.mktemp("finished")
    tiny.phantom(folder)
    train(folder, f"output={folder / 'run'}", "logging.images=4", BF16)
    return folder / "run"


def test_every_file_is_there(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        "recipe.yaml", "environment.json", "log.txt", "tensorboard", "checkpoints", "steps.csv", "history.csv",
        "predictions_val.csv", "predictions_test.csv", "metrics_val.json", "metrics_test.json",
    }  # fmt: skip
    assert [name for name in names if name.startswith(".")] == [".lock"]


def test_recipe_is_resolved(finished: Path) -> None:
    written = load_recipe(finished / "recipe.yaml")
    environment = json.loads((finished / "environment.json").read_text())
    assert written.identity() == environment["identity"]
    assert written.output == finished and written.data.root == finished.parent / "phantom"
    assert environment["world_size"] == 1 and environment["versions"]["torch"] == torch.__version__.split("+")[0]
    assert {"labels", "train", "val", "test", "test_list.txt"} <= environment["hashes"].keys()


def test_steps_and_history(finished: Path) -> None:
    steps = rows(finished / "steps.csv")
    history = rows(finished / "history.csv")
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


def test_best_is_the_best_of_history(finished: Path) -> None:
    history = rows(finished / "history.csv")
    best = max(history, key=lambda row: float(row["val_auroc"]))
    meta = json.loads((finished / "checkpoints" / "best" / "checkpoint.json").read_text())
    assert meta["state"]["step"] == int(best["step"])
    metrics = json.loads((finished / "metrics_val.json").read_text())
    assert metrics["step"] == int(best["step"])
    assert metrics["macro"]["auroc"] == pytest.approx(float(best["val_auroc"]), abs=1e-12)


def test_last_checkpoints_are_kept_as_asked(finished: Path) -> None:
    names = sorted(path.name for path in (finished / "checkpoints").iterdir())
    steps = len(rows(finished / "steps.csv"))
    assert names[0] == "best" and names[-1] == f"last-{steps:08d}" and len(names) == 4


def test_tensorboard_holds_scalars_pictures_and_hparams(finished: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"train/loss", "train/lr", "val/loss", "val/auroc/macro", "val/auroc/best"} <= set(tags["scalars"])
    assert len(events.Images("train/images")) == 3  # one sheet an epoch
    losses = [event.value for event in events.Scalars("train/loss")]
    written = [float(row["loss"]) for row in rows(finished / "steps.csv")]
    assert losses == pytest.approx(written, rel=1e-6)
    assert {"recipe/text_summary", "val/text_summary", "test/text_summary"} <= set(tags["tensors"])
    assert events.PluginTagToContent("hparams")


def test_testing_the_checkpoint_repeats_the_report(finished: Path, tmp_path: Path) -> None:
    before = json.loads((finished / "metrics_test.json").read_text())
    recipe = tiny.recipe(finished.parent, f"output={tmp_path / 'test'}", BF16)
    main.score_test_split(recipe, finished / "checkpoints" / "best", tiny.runtime(recipe))
    after = json.loads((tmp_path / "test" / "metrics_test.json").read_text())
    assert after == before
    predictions = (tmp_path / "test" / "predictions_test.csv").read_bytes()
    assert predictions == (finished / "predictions_test.csv").read_bytes()


def test_testing_with_another_model_is_refused(finished: Path, tmp_path: Path) -> None:
    recipe = tiny.recipe(finished.parent, "data.image_size=64", "data.findings=[Mass]")
    with pytest.raises(CheckpointError, match=r"data.image_size: 32 in the checkpoint, 64 in the recipe"):
        main.score_test_split(recipe, finished, tiny.runtime(recipe))


def test_another_recipe_is_refused(finished: Path) -> None:
    with pytest.raises(ValueError, match=r"made by another recipe:\n  - optim.lr: 0.001 in the checkpoint, 0.5 in"):
        tiny.build(finished.parent, f"output={finished}", "optim.lr=0.5", BF16)
    with pytest.raises(ValueError, match=r"holds a run, and train.resume=never would overwrite it"):
        tiny.build(finished.parent, f"output={finished}", "train.resume=never")


def test_without_output_auto_goes_on_with_the_unfinished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.phantom(tmp_path)
    monkeypatch.chdir(tmp_path)
    cheap = ("eval.splits=[]", "eval.every=100ep")
    train(tmp_path, *cheap, "train.max_steps=2")
    (first,) = (tmp_path / "runs" / "tiny").iterdir()
    train(tmp_path, *cheap, "train.max_steps=4")  # goes on
    assert list((tmp_path / "runs" / "tiny").iterdir()) == [first]
    assert len((first / "steps.csv").read_text().splitlines()) == 5
    assert len(json.loads((first / "environment.json").read_text())["earlier"]) == 1
    train(tmp_path, *cheap, "train.max_steps=4")  # has nothing left to do there: a new run
    assert len(list((tmp_path / "runs" / "tiny").iterdir())) == 2
    train(tmp_path, *cheap, "train.max_steps=1", "seed=5")  # another recipe
    assert len(list((tmp_path / "runs" / "tiny").iterdir())) == 3


def damage(checkpoint: Path, how: str) -> None:
    """The ways a disk or a hand spoils a checkpoint."""
    model, meta = checkpoint / "model.safetensors", checkpoint / "checkpoint.json"
    if how == "cut short":
        model.write_bytes(model.read_bytes()[:1000])
    elif how == "a bit flipped":
        content = bytearray(model.read_bytes())
        content[len(content) // 2] ^= 1
        model.write_bytes(content)
    elif how == "no state":
        meta.write_text(json.dumps(json.loads(meta.read_text()) | {"state": None}))
    elif how == "a file missing":
        (checkpoint / "training.pt").unlink()
    else:
        meta.write_text(how)


@pytest.mark.parametrize("how", ["cut short", "a bit flipped", "no state", "a file missing", "[]", "{}", "{", "null"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str) -> None:
    tiny.phantom(tmp_path)
    common = (f"output={tmp_path / 'run'}", "eval.splits=[]", "checkpoint.every=1st")
    train(tmp_path, *common, "train.max_steps=3")
    newest = tmp_path / "run" / "checkpoints" / "last-00000003"
    damage(newest, how)
    (tmp_path / "run" / "checkpoints" / ".last-00000004.part").mkdir()  # a save that was killed
    (tmp_path / "run" / "environment.json").write_text("")
    with pytest.raises(ValueError, match=r"last-00000003\S* .*(use another checkpoint|is not a checkpoint)"):
        tiny.build(tmp_path, f"train.resume={newest}")
    run = tiny.build(tmp_path, *common, "train.max_steps=5")
    assert run.state.step == 2
    assert "passed over a checkpoint" in caplog.text and "last-00000003" in caplog.text
    fit(run)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["best", "damaged-last-00000003", "last-00000003", "last-00000004", "last-00000005"]


def test_a_run_folder_means_its_newest_checkpoint(finished: Path, tmp_path: Path) -> None:
    run = tiny.build(finished.parent, f"train.resume={finished}", f"output={tmp_path / 'branch'}", BF16)
    assert run.state.step == run.horizon.total_steps
    with pytest.raises(ValueError, match=r"is not a checkpoint: it has no checkpoint.json"):
        tiny.build(tmp_path, f"train.resume={tmp_path}", f"data.root={finished.parent / 'phantom'}")


def test_going_back_does_not_lose_newer_checkpoints(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    common = ("eval.splits=[]", "checkpoint.every=1st", f"output={tmp_path / 'run'}")
    train(tmp_path, *common, "train.max_steps=3")
    older = tmp_path / "run" / "checkpoints" / "last-00000002"
    with pytest.raises(
        ValueError, match=r"holds newer checkpoints than last-00000002 .*: they would be lost. Give output="
    ):
        tiny.build(tmp_path, *common, f"train.resume={older}")


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    """The other process is a real one: locks are held by processes."""
    holder = (
        "import sys, pathlib; from distcxr.engine.folder import claim; claim(pathlib.Path(sys.argv[1])); "
        "print('held', flush=True); sys.stdin.read()"
    )
    tiny.phantom(tmp_path)
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", holder, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=rf"another run is writing to .*run \(process {other.pid} on"):
            tiny.build(tmp_path, f"output={tmp_path / 'run'}")
        other.stdin.close()
    assert tiny.build(tmp_path, f"output={tmp_path / 'run'}").state.step == 0


def test_testing_on_patients_that_were_trained_on_is_refused(finished: Path, tmp_path: Path) -> None:
    recipe = tiny.recipe(
        finished.parent, "data.split=by_patient", "data.ratios=[0.4, 0.3, 0.3]", f"output={tmp_path / 'test'}", BF16
    )
    with pytest.raises(ValueError, match=r"was trained or chosen on \d+ patients of this test split"):
        main.score_test_split(recipe, finished, tiny.runtime(recipe))


def test_testing_another_checkpoint_leaves_the_runs_report(finished: Path) -> None:
    before = (finished / "metrics_test.json").read_text()
    recipe = tiny.recipe(finished.parent, BF16)
    first = min((finished / "checkpoints").glob("last-*"))
    main.score_test_split(recipe, first, tiny.runtime(recipe))
    assert (finished / "metrics_test.json").read_text() == before
    assert json.loads((finished / f"test_{first.name}" / "metrics_test.json").read_text())["step"] == int(
        first.name[5:]
    )


def test_best_survives_a_crash_between_the_renames(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "checkpoints" / "best", tmp_path / "run" / "checkpoints" / ".best.old")
    assert open_checkpoint(tmp_path / "run").step > 0


def test_going_on_in_another_folder_takes_the_best_along(finished: Path, tmp_path: Path) -> None:
    last = max((finished / "checkpoints").glob("last-*"))
    train(finished.parent, f"train.resume={last}", f"output={tmp_path / 'moved'}", BF16)
    before, after = (json.loads((run / "metrics_val.json").read_text()) for run in (finished, tmp_path / "moved"))
    assert after == before

    alone = tmp_path / "alone" / "checkpoints" / last.name
    shutil.copytree(last, alone)
    run = tiny.build(finished.parent, f"train.resume={alone}", BF16)
    assert run.folder == tmp_path / "alone" and run.state.best_step is None


def test_going_on_from_the_best_repeats_the_straight_run(finished: Path, tmp_path: Path) -> None:
    """`best` is written at an epoch's end: its history must hold that epoch, once."""
    best = finished / "checkpoints" / "best"
    train(finished.parent, f"train.resume={best}", f"output={tmp_path / 'branch'}", BF16)
    columns = ("epoch", "step", "train_loss", "val_loss", "val_auroc", "lr")
    straight, branch = (rows(run / "history.csv") for run in (finished, tmp_path / "branch"))
    assert [[row[name] for name in columns] for row in branch] == [[row[name] for name in columns] for row in straight]


def test_other_data_is_refused_on_resume(tmp_path: Path) -> None:
    data = tiny.phantom(tmp_path)
    common = (f"output={tmp_path / 'run'}", "eval.splits=[]", "data.missing=skip")
    train(tmp_path, *common, "train.max_steps=2")
    gone = tiny.build(tmp_path, *common).index.files([0])[0]
    gone.unlink()
    assert data in gone.parents
    with pytest.raises(ValueError, match=r"was trained on other data: (train|val|test) changed since"):
        tiny.build(tmp_path, *common)


def test_a_run_killed_before_its_scores_gets_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.phantom(tmp_path)
    monkeypatch.chdir(tmp_path)
    train(tmp_path, "train.max_steps=2")
    (only,) = (tmp_path / "runs" / "tiny").iterdir()
    (only / "metrics_test.json").unlink()
    train(tmp_path, "train.max_steps=2")
    assert list((tmp_path / "runs" / "tiny").iterdir()) == [only] and (only / "metrics_test.json").exists()


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    run = tiny.build(tmp_path, f"output={tmp_path / 'run'}")
    next(run.module.parameters()).data[0] = float("nan")
    with pytest.raises(ValueError, match=r"the weights are not finite after step 0"):
        save_last(run)
    assert not list((tmp_path / "run" / "checkpoints").glob("last-*"))


def test_unknown_macro_findings(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    with pytest.raises(ValueError, match=r"eval.macro_findings names Nodul; data.findings are Atelectasis"):
        tiny.build(tmp_path, f"output={tmp_path / 'run'}", "eval.macro_findings=[Mass, Nodul]")


def test_unwritable_run_folder(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"run folder .*file/run can't be written: .*output=FOLDER"):
        tiny.build(tmp_path, f"output={tmp_path / 'file' / 'run'}")


def break_images(data: Path, names: list[str]) -> None:
    """Truncated, empty and garbage files in turn."""
    for number, name in enumerate(names):
        path = data / "images" / name
        path.write_bytes((path.read_bytes()[:200], b"", b"not a picture")[number % 3])


@pytest.mark.parametrize("loader", ["torch", "dali"])
def test_bad_files_are_named_and_the_run_goes_on(tmp_path: Path, loader: str, caplog: pytest.LogCaptureFixture) -> None:
    data = tiny.phantom(tmp_path)
    probe = tiny.build(tmp_path, f"output={tmp_path / 'probe'}")
    drawn_first = next(probe.train_loader.order.epoch(0))[1]  # an epoch drops its tail: these are read for sure
    chosen = {"train": drawn_first[:3], "test": probe.splits.test[:3]}
    bad = {split: probe.index.file_names(rows) for split, rows in chosen.items()}
    break_images(data, bad["train"] + bad["test"])
    train(tmp_path, f"output={tmp_path / 'run'}", f"data.loader={loader}", "train.epochs=1")
    for name in bad["train"] + bad["test"]:
        assert name in caplog.text
    metrics = json.loads((tmp_path / "run" / "metrics_test.json").read_text())
    assert sorted(entry["file"] for entry in metrics["unreadable"]) == sorted(bad["test"])
    assert metrics["num_samples"] == len(probe.splits.test) - 3
    assert not set(bad["test"]) & set(read_predictions(tmp_path / "run" / "predictions_test.csv").files)

    with pytest.raises(UnreadableTrainingFile, match=rf"{bad['train'][0][:4]}.* can't be read: .*data.on_error=mask"):
        train(tmp_path, f"output={tmp_path / 'stop'}", f"data.loader={loader}", "data.on_error=stop")
    with pytest.raises(ValueError, match=r"more than data.max_errors=1"):
        train(tmp_path, f"output={tmp_path / 'max'}", f"data.loader={loader}", "data.max_errors=1")


def test_a_diverged_run_stops_and_says_so(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) at step \d+: training has diverged. Lower optim.lr"):
        train(tmp_path, f"output={tmp_path / 'run'}", "optim={name: sgd, lr: 1e30}", "train.clip_norm=null")


def test_other_png_kinds_train_as_well(tmp_path: Path) -> None:
    data = tiny.phantom(tmp_path)
    for number, path in enumerate(sorted((data / "images").iterdir())[:40]):
        with Image.open(path) as opened:
            grey = opened.convert("L")
        if number % 4 == 0:
            grey.convert("RGBA").save(path)
        elif number % 4 == 1:
            grey.convert("P").save(path)
        elif number % 4 == 2:
            Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(path)
    train(tmp_path, f"output={tmp_path / 'run'}", "train.epochs=1")
    assert json.loads((tmp_path / "run" / "metrics_val.json").read_text())["unreadable"] == []
