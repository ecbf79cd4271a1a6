"""A network that sees a lateral view beside each frontal image: what is made of it after training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import two_views

import distcxr
from distcxr.cli import main
from distcxr.data.dataset import open_dataset
from distcxr.data.store.cache_building import build_cache
from distcxr.data.store.cache_format import cache_folder
from distcxr.engine import external_pairs
from distcxr.engine.checkpoint import open_checkpoint
from distcxr.engine.compatible import as_trained, check_data
from distcxr.engine.evaluate import predict
from distcxr.engine.saving import save_best
from distcxr.engine.testing import score_test_split
from distcxr.explain.gradcam import gradcam
from distcxr.models.freeze import evaluation_mode
from distcxr.models.heads import last_map


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[tiny.Run, Path]]:
    """A run with a checkpoint of weights that do not treat both views alike, read through the cache."""
    place = tmp_path_factory.mktemp("two views")
    two_views.studies(place)
    keys = (
        *two_views.KEYS,
        "model.head.metadata=[sex]",
        "data.columns.sex=sex",
        "data.loader=cache",
        "data.image_size=64",
    )
    recipe = tiny.recipe(place, *keys)
    index = open_dataset(recipe).index
    build_cache(index, cache_folder(recipe.data, index.root), 64, workers=1)
    run = tiny.build(place, *keys, f"output={place / 'run'}")
    torch.nn.init.normal_(run.setup.module.get_parameter("head.out.weight"))
    torch.nn.init.normal_(run.setup.module.get_parameter("head.missing"))
    save_best(run)
    yield run, place / "run"
    run.setup.close()


def test_evaluation_shows_both_and_predict_one(saved: tuple[tiny.Run, Path]) -> None:
    run, folder = saved
    setup, rows = run.setup, run.setup.splits.test
    assert setup.index.lateral is not None
    having = setup.index.lateral[rows] >= 0
    assert having.any() and not having.all()
    with_both = predict(setup, rows).values_NK
    alone = replace(setup, index=replace(setup.index, lateral=None))
    without = predict(alone, rows).values_NK
    np.testing.assert_array_equal((with_both != without).any(axis=1), having)
    files = setup.index.files(rows)
    with pytest.warns(UserWarning):
        predictor = distcxr.load(folder, device="cpu")
    table = predictor.predict(files[:1])
    unknown = replace(alone, index=replace(alone.index, sex=np.full(len(alone.index), "")))
    np.testing.assert_array_equal(table["logit"], predict(unknown, rows[:1]).values_NK[0])
    assert "lateral, sex unknown, which the network takes beside it" in table["note"][0]


def test_heat_is_of_the_frontal_image(saved: tuple[tiny.Run, Path]) -> None:
    run, _ = saved
    batch = next(run.setup.batches(run.setup.splits.test))
    images = run.setup.inputs(batch)
    heat = gradcam(run.setup.module, images, [0], metadata=batch.metadata)
    with torch.no_grad(), evaluation_mode(run.setup.module):
        map_BNK = last_map(run.setup.module, images)
    weight_K = run.setup.module.get_parameter("head.out.weight")[0, : map_BNK.shape[2]].detach()
    cam = (map_BNK @ weight_K).unflatten(1, (1, round(map_BNK.shape[1] ** 0.5), -1)).relu()
    cam = torch.nn.functional.interpolate(cam, (64, 64), mode="bilinear", align_corners=False)
    peak = cam.amax((2, 3), keepdim=True)
    torch.testing.assert_close(heat, torch.where(peak > 0, cam / peak, cam))
    assert heat.any() and images.shape[1] == 2


def test_what_knows_one_image_refuses(
    saved: tuple[tiny.Run, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, folder = saved
    monkeypatch.setattr("sys.argv", ["distcxr", "export", str(folder), str(tmp_path / "model.onnx")])
    assert main() == 2
    assert "takes a lateral view beside each frontal image (data.lateral)" in capsys.readouterr().err
    place = folder.parent
    plain = tiny.recipe(place, *two_views.KEYS, "data.lateral=none", f"output={tmp_path / 'plain'}")
    checkpoint = open_checkpoint(folder / "checkpoints" / "best")
    with pytest.raises(ValueError, match=r"data\.lateral: 'second_input' in the checkpoint, 'none' in the recipe"):
        score_test_split(plain, [checkpoint.path], tiny.runtime(plain))
    with pytest.raises(ValueError, match=r"a lateral view beside each frontal image, and here is data\.lateral=none"):
        as_trained(plain, checkpoint)
    dataset = open_dataset(plain)
    reason = external_pairs._why_not(checkpoint, "other", dataset, "test", {"Mass": "Mass"})
    assert reason is not None and reason.endswith("give the data set's recipe data.lateral=second_input")
    with pytest.raises(ValueError, match="trained on other data: laterals changed since"):
        check_data(checkpoint, run.setup.hashes | {"laterals": "of other files"})
