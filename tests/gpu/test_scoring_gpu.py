"""Scoring on a GPU: views as on the CPU, heat maps and files without a complaint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny

from distcxr.engine.evaluate import predict
from distcxr.engine.final_scores import Weights, score_splits

pytestmark = pytest.mark.gpu


def test_views_and_files_are_the_cpus(
    tmp_path: Path, leave_gpu: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    tiny.phantom(tmp_path)
    views, same = ["flip", "zoom", "rotate_left"], ("train.tf32=false", "data.loader=torch")
    run = tiny.build(tmp_path, f"output={tmp_path / 'a'}", f"eval.tta=[{', '.join(views)}]", *same)
    assert run.setup.runtime.device.type == "cuda"
    on_gpu = score_splits(run.setup, run.folder, Weights(0, None), ["val", "test"])["test"]
    run.setup.close()
    assert len(json.loads((run.folder / "pictures" / "pictures.json").read_text())) == 4, caplog.text

    leave_gpu()
    other = tiny.build(tmp_path, f"output={tmp_path / 'b'}", *same)
    assert other.setup.runtime.device.type == "cpu"
    on_cpu = predict(other.setup, other.setup.splits.test, views)
    other.setup.close()
    assert np.allclose(on_gpu.logits_NC, on_cpu.values_NK, atol=1e-3)
