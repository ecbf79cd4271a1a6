"""The recipes that `docs/recipes.md` shows: each, as it is printed there, trains on data in its layout."""

from __future__ import annotations

import gzip
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import watched
from PIL import Image
from rich.console import Console

from distcxr.engine.build import build_run
from distcxr.engine.state import Run
from distcxr.phantom.writing import write_phantom
from distcxr.recipe import load_recipe

PAGE = (watched.RECIPES.parent / "docs" / "recipes.md").read_text()
SHOWN = {
    Path(found[1]).stem: found[0]
    for found in re.findall(r"```yaml\n(# recipes/(\w+\.yaml)\n.*?)```", PAGE, flags=re.DOTALL)
}


def laid_out(layout: str) -> Callable[[Path], None]:
    return lambda root: write_phantom(root, images=80, size=64, workers=1, layout=layout)


def mimic(root: Path) -> None:
    """Twelve patients of MIMIC-CXR-JPG with one image each."""
    tables = {
        "split": "dicom_id,study_id,subject_id,split\n",
        "metadata": "dicom_id,subject_id,study_id,ViewPosition\n",
        "chexpert": "subject_id,study_id,Edema,Cardiomegaly,Consolidation,Atelectasis,No Finding,Pneumonia,"
        "Pneumothorax,Enlarged Cardiomediastinum,Fracture,Lung Lesion,Lung Opacity,Pleural Effusion,Pleural Other,"
        "Support Devices\n",
    }
    for number in range(12):
        subject, study, image = 10000000 + number, 50000000 + number, f"{number:08x}-00000000"
        split = "test" if number % 3 == 2 else "train"
        tables["split"] += f"{image},{study},{subject},{split}\n"
        tables["metadata"] += f"{image},{subject},{study},PA\n"
        tables["chexpert"] += f"{subject},{study}," + ("1.0" if number % 2 else "-1.0") + ",1.0" * 13 + "\n"
        folder = root / f"files/p10/p{subject}/s{study}"
        folder.mkdir(parents=True)
        Image.new("L", (64, 48), number * 20).save(folder / f"{image}.jpg")
    for name, text in tables.items():
        (root / f"mimic-cxr-2.0.0-{name}.csv.gz").write_bytes(gzip.compress(text.encode()))


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "csv": laid_out("csv"),
    "folders": laid_out("folders"),
    "chexpert": laid_out("chexpert"),
    "chestmnist": laid_out("chestmnist"),
    "mimic": mimic,
}


def build(name: str, tmp_path: Path) -> Run:
    (tmp_path / f"{name}.yaml").write_text(SHOWN[name])
    for base in ("base.yaml", "densenet121.yaml"):
        shutil.copy(watched.RECIPES / base, tmp_path)
    LAYOUTS[name](tmp_path / "data")
    small = [key for key in watched.SMALL if not key.startswith("data.loader")]
    more = [
        "model.library=timm",
        "model.name=test_resnet",
        "data.image_size=32",
        "train.max_steps=1",
        "train.global_batch_size=4",
    ]
    root, output = f"data.root={tmp_path / 'data'}", f"output={tmp_path / 'run'}"
    recipe = load_recipe(tmp_path / f"{name}.yaml", [root, output, *small, *more])
    return build_run(recipe, name, tiny.runtime(recipe), Console(quiet=True))


def test_every_dataset_is_shown() -> None:
    assert set(SHOWN) == set(LAYOUTS)


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_the_recipe_shown_trains(name: str, tmp_path: Path) -> None:
    run = build(name, tmp_path)
    (update,) = watched.train(run)
    assert len(update.samples) == 4 and run.setup.recipe.data.dataset == name
    expected = {"csv": 2, "folders": 2, "chexpert": 5, "mimic": 14, "chestmnist": 14}
    assert len(run.setup.index.findings) == expected[name]


def test_a_recipe_of_ones_own_loads(tmp_path: Path) -> None:
    (own,) = re.findall(r"```yaml\n(# yaml-language-server.*?)```", PAGE, flags=re.DOTALL)
    for base in ("base.yaml", "densenet121.yaml"):
        shutil.copy(watched.RECIPES / base, tmp_path)
    (tmp_path / "own.yaml").write_text(own)
    recipe = load_recipe(tmp_path / "own.yaml", ["train.stages=[{epochs: 1, lr: 1e-3}]", "train.stages.0.lr=1e-4"])
    assert recipe.model.name == "convnext_small" and recipe.train.stages[0].lr == 1e-4
