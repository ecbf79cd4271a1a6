"""Features of every image once, in the order of the samples, and heads fitted to them, on any number of ranks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from rich.console import Console

from distcxr.cli import main
from distcxr.data.dataset import open_dataset
from distcxr.engine.checkpoint import open_checkpoint
from distcxr.engine.embeddings import as_embedder, embed
from distcxr.engine.linear_probe import as_probe, probe
from distcxr.engine.opening import build_setup, evaluation_plan
from distcxr.engine.saving import save_best
from distcxr.recipe import load_recipe


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and a checkpoint in a run folder."""
    folder = tmp_path_factory.mktemp("embed")
    tiny.phantom(folder, images=48, size=32)
    run = tiny.build(folder, f"output={folder / 'run'}")
    save_best(run)
    run.setup.close()
    return folder


def call(monkeypatch: pytest.MonkeyPatch, place: Path, *words: object) -> int:
    monkeypatch.setattr("accelerate.state.AcceleratorState._shared_state", {})
    monkeypatch.setattr("distcxr.engine.opening.start_logging", lambda console: None)  # it would take pytest's handlers
    monkeypatch.setattr("sys.argv", ["distcxr", "embed", str(place / "run"), *map(str, words)])
    return main()


def test_features_are_the_input_of_the_head(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = place / "all.npz"
    assert call(monkeypatch, place, "--out", out) == 0
    held = np.load(out)
    checkpoint = open_checkpoint(place / "run")
    recipe = load_recipe(place / "run" / "recipe.yaml")
    dataset, runtime = open_dataset(recipe), tiny.runtime(recipe)
    setup = build_setup(recipe, checkpoint, runtime, dataset, evaluation_plan(recipe, runtime))
    monkeypatch.setattr("distcxr.engine.embeddings._BLOCK", 5)  # several gathers, which may not change the order
    found = embed(setup, dataset.splits.test[::-1].copy())
    assert found.rows.tolist() == dataset.splits.test.tolist()
    setup.close()
    of_test = held["split"] == "test"
    np.testing.assert_allclose(held["features"][of_test], found.values_NK, rtol=1e-5, atol=1e-6)
    with torch.no_grad():  # timm's own word for the same
        setup.module.eval()
        pixels = torch.rand(3, 1, 32, 32)
        head = setup.module.get_classifier()  # type: ignore[operator]
        features = setup.module.forward_head(setup.module.forward_features(pixels), pre_logits=True)  # type: ignore[operator]
        torch.testing.assert_close(head(features), setup.module(pixels))
    assert held["features"].shape == (48, features.shape[1]) and held["features"].dtype == np.float32
    index = dataset.index
    assert held["sample_id"].tolist() == list(range(48))
    assert held["file_name"].tolist() == index.file_names(np.arange(48))
    assert (held["patient_id"] == index.patient_id).all() and (held["targets"] == index.targets_NC).all()
    assert (np.flatnonzero(of_test) == dataset.splits.test).all()
    about = json.loads(str(held["about"]))
    assert (
        about["hashes"] == dataset.hashes and about["step"] == 0 and held["findings"].tolist() == list(index.findings)
    )


def test_one_split_and_a_file_that_cant_be_read(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = open_dataset(load_recipe(place / "run" / "recipe.yaml"))
    bad = Path(dataset.index.files(dataset.splits.test[:1])[0])
    kept = bad.read_bytes()
    bad.write_bytes(b"not a picture")
    monkeypatch.setattr("distcxr.engine.embeddings._MAP_NUMBERS", 1)  # an image at a time
    try:
        assert call(monkeypatch, place, "--split", "test", "--maps", "--out", place / "test.npz") == 0
    finally:
        bad.write_bytes(kept)
    held = np.load(place / "test.npz")
    assert held["sample_id"].tolist() == dataset.splits.test[1:].tolist()
    maps = np.load(place / "test.maps.npy", mmap_mode="r")  # in the order of the features, which are their means
    assert maps.shape[:2] == held["features"].shape and maps.shape[2] == maps.shape[3]
    np.testing.assert_allclose(maps.mean((2, 3)), held["features"], rtol=1e-4, atol=1e-5)
    assert held["unreadable_file_name"].tolist() == [bad.name] and held["unreadable_reason"][0]
    assert f"left out {bad.name}" in capsys.readouterr().out


def test_images_with_other_findings_go_through_the_backbone_alone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, place, "data.findings=[Mass,Hernia]", "--split", "test", "--out", place / "two.npz") == 0
    two, whole = np.load(place / "two.npz"), np.load(place / "all.npz")
    rows = two["sample_id"]
    np.testing.assert_allclose(two["features"], whole["features"][rows], rtol=1e-5, atol=1e-6)
    assert two["findings"].tolist() == ["Mass", "Hernia"] and two["targets"].shape == (len(rows), 2)


def test_mistakes(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, place, "--out", place / "x.csv") == 2
    assert "name a file that ends in .npz" in capsys.readouterr().err
    assert call(monkeypatch, place, "a.yaml", "b.yaml", "--out", place / "x.npz") == 2
    assert "one recipe at a time" in capsys.readouterr().err


@pytest.mark.slow
@tiny.worlds(1, 2)
def test_every_image_once_on_any_number_of_ranks(place: Path, world_size: int) -> None:
    recipe = tiny.recipe(place)
    runtime = tiny.runtime(recipe)
    dataset, checkpoint = open_dataset(recipe), open_checkpoint(place / "run")
    own, loaded = as_embedder(recipe, checkpoint, dataset)
    setup = build_setup(own, loaded, runtime, dataset, evaluation_plan(own, runtime))
    found, one = embed(setup, np.arange(48)), embed(setup, np.array([7]))  # the second leaves a rank without images
    setup.close()
    if tiny.on_main(world_size):
        whole = np.load(place / "all.npz")
        assert found.rows.tolist() == list(range(48)) and one.rows.tolist() == [7]
        np.testing.assert_allclose(found.values_NK, whole["features"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(one.values_NK[0], whole["features"][7], rtol=1e-5, atol=1e-6)
    else:
        assert len(found.rows) == 0
    probed = as_probe(tiny.recipe(place, f"output={place / f'probe{world_size}'}"))
    probe(probed, "tiny", [0.1, 1.0], runtime, Console(quiet=True))
    if tiny.on_main(world_size):
        tables = [tiny.rows(place / f"probe{size}" / "probe.csv") for size in (1, world_size)]
        for one, other in zip(*tables, strict=True):
            assert float(one["val_loss"]) == pytest.approx(float(other["val_loss"]), abs=1e-5)
