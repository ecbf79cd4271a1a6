"""Recipes of `best/` on NIH's own images, from weights to the mean of the runs, where DISTCXR_NIH_ROOT has some."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import timm
import tiny
import torch
import watched

from distcxr.engine.testing import score_test_split
from distcxr.runfolder.predictions import read_predictions

ROOT = os.environ.get("DISTCXR_NIH_ROOT")
FEW = (
    "data.missing=skip", "data.max_val_samples=16", "data.max_test_samples=24", "data.image_size=64",
    "train.global_batch_size=4", "train.max_steps=2", "eval.splits=[test]",
)  # fmt: skip


def place_mae(folder: Path) -> None:
    """Random weights of ViT-S as Medical MAE publishes them: the encoder, and names of its decoder."""
    network = timm.create_model("vit_small_patch16_224")
    state = {name: value for name, value in network.state_dict().items() if not name.startswith("head.")}
    decoder = {"mask_token": torch.zeros(1, 1, 192), "decoder_pred.weight": torch.zeros(768, 192)}
    folder.mkdir(parents=True)
    torch.save({"model": state | decoder, "epoch": 799}, folder / "medical_mae_small.pth")


@pytest.mark.slow
@pytest.mark.skipif(ROOT is None, reason="needs real images: set DISTCXR_NIH_ROOT")
def test_the_two_smallest_and_their_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the networks that the files name; the others' are tried on synthetic images, as smaller ones."""
    assert ROOT is not None
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place_mae(tmp_path / "hub" / "checkpoints")
    weights = {"densenet121_320": "none", "vit_small_mae": "medical_mae_small"}
    runs = [tmp_path / name for name in weights]
    for run, named in zip(runs, weights.values(), strict=True):
        built = watched.build(f"best/{run.name}", run, Path(ROOT), *FEW, f"model.weights={named}")
        assert len(watched.train(built)) == 2
        assert all(np.isfinite(float(row["loss"])) for row in tiny.rows(run / "steps.csv"))
        assert 0 < json.loads((run / "metrics_test.json").read_text())["macro"]["auroc"] < 1

    recipe = watched.load("best/ensemble", f"data.root={ROOT}", f"output={tmp_path / 'both'}", *watched.SMALL, *FEW)
    scores = score_test_split(recipe, runs, tiny.runtime(recipe))
    members = [read_predictions(run / "predictions_test.csv") for run in runs]
    assert len({*members[0].files}) == 24 and all((Path(ROOT) / "images" / name).is_file() for name in members[0].files)
    np.testing.assert_allclose(scores.logits_NC, np.mean([one.logits_NC for one in members], axis=0), atol=1e-6)
