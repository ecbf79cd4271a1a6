"""What only a GPU can show of `train.compile=graphs` and `train.autotune`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from distcxr.engine.evaluate import predict
from distcxr.engine.fit import fit, updates
from distcxr.engine.step import train_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated"),  # torch's own compiler uses it
]


@pytest.mark.parametrize("compile_key", ["true", "graphs"])
def test_losses_are_those_of_the_eager_network(tmp_path: Path, compile_key: str) -> None:
    tiny.phantom(tmp_path)
    losses = {}
    for key in ("false", compile_key):
        run = tiny.build(tmp_path, f"output={tmp_path / key}", f"train.compile={key}", "train.tf32=false")
        steps = []
        for micro_batches in updates(run):
            steps.append(train_step(run, micro_batches))
            run.state.advance(run.horizon.steps_per_epoch)
        losses[key] = torch.stack(steps).cpu()
        run.setup.close()
    assert len(losses["false"]) == 3
    assert torch.allclose(losses["false"], losses[compile_key], rtol=1e-3)


def test_replayed_logits_are_not_overwritten(tmp_path: Path) -> None:
    """Several batches of one evaluation, views included: every replay writes into the memory of the one before."""
    tiny.phantom(tmp_path)
    found = {}
    for key in ("false", "graphs"):
        run = tiny.build(tmp_path, f"output={tmp_path / key}", f"train.compile={key}", "train.tf32=false")
        found[key] = predict(run.setup, run.setup.splits.train[:37], ["flip", "zoom"]).values_NK
        run.setup.close()
    assert np.allclose(found["false"], found["graphs"], atol=1e-3)


def test_a_tuned_run_ends_well_and_keeps_what_was_tried(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    run = tiny.build(tmp_path, f"output={tmp_path / 'run'}", "train.autotune=true", tiny.BF16, "train.epochs=1")
    fit(run)
    run.setup.close()
    content = json.loads((tmp_path / "run" / "autotune.json").read_text())
    assert [trial["mode"] for trial in content["trials"]] == ["eager", "compiled", "graphs"]
    assert content["mode"] == run.setup.mode
