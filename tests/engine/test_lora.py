"""Adapters in whole runs: only they and the head learn, a stopped run resumes bit for bit, and whoever uses the run
sees a plain network."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from saved import tensors

import distcxr
from distcxr.engine.checkpoint import open_checkpoint
from distcxr.engine.export_file import write_weights
from distcxr.engine.fit import fit
from distcxr.models.adapters import is_adapter
from distcxr.runfolder.predictions import read_predictions

LORA = (
    "model.name=test_vit", "model.lora={rank: 2, dropout: 0.1}", "train.ema=0.5", "optim.layer_decay=0.7",
    "train.clip_norm=1", "optim.lr=0.01", "eval.pictures=0", "eval.localise=false", "eval.splits=[test]",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and a run of 4 steps that was stopped after the second."""
    folder = tmp_path_factory.mktemp("lora")
    tiny.phantom(folder)
    for most in (2, 4):
        tiny.train(folder, *LORA, f"output={folder / 'run'}", f"train.max_steps={most}", "eval.every=2st")
    return folder


def test_a_stopped_run_ends_as_one_that_was_not(place: Path) -> None:
    until = ("train.max_steps=4", "eval.every=2st", "eval.splits=[]")
    run = tiny.build(place, *LORA, f"output={place / 'straight'}", *until)
    begun = {name: value.clone() for name, value in run.setup.module.state_dict().items()}
    fit(run)
    run.setup.close()
    straight, resumed = (tensors(place / name / "checkpoints" / "last-00000004") for name in ("straight", "run"))
    assert straight.keys() == resumed.keys() and len(straight) > 200
    assert [name for name in straight if not torch.equal(straight[name], resumed[name])] == []
    moved = {name for name, value in begun.items() if not torch.equal(straight[name], value)}
    assert all(is_adapter(name) or name.startswith("head.") for name in moved)
    assert moved == {name for name in begun if is_adapter(name) or name.startswith("head.")}


def test_whoever_uses_the_run_sees_a_plain_network(place: Path, tmp_path: Path) -> None:
    kept = read_predictions(place / "run" / "predictions_test.csv")
    files = [place / "phantom" / "images" / name for name in kept.files]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predictor = distcxr.load(place / "run", device="cpu")
    table = predictor.predict(files)
    for column, finding in enumerate(kept.findings):
        shown = table.loc[table["finding"] == finding, "logit"].to_numpy()
        np.testing.assert_allclose(shown, kept.logits_NC[:, column], atol=1e-5)
    about = write_weights(open_checkpoint(place / "run"), tmp_path / "plain.pth", plain=True)
    state = torch.load(tmp_path / "plain.pth", weights_only=True)
    best = load_file(place / "run" / "checkpoints" / "best" / "model.safetensors")
    assert not any("lora" in name or "base_layer" in name for name in state) and about["model"] == "test_vit"
    base, a, b = (best[f"blocks.0.attn.qkv.{own}.weight"] for own in ("base_layer", "lora_A.default", "lora_B.default"))
    torch.testing.assert_close(state["blocks.0.attn.qkv.weight"], base + 16 / 2 * b @ a)
    run = tiny.build(
        place,
        "model.name=test_vit",
        f"model.weights={place / 'run'}",
        f"output={tmp_path / 'next'}",
        "data.split=official",
    )
    for name, value in run.setup.module.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)
    run.setup.close()
    assert json.loads((place / "run" / "metrics_test.json").read_text())["num_samples"] == len(files)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["train.trainable=[head]"], r"model\.lora: \['head'\] of train\.trainable trains none of its adapters"),
        (["train.trainable=[patch_embed, blocks.5, head]"], r"train\.trainable: 'patch_embed' has neither adapters"),
        (["train.stages=[{epochs: 1, trainable: [head]}, {epochs: 1, trainable: [norm]}]"],
         r"trainable of stage 2 of 2: \['norm'\] trains nothing"),
        (["model.library=python", "model.name=a:b", "model.lora={rank: 2}"], r"model\.lora adds adapters to networks"),
        (["model.lora.targets=[]"], r"model\.lora\.targets is empty"),
    ],
)  # fmt: skip
def test_contradictions(place: Path, tmp_path: Path, keys: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.build(place, *LORA, f"output={tmp_path / 'run'}", *keys)
