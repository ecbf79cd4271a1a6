"""A run on two data sets at once, out of one cache: what it logs and writes of each."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import tiny

from distcxr.data.dataset import open_dataset
from distcxr.data.store.cache_building import build_cache
from distcxr.data.store.cache_format import cache_folder
from distcxr.engine import testing
from distcxr.engine.checkpoint import open_checkpoint
from distcxr.phantom.writing import write_phantom
from distcxr.runfolder.layout import best_folder

LIST = "[{dataset: nih, root: %s}, {dataset: chexpert, root: %s, weight: 2.0}]"


def test_a_joint_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_phantom(tmp_path / "chexpert", layout="chexpert", images=40, size=48, seed=1, workers=1)
    nih = tiny.phantom(tmp_path)
    boxed = (nih / "test_list.txt").read_text().split()[:2]
    rows = [f"{name},Infiltrate,100,200,300,400" for name in boxed]
    (nih / "BBox_List_2017.csv").write_text("\n".join(["Image Index,Finding Label,Bbox [x,y,w,h]", *rows]))
    members = LIST % (nih, tmp_path / "chexpert")
    overrides = [
        "data.dataset=joint", f"data.root={tmp_path}", f"data.members={members}", "data.findings=nih14",
        "data.loader=cache", "train.epochs=1", "eval.replicates=2", "eval.pictures=0", f"output={tmp_path / 'run'}",
    ]  # fmt: skip
    recipe = tiny.recipe(tmp_path, *overrides)
    index = open_dataset(recipe).index
    folder = cache_folder(recipe.data, index.root)
    assert folder == tmp_path / "distcxr-cache/nih+chexpert+32px"
    assert build_cache(index, folder, 32, workers=1).num_made == len(index) == 136
    assert build_cache(index, folder, 32, workers=1).num_made == 0
    with caplog.at_level(logging.INFO):
        tiny.train(tmp_path, *overrides)
    assert "macro AUROC of each member (of so many findings): nih " in caplog.text
    assert "samples of an epoch, on average: nih " in caplog.text and "loader cache" in caplog.text
    for split in ("val", "test"):
        metrics = json.loads((tmp_path / f"run/metrics_{split}.json").read_text())
        groups = {one["group"]: one for one in metrics["subgroups"] if one["attribute"] == "data set"}
        assert groups.keys() == {"nih", "chexpert"}
        assert sum(one["num_samples"] for one in groups.values()) == metrics["num_samples"]
        assert not {"Nodule", "Hernia"} & set(groups["chexpert"]["macro"]["findings"] or ())  # CheXpert has neither
        assert "Several data sets at once" in metrics["warnings"][0]
    located = json.loads((tmp_path / "run/localisation_test.json").read_text())
    assert located["num_images"] == located["findings"]["Infiltration"]["num"] == 2
    page = json.loads((tmp_path / "run/report.json").read_text())
    assert "nih: Labels of ChestX-ray14" in page["reference_standard"]
    assert "chexpert: Labels of CheXpert" in page["reference_standard"]
    of = {row["step"]: row["num_images"] for row in page["flow"]}
    assert of["split train"] == of["split train, of nih"] + of["split train, of chexpert"]
    members_of = json.loads((tmp_path / "run/environment.json").read_text())["cohort"]["members"]
    assert members_of["chexpert"]["train"]["findings"]["Hernia"]["num_known"] == 0
    # Tested on one of them it is known whom it saw: the report does not state the contrary.
    joint = open_checkpoint(best_folder(tmp_path / "run"))
    assert testing._not_known([joint], open_dataset(tiny.recipe(tmp_path))) == []
