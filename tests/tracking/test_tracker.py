"""Curves are no reason to end a run."""

from __future__ import annotations

import logging
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distcxr.runfolder import filenames
from distcxr.tracking.tracker import Tracker, tensorboard_command


def track(folder: Path, purge_step: int = 0) -> Tracker:
    return Tracker(folder, purge_step=purge_step, services=(), project="", config={})


def events(folder: Path) -> Any:
    """As TensorBoard's own server reads them: everything a tensor."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    found.Reload()
    return found


def test_a_folder_that_is_gone_ends_the_curves_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = track(tmp_path / "run")
    tracker.scalars({"train/loss": 1.0}, 1)
    shutil.rmtree(tmp_path / "run")
    deadline = time.monotonic() + 30
    with caplog.at_level(logging.WARNING):
        while "no more curves" not in caplog.text and time.monotonic() < deadline:  # its thread meets it first
            tracker.scalars({"train/loss": 1.0}, 2)
            time.sleep(0.01)
    assert caplog.text.count("no more curves") == 1 and "No such file or directory" in caplog.text
    tracker.scalars({"train/loss": 1.0}, 3)
    tracker.close()
    assert "Traceback" not in capfd.readouterr().err


def test_tensorboard_calls_a_run_by_its_folder(tmp_path: Path) -> None:
    """The name of a run is the path of the folder that its event files lie in."""
    track(tmp_path / "quickstart" / "now").close()
    (file,) = tmp_path.rglob("*tfevents*")
    assert file.parent == tmp_path / "quickstart" / "now" and file.match(filenames.EVENTS)
    assert tensorboard_command(Path("runs/quickstart/now")) == "tensorboard --logdir runs"
    assert tensorboard_command(tmp_path) == f"tensorboard --logdir {tmp_path}"


@pytest.mark.parametrize("where", [".", filenames.TENSORBOARD], ids=["new", "old"])
def test_a_resumed_run_continues_its_curves(tmp_path: Path, where: str) -> None:
    """What was written after the checkpoint is there once, also in a folder that was begun in the old place."""
    from tensorboard.util.tensor_util import make_ndarray

    (tmp_path / where).mkdir(exist_ok=True)
    for first, steps in ((1, (1, 2, 3)), (3, (3, 4))):
        tracker = track(tmp_path, purge_step=first)
        tracker.hyperparameters({"lr": 0.1}, ["when_done/test_auroc"])
        for step in steps:
            tracker.scalars({"train/loss": first + step / 10}, step)
            tracker.pr_curves({"val/pr/Mass": (np.array([0, 1], np.uint8), np.array([0.2, 0.8]))}, step)
            tracker.image("val_images/Mass", np.zeros((4, 4, 3), dtype=np.uint8), step)
        tracker.close()
        for file in (tmp_path / where).glob(f"{filenames.EVENTS}.*"):  # TensorBoard reads them by name, a second apart
            file.rename(file.with_name(f"events.out.tfevents.{first}"))
    assert len(list((tmp_path / where).glob(filenames.EVENTS))) == 2
    held = events(tmp_path / where)
    losses = [(one.step, round(make_ndarray(one.tensor_proto).item(), 3)) for one in held.Tensors("train/loss")]
    assert losses == [(1, 1.1), (2, 1.2), (3, 3.3), (4, 3.4)]
    for tag in ("val_images/Mass", "val/pr/Mass"):
        assert [one.step for one in held.Tensors(tag)] == [1, 2, 3, 4]
    assert len(held.PluginTagToContent("hparams")) == 2  # begun, and not ended


def test_the_layout_has_every_finding_in_one_chart(tmp_path: Path) -> None:
    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

    tracker = track(tmp_path)
    tracker.close()
    (config,) = events(tmp_path).Tensors("custom_scalars__config__")
    layout = Layout.FromString(config.tensor_proto.string_val[0])
    tags = [
        "train/loss", "train/lr", "train/img_per_s", "train/data_wait_pct", "val/loss", "val/auroc/best",
        "val/auroc/macro", "val/auroc/Mass", "val/auroc/Pleural_Thickening", "val/auprc/Mass",
    ]  # fmt: skip
    shown = {
        chart.title: [tag for tag in tags if any(re.match(pattern, tag) for pattern in chart.multiline.tag)]
        for category in layout.category
        for chart in category.chart
    }
    assert shown == {
        "AUROC of each finding": ["val/auroc/Mass", "val/auroc/Pleural_Thickening"],
        "macro AUROC": ["val/auroc/best", "val/auroc/macro"],
        "average precision of each finding": ["val/auprc/Mass"],
        "loss": ["train/loss", "val/loss"],
        "learning rate": ["train/lr"],
        "images per second": ["train/img_per_s"],
        "waited for data, % of the time": ["train/data_wait_pct"],
    }
