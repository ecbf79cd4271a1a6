"""W&B and MLflow get what TensorBoard gets, but for images; resume after a restart; never end a run by failing."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from accelerate import PartialState

from distcxr.tracking.tracker import Tracker

# What the two packages have of all that Accelerate's trackers and we call; every call becomes a line of `calls.jsonl`.
WANDB = """
import json, os
def record(*call):
    with open(os.environ["CALLS"], "a") as file:
        file.write(json.dumps(call) + "\\n")
class Run:
    def __init__(self, id): self.id = id or "new-id"
    def define_metric(self, name, step_metric): record("define", name, step_metric)
    def log(self, values, step=None): record("log", {k: getattr(v, "text", v) for k, v in values.items()}, step)
    def finish(self): record("finish")
class config:
    update = staticmethod(lambda values, allow_val_change: record("config", values))
class Html:
    def __init__(self, text, inject): self.text = text
def init(project, **more):
    if os.environ.get("BROKEN"): raise RuntimeError("no API key")
    record("init", project, {key: more[key] for key in ("name", "id", "resume", "settings")})
    return Run(more["id"])
"""
MLFLOW = """
import json, os
from pathlib import Path
from types import SimpleNamespace as Any
def record(*call):
    with open(os.environ["CALLS"], "a") as file:
        file.write(json.dumps(call) + "\\n")
utils = Any(validation=Any(MAX_PARAM_VAL_LENGTH=6000, MAX_PARAMS_TAGS_PER_BATCH=100))
def search_experiments(filter_string): return []
def create_experiment(name, **more): record("experiment", name); return "7"
def start_run(run_id, experiment_id, run_name, **more):
    record("run", run_id, run_name)
    return Any(data=Any(params={"seed": "0"} if run_id else {}), info=Any(run_id=run_id or "abc"))
def log_params(values): record("params", values)
def log_metrics(values, step):
    if os.environ.get("BROKEN_LATER"): raise ConnectionError("server gone")
    record("metrics", values, step)
def log_artifact(local_path, artifact_path):
    record("artifact", Path(local_path).name, artifact_path, Path(local_path).read_text())
def end_run(): record("end")
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the stubs write; they stand in for packages that may be installed."""
    stubs = {"wandb", "mlflow"}
    real = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in stubs}
    for name, text in (("wandb", WANDB), ("mlflow", MLFLOW)):
        (tmp_path / "stubs" / name).mkdir(parents=True)
        (tmp_path / "stubs" / name / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "stubs")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls.jsonl"))
    PartialState()
    yield tmp_path / "calls.jsonl"
    for name in stubs:
        sys.modules.pop(name, None)
    sys.modules.update(real)


def track(folder: Path, *services: str, purge_step: int = 1, **config: Any) -> Tracker:
    folder.mkdir(parents=True, exist_ok=True)
    return Tracker(folder, purge_step=purge_step, services=services, project="chest", config=config)


def calls_in(calls: Path) -> list[list[Any]]:
    return [json.loads(line) for line in calls.read_text().splitlines()]


def test_both_get_the_recipe_scalars_and_texts_but_no_images(tmp_path: Path, calls: Path) -> None:
    tracker = track(tmp_path / "runs" / "one", "wandb", "mlflow", optim={"lr": 0.1}, data={"findings": ["A", "B"]})
    tracker.scalars({"train/loss": 0.5, "val/auroc/Lung (left)": 0.7}, 3)
    tracker.image("train/images", np.zeros((4, 4, 3), dtype=np.uint8), 3)
    tracker.text("test", "a < b", 3)
    tracker.pr_curves({"val/pr/A": (np.array([0, 1], np.uint8), np.array([0.2, 0.8]))}, 3)
    tracker.hyperparameters({"lr": 0.1}, [])
    tracker.ended_well()
    tracker.close()
    config = {"optim.lr": 0.1, "data.findings": '["A", "B"]'}
    settings = {"name": "runs/one", "id": None, "resume": "allow", "settings": {"console": "off"}}
    assert calls_in(calls) == [
        ["init", "chest", settings],
        ["config", config],
        ["define", "*", "step"],
        ["experiment", "chest"],
        ["run", None, "runs/one"],
        ["params", config],
        ["log", {"step": 3, "train/loss": 0.5, "val/auroc/Lung (left)": 0.7}, None],
        ["metrics", {"train/loss": 0.5, "val/auroc/Lung _left_": 0.7}, 3],
        ["log", {"step": 3, "text/test": "<pre>a &lt; b</pre>"}, None],
        ["artifact", "00000003.md", "test", "a < b"],
        ["finish"],
        ["end"],
    ]
    assert list((tmp_path / "runs" / "one").glob("events*"))


def test_a_resumed_run_resumes_at_the_service(tmp_path: Path, calls: Path) -> None:
    track(tmp_path / "run", "wandb", "mlflow", seed=0).close()
    calls.unlink()
    track(tmp_path / "run", "wandb", "mlflow", purge_step=5, seed=1, max_steps=9).close()
    heard = calls_in(calls)
    assert heard[0][2]["id"] == "new-id"
    assert ["run", "abc", f"{tmp_path.name}/run"] in heard
    assert ["params", {"max_steps": 9}] in heard  # MLflow would refuse another value of `seed`


def test_a_package_that_is_not_there_stops_the_run_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distcxr.tracking.services.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"names wandb, not installed here: pip install wandb"):
        track(tmp_path, "wandb")
    assert not list(tmp_path.glob("events*"))


def test_a_service_that_does_not_start_stops_the_run(
    tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKEN", "1")
    with pytest.raises(ValueError, match=r"wandb does not start a run: no API key.*WANDB_MODE=offline"):
        track(tmp_path, "wandb")


def test_a_service_that_stops_answering_is_left_out(
    tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    tracker = track(tmp_path / "run", "mlflow", "wandb")
    monkeypatch.setenv("BROKEN_LATER", "1")
    tracker.scalars({"train/loss": 0.5}, 1)
    tracker.scalars({"train/loss": 0.4}, 2)
    tracker.close()
    assert [message for message in caplog.messages if "mlflow" in message] == [
        "mlflow failed, training continues without it: server gone"
    ]
    heard = calls_in(calls)
    assert heard.count(["end"]) == 1 and ["log", {"step": 2, "train/loss": 0.4}, None] in heard


def test_a_run_sends_its_services_what_tensorboard_gets(
    tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tiny.phantom(tmp_path, images=48, size=32)
    words = (f"output={tmp_path / 'run'}", "train.max_steps=2", "eval.splits=[]", "logging.images=4")
    tiny.train(tmp_path, *words, "logging.val_images=2", "logging.trackers=[wandb,mlflow]", "logging.project=lungs")
    board = EventAccumulator(str(tmp_path / "run"))
    board.Reload()
    tags = set(board.Tags()["scalars"])
    heard = calls_in(calls)
    assert {tag for name, *more in heard if name == "metrics" for tag in more[0]} == tags
    assert {tag for name, *more in heard if name == "log" for tag in more[0]} == {*tags, "step", "text/recipe"}
    assert ["experiment", "lungs"] in heard and heard[-1] == ["end"]
    (config,) = [more[0] for name, *more in heard if name == "config"]
    assert config["optim.lr"] == 1e-3 and config["train.max_steps"] == 2
    assert {tag.partition("/")[0] for tag in board.Tags()["images"]} == {"train", "val_images"}  # which no service gets

    monkeypatch.setattr("distcxr.tracking.services.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install mlflow"):
        tiny.build(tmp_path, f"output={tmp_path / 'other'}", "logging.trackers=[mlflow]")


@pytest.mark.filterwarnings("ignore")  # of its own libraries
def test_wandb_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    PartialState()
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = track(tmp_path / "run", "wandb", lr=0.1)
    tracker.scalars({"train/loss": 0.5}, 1)
    tracker.close()
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.filterwarnings("ignore")  # of its own libraries
def test_mlflow_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    PartialState()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    for step in (1, 2):
        tracker = track(tmp_path / "run", "mlflow", lr=0.1, max_steps=step)
        tracker.scalars({"train/loss": 0.5}, step)
        tracker.text("recipe", "lr: 0.1", step)
        tracker.close()
    (run_id,) = json.loads((tmp_path / "run" / "trackers.json").read_text()).values()
    held = mlflow.get_run(run_id)
    assert held.data.params["lr"] == "0.1" and held.data.params["max_steps"] == "1"
    history = mlflow.tracking.MlflowClient().get_metric_history(run_id, "train/loss")
    assert [point.step for point in history] == [1, 2]
