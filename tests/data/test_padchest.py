"""PadChest's table and its layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from laid_out import PADCHEST_ROWS, padchest

from distcxr.data.index import MissingDataError, SampleIndex
from distcxr.data.read import read_index
from distcxr.data.sources.padchest import COMMON
from distcxr.data.splits import whole_splits
from distcxr.recipe.data import Data


def read(root: Path, **data: Any) -> SampleIndex:
    return read_index(Data.model_validate({"dataset": "padchest", "findings": "nih14", **data}), root)


@pytest.mark.parametrize("layout", ["{dir}/", "images/{dir}/", "images/", ""])
def test_padchest(tmp_path: Path, layout: str) -> None:
    """Frontal views alone, without what can't be read or is excluded; labels are whole, narrower ones the wider."""
    index = read(padchest(tmp_path, layout=layout))
    assert index.file_names(range(4)) == ["1_a.png", "2_a.png", "3_a.png", "4_a.png"]
    assert all(Path(file).is_file() for file in index.files(range(4)))
    assert index.view.tolist() == ["PA", "AP", "AP", "PA"] and index.sex.tolist() == ["F", "M", "", "M"]
    assert index.age.tolist()[::3] == [84, 54] and np.isnan(index.age[1:3]).all()  # 2052 is a slip of the table's
    assert index.patient_id.tolist()[1:] == [2, 3, 4] and 0 <= index.patient_id[0] < 10**18
    shown = [{index.findings[column] for column in np.flatnonzero(row)} for row in index.targets_NC]
    assert shown == [
        {"Pneumonia", "Consolidation", "Infiltration"}, {"subcutaneous emphysema", "nsg tube"}, {"No Finding"}, set(),
    ]  # fmt: skip
    assert index.findings[: len(COMMON)] == tuple(COMMON) and "pneumonia" not in index.findings
    assert index.mask_NC.all(axis=1).tolist() == [True, True, True, False] and not index.mask_NC[3].any()
    assert set(index.split.tolist()) == {""}


def test_padchest_no_changes_are_not_no_findings(tmp_path: Path) -> None:
    first = PADCHEST_ROWS[0]
    labels = ("['unchanged']", "['unchanged', 'suboptimal study']", "['unchanged', 'nodule']")
    index = read(
        padchest(tmp_path, [(f"{name}.png", *first[1:6], text) for name, text in zip("abc", labels, strict=True)])
    )
    silent = [index.findings.index(name) for name in ("unchanged", "suboptimal study")]
    assert (
        index.mask_NC[0].nonzero()[0].tolist() == silent[:1] and index.mask_NC[1].nonzero()[0].tolist() == silent[::-1]
    )
    assert index.mask_NC[2].all() and index.targets_NC[2, index.findings.index("Nodule")]


def test_padchest_lateral_views_on_demand(tmp_path: Path) -> None:
    index = read(padchest(tmp_path), where={"view": ["LATERAL"]})
    assert index.file_names(range(len(index))) == ["1_b.png"] and index.view.tolist() == ["LATERAL"]


def test_padchest_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"has no PADCHEST.*\nGet PadChest from https://bimcv"):
        read(tmp_path)
    root = padchest(tmp_path / "a")
    with pytest.raises(ValueError, match=r"put no image into train or test. Take\s+data.split=by_patient"):
        whole_splits(Data(dataset="padchest"), read(root))
    (root / "9/3_a.png").unlink()
    with pytest.raises(MissingDataError, match=r"1 of 4 images in .*have no file in .*: 9/3_a.png"):
        read(root)
    first = PADCHEST_ROWS[0]
    wrong: dict[str, tuple[str, ...]] = {
        r"line 3, column Labels: 'pneumonia' is not a list": (*first[:6], "pneumonia"),
        "line 3, column ImageID: image '../x.png'": ("../x.png", *first[1:]),
        "line 3, column ImageID: image 'a/x.png' is not a plain": ("a/x.png", *first[1:]),
        "line 3, column PatientID: no patient": (*first[:2], "", *first[3:]),
        "has no image of the views AP, PA": (*first[:5], "L", first[6]),
    }
    for number, (message, row) in enumerate(wrong.items()):
        with pytest.raises(ValueError, match=message):
            read(padchest(tmp_path / f"w{number}/x", [row]))
    with pytest.raises(ValueError, match=r"lists 1 images more than once: 1_a.png \(lines 3 and 5\)"):
        read(padchest(tmp_path / "twice", [first, first]))
