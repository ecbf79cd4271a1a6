"""The same synthetic X-rays laid out like each dataset: what a recipe opens, and the pixels its readers give."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distcxr.data.dataset import Dataset, open_dataset
from distcxr.data.index import SampleIndex
from distcxr.data.labels import NIH14
from distcxr.data.readers.choose import choose_reader
from distcxr.data.store.cache_building import build_cache
from distcxr.phantom.layouts import LAYOUTS
from distcxr.phantom.plan import plan_xrays
from distcxr.phantom.writing import write_phantom
from distcxr.recipe import Recipe

IMAGES, SIZE, SEED = 40, 48, 3
COLUMNS = {"patient": "patient", "split": "split", "age": "age", "sex": "sex", "view": "view"}
DATA: dict[str, dict[str, Any]] = {
    "nih": {},
    "csv": {"columns": COLUMNS},
    "folders": {"findings": "all", "split": "by_patient", "patient_pattern": r"^(\d{8})_"},
    "chexpert": {"findings": "chexpert14", "uncertain": "zero"},
    "chestmnist": {},
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each layout."""
    folder = tmp_path_factory.mktemp("layouts")
    for layout in LAYOUTS:
        write_phantom(folder / layout, images=IMAGES, size=SIZE, seed=SEED, workers=1, layout=layout)
    return {layout: folder / layout for layout in LAYOUTS}


def opened(layout: str, root: Path, **data: Any) -> Dataset:
    spec = {"val_fraction": 0.3, "ratios": (0.4, 0.3, 0.3), "image_size": 32, "loader": "auto", "num_workers": 0}
    return open_dataset(Recipe.model_validate({"data": spec | {"dataset": layout, "root": root} | DATA[layout] | data}))


def pixels(dataset: Dataset, rows: list[int], loader: str) -> torch.Tensor:
    """What the reader of a run gives, uint8 [B, 1, S, S]."""
    index: SampleIndex = dataset.index
    reader = choose_reader(
        dataset.data.model_copy(update={"loader": loader}), index, max_batch_size=len(rows), first_rows=np.arange(2),
        device=torch.device("cpu"), local_world_size=1, decided_by_main=lambda decide: decide(),
    )  # fmt: skip
    with closing(reader):
        (answer,) = reader.read([np.array(rows)])
    assert answer.unreadable == ()
    return answer.pixels.clone()


def xrays_in_order(layout: str) -> list[int]:
    """Numbers of the X-rays as the layout's index has them."""
    xrays = plan_xrays(IMAGES, SEED)
    key = {
        "folders": lambda xray: LAYOUTS["folders"].path(xray),
        "chexpert": lambda xray: xray.in_test,
        "chestmnist": lambda xray: 2 if xray.in_test else int(xray.patient_id % 10 == 3),
    }.get(layout, lambda xray: xray.number)
    return [xray.number for xray in sorted(xrays, key=key)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels_patients_and_splits(layout: str, roots: dict[str, Path]) -> None:
    dataset, xrays = opened(layout, roots[layout]), plan_xrays(IMAGES, SEED)
    xrays = [xrays[number] for number in xrays_in_order(layout)]
    index = dataset.index
    assert len(index) == IMAGES and all(len(dataset.splits.rows(name)) for name in ("train", "val", "test"))
    if layout == "folders":
        assert index.findings == ("abnormal", "normal")
        assert index.targets_NC[:, 0].tolist() == [int(bool(xray.findings)) for xray in xrays]
    elif layout == "chexpert":
        column = index.findings.index("Pleural Effusion")
        assert index.targets_NC[:, column].tolist() == [int("Effusion" in xray.findings) for xray in xrays]
        assert index.targets_NC[:, 0].tolist() == [int(not xray.findings) for xray in xrays]
        assert not opened(layout, roots[layout], uncertain="mask").index.mask_NC.all()
    else:
        assert index.findings == NIH14
        assert index.targets_NC.tolist() == [[int(name in xray.findings) for name in NIH14] for xray in xrays]
    if layout != "chestmnist":
        assert index.patient_id.tolist() == [xray.patient_id for xray in xrays]
    if layout != "folders":
        assert dataset.splits.test.tolist() == [row for row, xray in enumerate(xrays) if xray.in_test]


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "nih"])
def test_pixels_are_those_of_nihs_layout(layout: str, roots: dict[str, Path]) -> None:
    rows = [0, 1, 5, 20, IMAGES - 1]
    numbers = [xrays_in_order(layout)[row] for row in rows]
    expected = pixels(opened("nih", roots["nih"]), numbers, "torch")
    loader = "auto" if layout == "chestmnist" else "torch"
    got = pixels(opened(layout, roots[layout]), rows, loader)
    tolerance = 12 if layout == "chexpert" else 0  # JPEG loses a little
    assert (got.int() - expected.int()).abs().max() <= tolerance


def test_a_cache_of_jpegs_holds_what_the_files_do(roots: dict[str, Path]) -> None:
    dataset, rows = opened("chexpert", roots["chexpert"]), list(range(0, IMAGES, 3))
    built = build_cache(dataset.index, roots["chexpert"] / "distcxr-cache/32px", 32, workers=1)
    assert built.num_images == IMAGES and not built.unreadable
    assert torch.equal(pixels(dataset, rows, "cache"), pixels(dataset, rows, "torch"))


def test_an_unknown_layout_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layout is 'padchest': it must be one of nih, csv"):
        write_phantom(tmp_path, images=8, size=32, layout="padchest")


def test_a_folder_of_another_layout_is_left_alone(tmp_path: Path) -> None:
    write_phantom(tmp_path, images=8, size=32, workers=1, layout="folders")
    write_phantom(tmp_path, images=8, size=32, workers=1, layout="folders")  # whole
    with pytest.raises(ValueError, match=r"layout folders, not version 1"):
        write_phantom(tmp_path, images=8, size=32, workers=1)
