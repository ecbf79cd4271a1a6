"""`train.compile` and `train.autotune`: the fastest way to run the network that agrees with float32, kept on resume."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

from distcxr.engine import tuning
from distcxr.engine.evaluate import predict
from distcxr.engine.fit import fit
from distcxr.engine.setup import Setup
from distcxr.engine.step import made_up_batch
from distcxr.engine.tuning import Trial, autotune, set_mode
from distcxr.runfolder.contents import read_autotune

SHORT = ("train.epochs=1", "eval.splits=[]")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_MEASURE_S", 0.0)


def tuned(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "autotune.json").read_text())
    return found


@pytest.mark.usefixtures("hasty")
def test_a_tuned_run_trains_validates_and_resumes_with_its_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiled network takes the last batch of a validation, which is smaller, without a third graph."""
    tiny.phantom(tmp_path)
    measured = tuning._median_ms

    def eager_is_slow(setup: Setup, *more: object) -> float:
        return measured(setup, *more) + (1000.0 if setup.mode == "eager" else 0.0)  # type: ignore[arg-type]

    monkeypatch.setattr(tuning, "_median_ms", eager_is_slow)
    monkeypatch.setattr(tuning, "_BACKEND", "aot_eager")  # the same graphs without a minute of C++
    command = (f"output={tmp_path / 'run'}", "train.autotune=true", tiny.BF16, "train.ema=0.9")
    run = tiny.build(tmp_path, *command, "train.max_steps=3", *SHORT[1:])
    first = tuned(tmp_path / "run")
    assert first["mode"] == run.setup.mode == "compiled" and run.setup.module._compiled_call_impl is not None
    trials = first["trials"]
    assert isinstance(trials, list) and [trial["mode"] for trial in trials] == ["eager", "compiled"]
    assert all(0 < trial["gradients_gap"] < 0.5 and trial["reason"] is None for trial in trials)
    frames = torch._dynamo.utils.counters["stats"]
    fit(run)
    run.setup.close()
    after_one_validation = frames["unique_graphs"]
    rows = run.setup.splits.test[:21]  # a batch of 16 and one of 5
    compiled = predict(run.setup, rows)
    assert frames["unique_graphs"] == after_one_validation
    set_mode(run.setup.module, "eager")
    eager = predict(replace(run.setup, mode="eager"), rows)
    assert abs(compiled.values_NK - eager.values_NK).max() < 0.05 * abs(eager.values_NK).max()

    monkeypatch.setattr(tuning, "autotune", lambda *_: pytest.fail("a resumed run keeps its choice"))
    resumed = tiny.build(tmp_path, *command, "train.max_steps=4", *SHORT[1:])
    assert resumed.setup.mode == "compiled" and resumed.state.step == 3
    set_mode(resumed.setup.module, "eager")


@pytest.mark.usefixtures("hasty")
def test_a_way_that_fails_or_computes_something_else_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.phantom(tmp_path)
    run = tiny.build(tmp_path, f"output={tmp_path / 'run'}", *SHORT)
    before = {name: value.clone() for name, value in run.setup.module.state_dict().items()}

    def wrong(module: nn.Module, mode: str) -> None:
        call = module._call_impl
        module._compiled_call_impl = (lambda *args: 1.1 * call(*args)) if mode == "compiled" else None

    def broken(module: nn.Module, mode: str) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("no compiler\nat all")

        module._compiled_call_impl = fail if mode == "compiled" else None

    for fault, expected in ((wrong, "its logits are 0.1 from float32's"), (broken, "RuntimeError: no compiler")):
        monkeypatch.setattr(tuning, "set_mode", fault)
        mode, trials = autotune(run.setup, run.stage, made_up_batch(run.setup))
        assert mode == "eager" and str(trials[1].reason).startswith(expected)
    assert all(torch.equal(value, before[name]) for name, value in run.setup.module.state_dict().items())
    assert all(parameter.grad is None for parameter in run.setup.module.parameters())
    json.dumps([asdict(trial) for trial in trials], allow_nan=False)


def test_the_log_names_what_was_tried() -> None:
    trials = [Trial("eager", 12.34), Trial("compiled", 7.0), Trial("graphs", reason="out of memory")]
    assert tuning.describe_trials("compiled", trials) == (
        "train.autotune: eager 12.3 ms, compiled 7.0 ms, graphs left out (out of memory) for forward and backward; "
        "the network runs compiled"
    )


def test_graphs_without_a_gpu_are_refused(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    with pytest.raises(ValueError, match=r"train.compile=graphs needs a GPU"):
        tiny.build(tmp_path, f"output={tmp_path / 'run'}", "train.compile=graphs")
    with pytest.raises(ValueError, match=r"takes no accumulation, and a batch is gathered in 4 parts"):
        tuning.check_mode("graphs", torch.device("cuda"), 4)


@pytest.mark.parametrize("content", ["{", '{"mode": "warp"}', "[]"])
def test_a_damaged_choice_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "autotune.json").write_text(content)
    with pytest.raises(ValueError, match=r"autotune.json .*remove it, and the run tunes anew"):
        read_autotune(tmp_path)
    assert read_autotune(tmp_path / "elsewhere") is None
