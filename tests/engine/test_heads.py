"""Other heads, metadata and other runs' weights in a whole run."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from distcxr.engine.fit import fit
from distcxr.engine.testing import score_test_split
from distcxr.models.heads import AttentionHead, Headed

HEAD = "model.head={kind: attention, metadata: [age, view]}"


def test_a_run_with_attention_and_metadata_trains_scores_and_draws(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    out = tmp_path / "run"
    tiny.train(tmp_path, f"output={out}", HEAD, "train.epochs=1", "data.image_size=64")
    weights = load_file(out / "checkpoints" / "best" / "model.safetensors")
    assert weights["head.attention.weight"].abs().sum() > 0, "it has learnt where to look"
    assert weights["head.metadata.weight"].shape == (32, 5)
    assert list((out / "pictures").glob("*_heat.png"))
    recipe = tiny.recipe(tmp_path, f"output={tmp_path / 'again'}", HEAD, "data.image_size=64")
    score_test_split(recipe, [out / "checkpoints" / "best"], tiny.runtime(recipe))
    first, again = (json.loads((folder / "metrics_test.json").read_text()) for folder in (out, tmp_path / "again"))
    assert first["findings"] == again["findings"]
    other = tiny.recipe(tmp_path, f"output={tmp_path / 'other'}", "data.image_size=64")
    with pytest.raises(ValueError, match=r"model\.head\.kind: 'attention' in the checkpoint, 'linear' in the recipe"):
        score_test_split(other, [out / "checkpoints" / "best"], tiny.runtime(other))


def test_each_image_is_evaluated_with_its_own_metadata(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    run = tiny.build(tmp_path, f"output={tmp_path / 'run'}", HEAD)
    assert isinstance(run.setup.module, Headed) and isinstance(run.setup.module.head, AttentionHead)
    batch = next(run.training.loader.epoch(0))
    ages = torch.from_numpy(run.setup.index.age[batch.sample_id.numpy()])
    torch.testing.assert_close(batch.metadata[:, 0], ages / 100)
    assert batch.metadata.shape == (16, 5) and batch.metadata[:, 1].all()
    torch.nn.init.normal_(run.setup.module.head.out.weight)
    run.setup.module.eval()
    with torch.no_grad():
        logits = run.setup.logits(run.setup.module, batch)
        turned = run.setup.logits(run.setup.module, replace(batch, metadata=batch.metadata.flip(0)))
    differs = (batch.metadata != batch.metadata.flip(0)).any(1)
    assert torch.equal((logits != turned).any(1), differs) and differs.any()
    run.setup.close()


def test_metadata_that_the_dataset_does_not_have_is_an_error(tmp_path: Path) -> None:
    table = tiny.phantom(tmp_path) / "Data_Entry_2017_v2020.csv"
    rows = list(csv.DictReader(table.read_text().splitlines()))
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {"View Position": ""} for row in rows)
    with pytest.raises(ValueError, match="asks for view, which no training image has"):
        tiny.build(tmp_path, f"output={tmp_path / 'run'}", HEAD)


def test_a_run_begins_with_another_run_s_best_and_a_new_head(finished: Path, tmp_path: Path) -> None:
    common = (f"output={tmp_path / 'next'}", f"data.root={finished.parent / 'phantom'}", f"model.weights={finished}")
    other = (*common, "data.findings=[Mass, Effusion]")
    with pytest.raises(
        ValueError, match=r"for 14 findings \(Atelectasis.*are 2 \(Mass, Effusion\): model\.new_head=true"
    ):
        tiny.build(tmp_path, *other)
    again = ("model.new_head=true", "augment.normalize=weights", "output=" + str(tmp_path / "new"))
    run = tiny.build(tmp_path, *other, *again)
    assert run.setup.transform.mean == run.setup.transform.std == (0.5,), "as that run was trained"
    theirs = load_file(finished / "checkpoints" / "best" / "model.safetensors")
    ours = run.setup.module.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs if not key.startswith("fc."))
    assert ours["fc.weight"].shape == (2, theirs["fc.weight"].shape[1]) and not ours["fc.bias"].any()
    run.setup.close()


@pytest.mark.parametrize("named", ["", "checkpoints/best", "checkpoints/best/model.safetensors"])
def test_a_run_does_not_test_on_patients_that_its_first_weights_were_trained_on(
    finished: Path, tmp_path: Path, named: str
) -> None:
    common = (f"output={tmp_path / 'next'}", f"data.root={finished.parent / 'phantom'}")
    with pytest.raises(ValueError, match=r"trained or chosen on \d+ patients of this test split"):
        tiny.build(
            tmp_path,
            *common,
            f"model.weights={finished / named}",
            "data.split=by_patient",
            "data.ratios=[0.4, 0.2, 0.4]",
        )


def test_a_chain_does_not_test_on_patients_of_its_first_run(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    common = (f"data.root={finished.parent / 'phantom'}", "eval.pictures=0", "eval.localise=false")
    second = tmp_path / "second"
    label = ("data.findings=[No Finding]", "model.new_head=true")
    young = ("data.where={age: [0, 50]}", "train.max_steps=1", "train.global_batch_size=8", "data.split_seed=3")
    run = tiny.build(tmp_path, *common, *label, *young, f"output={second}", f"model.weights={finished}")
    assert "of this val split: validation, and what is chosen by it, is flattered" in caplog.text
    fit(run)
    run.setup.close()
    weights = f"model.weights={second / 'checkpoints' / 'last-00000001'}"
    old = ("data.where={age: [51, 120]}", "data.split=by_patient", "data.ratios=[0.4, 0.2, 0.4]")
    with pytest.raises(ValueError, match=rf"{finished}.*trained or chosen on \d+ patients of this test split"):
        tiny.build(tmp_path, *common, *label, *old, f"output={tmp_path / 'third'}", weights)
