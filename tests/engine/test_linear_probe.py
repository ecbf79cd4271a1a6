"""A probe as a whole run: fitted to features, chosen on validation, tested and predicted with as any run is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from distcxr.cli import main
from distcxr.engine.linear_probe import as_probe
from distcxr.engine.testing import score_test_split
from distcxr.recipe import load_recipe
from distcxr.runfolder.manifest import read_meta
from distcxr.runfolder.verify import check_run


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("distcxr.runtime.start_runtime", tiny.runtime)
    monkeypatch.setattr("distcxr.logs.start_logging", lambda console: None)  # it would take pytest's handlers
    monkeypatch.setattr("sys.argv", ["distcxr", "probe", *map(str, words)])
    return main()


def test_a_probe_is_a_run_with_the_best_of_its_heads(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, root = tmp_path / "probe", f"data.root={finished.parent / 'phantom'}"
    few = ("train.precision=no", "logging.images=0", "logging.val_images=0")
    assert call(monkeypatch, finished, f"output={out}", root, *few, "--l2", "0.01", "10", "1") == 0
    rows = tiny.rows(out / "probe.csv")
    assert [float(row["l2"]) for row in rows] == [0.01, 1, 10]
    best = max(rows, key=lambda row: (float(row["val_auroc"]), float(row["l2"])))
    assert [row["chosen"] for row in rows] == ["1" if row is best else "0" for row in rows]
    # The network itself, with the head put into it, scores what the features promised.
    metrics = json.loads((out / "metrics_val.json").read_text())
    assert metrics["macro"]["auroc"] == pytest.approx(float(best["val_auroc"]), abs=1e-9)
    assert float(tiny.rows(out / "validations.csv")[0]["val_loss"]) == pytest.approx(metrics["loss"], rel=1e-5)
    assert any("Linear probe" in note for note in metrics["warnings"]) and not (out / "metrics_test.json").exists()
    before, after = (load_file(run / "checkpoints" / "best" / "model.safetensors") for run in (finished, out))
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"fc.weight", "fc.bias"}
    # and it is shown images as it was trained on them, whatever the mean of those that the probe has
    assert load_recipe(out / "recipe.yaml").augment.normalize == "weights"
    means = [read_meta(run / "checkpoints" / "best")["mean"] for run in (finished, out)]
    assert means[0] == means[1]
    checked = check_run(out)
    assert not checked.problems and "It is finished, at step 1." in checked.worth
    with pytest.raises(ValueError, match=r"probe holds a run, which a probe would overwrite"):
        as_probe(load_recipe(out / "recipe.yaml"))
    recipe = load_recipe(out / "recipe.yaml", ["eval.pictures=0", "eval.localise=false"])
    score_test_split(recipe, [out], tiny.runtime(recipe))
    assert json.loads((out / "metrics_test.json").read_text())["step"] == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.name=focal", r"loss\.name=focal: .* convex loss: bce or cross_entropy"),
        ("model.head.kind=attention", r"model\.head: a probe is a linear layer"),
        ("model.lora={rank: 2}", r"model\.lora: a probe leaves the network as it is"),
    ],
)
def test_what_is_no_probe(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_probe(tiny.recipe(tmp_path, override))


def test_mistakes_of_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "densenet121", "--l2", "0") == 2
    assert "--l2 0: a strength is a number above 0" in capsys.readouterr().err
    assert call(monkeypatch, "densnet121") == 2
    assert "did you mean densenet121" in capsys.readouterr().err
