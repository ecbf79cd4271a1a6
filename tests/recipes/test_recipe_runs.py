"""Every recipe trains its own network on synthetic data and writes what a run writes; the transfer chains, whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import watched
from safetensors.torch import load_file

HEART = r"data.patient_pattern='^(\d+)_'"
CHAINS = {"transfer/heart_from_nothing_nih", "transfer/heart_from_imagenet_nih"}
ALL = {str(path.relative_to(watched.RECIPES).with_suffix("")) for path in watched.RECIPES.rglob("*.yaml")} - {"base"}
ALL = {
    recipe for recipe in ALL if not recipe.startswith(("launch/", "best/"))
}  # Accelerate's files; test_best_claims.py
# Networks that another recipe trains already, or that are too large: a small one through the same recipe.
TINY = {
    recipe: ("model.library=timm", "model.name=test_resnet")
    for recipe in ALL
    if recipe in ("densenet121", "chexnet", "resnet50", "resnet50_staged", "cardiomegaly_binary")
    or recipe.startswith("transfer/")
} | {"convnext_base": ("model.name=test_convnext",)}


def on_heart(recipe: str) -> bool:
    return recipe == "cardiomegaly_binary" or "heart" in recipe


SLOW = {"study/densenet169", "study/resnet101"}


@pytest.mark.parametrize(
    "recipe", [pytest.param(r, marks=[pytest.mark.slow] if r in SLOW else []) for r in sorted(ALL - CHAINS)]
)
def test_it_trains_and_scores(recipe: str, tmp_path: Path, nih: Path, heart: Path) -> None:
    data, more = (heart, (HEART,)) if on_heart(recipe) else (nih, ())
    size = ("train.global_batch_size=4", "train.max_steps=1", "data.max_val_samples=6", "data.max_test_samples=6")
    run = watched.build(recipe, tmp_path / "run", data, *more, *size, *TINY.get(recipe, ()), "eval.splits=[test]")
    (update,) = watched.train(run)
    assert update.trained == update.stepped and len(update.samples) == 4
    assert run.state.step == 1 and (tmp_path / "run" / "checkpoints" / "last-00000001").is_dir()
    scores = json.loads((tmp_path / "run" / "metrics_test.json").read_text())
    assert set(scores["findings"]) == set(run.setup.index.findings)


@pytest.mark.slow
def test_the_largest_network_is_built_and_can_take_a_step(tmp_path: Path, nih: Path) -> None:
    run = watched.build("convnext_base", tmp_path / "run", nih, "train.global_batch_size=2")  # warms up: two backwards
    run.setup.close()
    assert sum(parameter.numel() for parameter in run.setup.module.parameters()) > 80e6
    assert run.setup.index.findings and all(torch.isfinite(p).all() for p in run.setup.module.parameters())


@pytest.mark.parametrize("start", ["nothing", "imagenet"])
def test_a_chain_begins_where_the_one_before_it_was_best(
    start: str, tmp_path: Path, nih: Path, heart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the paths that the files name, from the folder that a user starts them in."""
    monkeypatch.chdir(tmp_path)
    small = ("model.library=timm", "model.name=test_resnet", "data.image_size=32", "train.max_steps=2")
    first, second = f"transfer/nih_from_{start}", f"transfer/heart_from_{start}_nih"
    assert watched.load(first).model.weights == ("none" if start == "nothing" else "imagenet")
    run = watched.build(first, watched.load(first).output, nih, *small)
    watched.train(run)
    best = load_file(Path("runs") / first / "checkpoints" / "best" / "model.safetensors")

    weights = watched.load(second).model.weights
    run = watched.build(second, watched.load(second).output, heart, HEART, *small, f"model.weights={weights}")
    begun = {name: tensor.clone() for name, tensor in run.setup.module.state_dict().items()}
    assert begun["fc.weight"].shape[0] == 2 and best["fc.weight"].shape[0] == 15
    assert all(torch.equal(tensor, best[name]) for name, tensor in begun.items() if not name.startswith("fc."))
    (update, _) = watched.train(run)
    assert update.trained == {name for name, _ in run.setup.module.named_parameters()}  # not the head alone
    assert (Path("runs") / second / "checkpoints" / "best").is_dir()


def test_the_chains_differ_in_their_weights_alone() -> None:
    hearts = [watched.load(recipe) for recipe in sorted(ALL) if recipe.startswith("transfer/heart")]
    assert len(hearts) == 4 and len({recipe.output for recipe in hearts}) == 4
    assert len({recipe.model.weights for recipe in hearts}) == 4
    same = {"output": None, "model": hearts[0].model}
    assert len({recipe.model_copy(update=same).identity() for recipe in hearts}) == 1
