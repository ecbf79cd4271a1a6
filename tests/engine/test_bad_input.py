"""Files that can't be read, runs that diverge, folders that can't be written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from rich.console import Console

from distcxr.engine.fit import UnreadableTrainingFile
from distcxr.engine.main import train
from distcxr.runfolder.predictions import read_predictions
from distcxr.tracking.tracker import Tracker


def break_images(data: Path, names: list[str]) -> None:
    """Truncated, empty and garbage files in turn."""
    for number, name in enumerate(names):
        path = data / "images" / name
        path.write_bytes((path.read_bytes()[:200], b"", b"not a picture")[number % 3])


@pytest.mark.parametrize("loader", ["torch", "dali"])
def test_bad_files_are_named_and_the_run_goes_on(tmp_path: Path, loader: str, caplog: pytest.LogCaptureFixture) -> None:
    data = tiny.phantom(tmp_path)
    probe = tiny.build(tmp_path, f"output={tmp_path / 'probe'}")
    drawn_first = next(probe.training.loader.order.epoch(0))[1]  # an epoch drops its tail: these are read for sure
    chosen = {"train": drawn_first[:3], "test": probe.setup.splits.test[:3]}
    bad = {split: probe.setup.index.file_names(rows) for split, rows in chosen.items()}
    break_images(data, bad["train"] + bad["test"])
    tiny.train(tmp_path, f"output={tmp_path / 'run'}", f"data.loader={loader}", "train.epochs=1")
    for name in bad["train"] + bad["test"]:
        assert name in caplog.text
    metrics = json.loads((tmp_path / "run" / "metrics_test.json").read_text())
    assert sorted(entry["file"] for entry in metrics["unreadable"]) == sorted(bad["test"])
    assert metrics["num_samples"] == len(probe.setup.splits.test) - 3
    assert not set(bad["test"]) & set(read_predictions(tmp_path / "run" / "predictions_test.csv").files)

    with pytest.raises(UnreadableTrainingFile, match=rf"{bad['train'][0][:4]}.* can't be read: .*data.on_error=mask"):
        tiny.train(tmp_path, f"output={tmp_path / 'stop'}", f"data.loader={loader}", "data.on_error=stop")
    with pytest.raises(ValueError, match=r"more than data.max_errors=1"):
        tiny.train(tmp_path, f"output={tmp_path / 'max'}", f"data.loader={loader}", "data.max_errors=1")


def test_a_diverged_run_stops_and_says_so(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) at step \d+: training has diverged"):
        tiny.train(tmp_path, f"output={tmp_path / 'run'}", "optim={name: sgd, lr: 1e30}", "train.clip_norm=null")


def test_a_failed_run_sends_what_it_tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B sends in the background, and a failed process with others beside it ends at once."""
    tiny.phantom(tmp_path)
    closed: list[Tracker] = []
    monkeypatch.setattr(Tracker, "close", lambda tracker: closed.append(tracker))
    recipe = tiny.recipe(tmp_path, f"output={tmp_path / 'run'}", "optim={name: sgd, lr: 1e30}", "train.clip_norm=null")
    with pytest.raises(ValueError, match="training has diverged"):
        train(recipe, "tiny", tiny.runtime(recipe), Console(quiet=True))
    assert len(closed) == 1


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
    tiny.train(tmp_path, f"output={tmp_path / 'run'}", "train.epochs=1")
    assert json.loads((tmp_path / "run" / "metrics_val.json").read_text())["unreadable"] == []


def test_unwritable_run_folder(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"run folder .*file/run can't be written: .*output=FOLDER"):
        tiny.build(tmp_path, f"output={tmp_path / 'file' / 'run'}")


def test_unknown_macro_findings(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    with pytest.raises(ValueError, match=r"eval.macro_findings names Nodul; data.findings are Atelectasis"):
        tiny.build(tmp_path, f"output={tmp_path / 'run'}", "eval.macro_findings=[Mass, Nodul]")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("model.name=resnet81", "no such classifier in timm"),
        ("model.weights=weihgts.safetensors", r"model.weights=.*weihgts.safetensors: no such file"),
        ("model.weights=rad_dino", r"rad_dino is of vit_base_patch14_dinov2 \(timm\), and model\.name is test_resnet"),
    ],
)
def test_a_misspelt_network_is_refused_before_the_data_and_leaves_no_folder(
    tmp_path: Path, key: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):  # and not that there are no images
        tiny.build(tmp_path, f"output={tmp_path / 'run'}", key)
    assert not (tmp_path / "run").exists()
