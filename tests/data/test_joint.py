"""Several data sets as one: labels by name, splits and patients of each, weights, and what is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from laid_out import CHEXPERT_HEADER, CHEXPERT_TRAIN, CHEXPERT_VALID, RSNA_IMAGES, chexpert, rsna, vindr, write_nih

from distcxr.data.dataset import Dataset, open_dataset
from distcxr.data.labels import common_name
from distcxr.data.order import BatchPlan
from distcxr.data.sampling import train_order
from distcxr.engine.unseen import check_unseen, shared_patients
from distcxr.recipe import Recipe
from distcxr.recipe.selection import Sampling

MORE = "".join(
    f"CheXpert-v1.0-small/train/patient{number:05d}/study1/view1_frontal.jpg,Male,50,Frontal,PA,0.0"
    + ",0.0" * 13
    + "\n"
    for number in range(1, 40)
)


LISTS = {"train": "a", "test": "b"}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with NIH's images, CheXpert's of patients with the same numbers, and VinDr's."""
    folder = tmp_path_factory.mktemp("joint")
    write_nih(folder / "nih")
    chexpert(folder / "chexpert", train=CHEXPERT_TRAIN + MORE.replace("study1", "study9"), valid=CHEXPERT_VALID)
    vindr(folder / "vindr")
    return folder


def members(folder: Path, *names: str, **keys: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"dataset": name, "root": folder / name, **keys.get(name, {})} for name in names]


def recipe(joined: list[dict[str, Any]], findings: Any = ("Edema", "Effusion", "Mass"), **data: Any) -> Recipe:
    values = {"dataset": "joint", "members": joined, "findings": findings, "val_fraction": 0.25, **data}
    return Recipe.model_validate({"data": values})


def opened(joined: list[dict[str, Any]], findings: Any = ("Edema", "Effusion", "Mass"), **data: Any) -> Dataset:
    return open_dataset(recipe(joined, findings, **data))


def alone(folder: Path, name: str) -> Dataset:
    data = {"dataset": name, "root": folder / name, "findings": "all", "val_fraction": 0.25}
    return open_dataset(Recipe.model_validate({"data": data}))


def test_labels_by_name_and_splits_as_alone(roots: Path, caplog: pytest.LogCaptureFixture) -> None:
    """NIH calls Effusion what CheXpert calls Pleural Effusion, and CheXpert has no Mass: unknown there."""
    both = opened(members(roots, "nih", "chexpert"))
    index = both.index
    assert index.root == roots and index.findings == ("Edema", "Effusion", "Mass") and len(index) == 400 + 43
    one, two = alone(roots, "nih"), alone(roots, "chexpert")
    for name in ("train", "val", "test"):
        rows = np.concatenate([one.splits.rows(name), 400 + two.splits.rows(name)])
        assert both.splits.rows(name).tolist() == rows.tolist(), name
    assert index.files([0, 400]) == [*one.index.files([0]), *two.index.files([0])]
    assert index.file_names([0, 400]) == [
        "nih/images/00000001_000.png", "chexpert/train/patient00001/study1/view1_frontal.jpg",
    ]  # fmt: skip
    assert index.mask_NC[:400].all() and index.mask_NC[400:].any(axis=0).tolist() == [True, True, False]
    shown = two.index.targets_NC[:, two.index.findings.index("Edema")]
    assert index.targets_NC[400:, 0].tolist() == shown.tolist()
    assert np.unique(index.patient_id[:400]).tolist() == list(range(1, 101))  # NIH's own
    assert not np.isin(index.patient_id[400:], index.patient_id[:400]).any()  # patient 1 of CheXpert is another person
    lines = "\n".join(both.describe())
    assert "nih, test: 100 images of 25 patients; Edema 25.0 %, Effusion 0.0 %, Mass 25.0 %" in lines
    assert "chexpert, test: 1 images of 1 patients; Edema 0.0 %, Effusion 0.0 %; unknown: Mass" in lines
    assert "nih: labels: not a known NIH file" in lines and "chexpert: labels: of chexpert" in lines
    counts = both.cohort["members"]["chexpert"]["train"]["findings"]["Mass"]
    assert counts["num_known"] == 0 and both.cohort["splits"]["train"]["num_images"] == len(both.splits.train)


def test_a_map_and_other_spellings(roots: Path) -> None:
    """Columns of one name become one; the recipe's spelling is kept; null leaves a finding out."""
    names = {"Lung Opacity": "Mass", "Fracture": "Mass", "Edema": None}
    index = opened(members(roots, "nih", "chexpert", chexpert={"map": names}), ["Pleural Effusion", "Mass"]).index
    raw = alone(roots, "chexpert").index
    opacity, fracture = (raw.findings.index(name) for name in ("Lung Opacity", "Fracture"))
    assert index.findings == ("Pleural Effusion", "Mass") and index.mask_NC[:400].all()
    shown, known = raw.targets_NC & raw.mask_NC, raw.mask_NC
    assert index.targets_NC[400:, 1].tolist() == (shown[:, opacity] | shown[:, fracture]).tolist()
    expected = shown[:, opacity] | shown[:, fracture] | (known[:, opacity] & known[:, fracture])
    assert index.mask_NC[400:, 1].tolist() == expected.tolist() and not expected.all()
    every = opened(members(roots, "nih", "chexpert", chexpert={"map": names}), "all").index
    assert "Lung Opacity" not in every.findings and not every.mask_NC[400:, every.findings.index("Edema")].any()
    five = opened(members(roots, "nih", "chexpert"), "chexpert5").index
    assert five.mask_NC.all() and five.findings[-1] == "Pleural Effusion"


def test_weights_and_an_order_that_ranks_share(roots: Path) -> None:
    """A member's images come in proportion to its weight; 1 and 2 ranks and a resumed epoch have the same order."""
    heavy = opened(members(roots, "nih", "chexpert", chexpert={"weight": 9.0}))
    index, rows = heavy.index, heavy.splits.train

    def order(rank: int, world_size: int) -> list[int]:
        plan = BatchPlan(8, 4, world_size, rank)
        made = train_order(index, rows, Sampling(), seed=1, stage=0, plan=plan)
        drawn = [its.tolist() for epoch in range(30) for _, its in made.epoch(epoch, start=3 * (epoch == 29))]
        return [row for batch in drawn for row in batch]

    whole, halves = order(0, 1), [order(rank, 2) for rank in range(2)]
    assert [row for k in range(len(whole) // 8) for half in halves for row in half[4 * k : 4 * k + 4]] == whole
    num = np.bincount(index.member_of(rows))
    share = 9 * num[1] / (num[0] + 9 * num[1])
    assert abs(np.mean(index.member_of(whole) == 1) - share) < 0.03
    notes = train_order(index, rows, Sampling(), seed=1, stage=0, plan=BatchPlan(8, 8)).notes
    assert notes == (f"data.members: weights: samples of an epoch, on average: nih {100 - 100 * share:.1f} %, chexpert "
                     f"{100 * share:.1f} %",)  # fmt: skip
    equal = opened(members(roots, "nih", "chexpert", nih={"weight": 2}, chexpert={"weight": 2}))
    plain = train_order(equal.index, rows, Sampling(), seed=1, stage=0, plan=BatchPlan(8, 8))
    assert plain.cumulative_N is None and not plain.notes


def test_a_member_for_training_alone(roots: Path) -> None:
    splits = opened(members(roots, "nih", "chexpert", chexpert={"splits": ["train"]})).splits
    assert splits.test.max() < 400 and splits.val.max() < 400 and splits.train.max() > 400
    with pytest.raises(ValueError, match="the val split is empty: no member has images there"):
        opened(members(roots, "nih", "chexpert", nih={"splits": ["train"]}, chexpert={"splits": ["test"]}))


def test_the_same_people_twice(roots: Path, tmp_path: Path) -> None:
    """RSNA's images are NIH's: with its mapping, patients are compared; without, nothing is known of them."""
    write_nih(tmp_path / "nih")
    rsna(tmp_path / "rsna")
    joined = members(tmp_path, "nih", "rsna", rsna={"split": "by_patient"})
    with pytest.raises(ValueError, match="nih and rsna have the same images: RSNA's are NIH's"):
        opened(joined, "all")
    lists = ("train_val_list.txt", "test_list.txt")
    for theirs, patients in (lists[::-1], (1, 98, 99)), (lists, (1, 2, 99)):
        images = [f"{patient:08d}_001.png" for patient in patients]
        rsna(tmp_path / "rsna", mapped=True, images=dict(zip(RSNA_IMAGES, images, strict=True)))
        for name, its in zip(lists, theirs, strict=True):
            shutil.copy(tmp_path / "nih" / its, tmp_path / "rsna" / name)
        if theirs != lists:
            with pytest.raises(ValueError, match=r"same people, and 1 patients are in .* Give both the same official"):
                opened(members(tmp_path, "nih", "rsna"), "all")
    both = opened(members(tmp_path, "nih", "rsna"), "all")
    assert np.isin(both.index.patient_id[400:], both.index.patient_id[:400]).all()
    assert both.index.split[400:].tolist()[2] == "test"


def test_refused(roots: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(roots / "chexpert", copy)
    twice = [*members(roots, "nih", "chexpert"), {"dataset": "chexpert", "root": copy, "name": "again"}]
    with pytest.raises(ValueError, match="chexpert and again have the same label file"):
        opened(twice)
    (copy / "train.csv").write_text(
        CHEXPERT_HEADER + CHEXPERT_TRAIN + MORE.replace("0.0,0.0", "1.0,0.0").replace("study1", "study9")
    )
    with pytest.raises(ValueError, match=r"chexpert and again are of the same people, and \d+ patients are in"):
        opened([*twice[:2], twice[2] | {"split": "by_patient"}])
    table = "image,Mass,Edema\nimages/00000001_900.jpg,1,0\nb.png,0,1\n"
    (tmp_path / "labels.csv").write_text(table)
    (tmp_path / "images").mkdir()
    for name in ("images/00000001_900.jpg", "b.png"):
        (tmp_path / name).touch()
    mine = {"dataset": "csv", "root": tmp_path, "split": "by_patient"}
    with pytest.raises(
        ValueError, match="nih and csv: 1 images of csv show patients of nih's, such as images/00000001"
    ):
        opened([*members(roots, "nih"), mine])
    (tmp_path / "labels.csv").write_text("image,Edema\nb.png,0\ncopy/train/patient00009/study9/view1_frontal.jpg,1\n")
    with pytest.raises(ValueError, match="again and csv: 1 images of csv are files of again's, such as copy/train/pa"):
        opened([twice[2], mine])
    (tmp_path / "anonymous.csv").write_text("image,Edema\n" + "".join(f"{number}.png,0\n" for number in range(40)))
    rows = "".join(f"{number}.png,{number // 2},{number % 2}\n" for number in range(40))
    (tmp_path / "labels.csv").write_text(f"image,patient,Edema\n{rows}")
    for number in range(40):
        (tmp_path / f"{number}.png").touch()
    anonymous = {**mine, "name": "anonymous", "columns": {"table": "anonymous.csv"}}
    with pytest.raises(ValueError, match=r"same people, and \d+ images are in train of csv and in test of anon"):
        opened([{**mine, "columns": {"patient": "patient"}}, anonymous], ["Edema"])
    cases: dict[str, dict[str, Any]] = {
        "data.members, chexpert: map: unknown finding 'Lung Leison', did you mean 'Lung Lesion'": {
            "chexpert": {"map": {"Lung Leison": "Mass"}}
        },
        "data.members, chexpert: .* has no train.csv": {"chexpert": {"root": roots}},
        "data.members, chexpert: the list .*missing.txt can't be read": {
            "chexpert": {"split": "lists", "lists": {"train": "missing.txt", "test": "t.txt"}}
        },
    }
    for message, keys in cases.items():
        with pytest.raises(ValueError, match=message):
            opened(members(roots, "nih", "chexpert", **keys))
    for findings, message in (
        (
            ["Mass", "Hernia"],
            "data.members, nih: it shares no finding .* it labels Hernia, Mass, the others none of them",
        ),
        (["Effusion", "Pleural Effusion"], "Effusion and Pleural Effusion mean the same"),
        (["Efusion", "Mass"], "unknown finding 'Efusion', did you mean 'Effusion'"),
    ):
        with pytest.raises(ValueError, match=message):
            opened(members(roots, "nih", "chexpert"), findings)


def test_conditions(roots: Path) -> None:
    """One that spells a finding otherwise adds no second column of it to `all`; none takes a whole member out."""
    two = members(roots, "nih", "chexpert")
    found = opened(two, "all", where={"without": ["pneumothorax"]}).index.findings
    assert "pneumothorax" in found and len(found) == len({common_name(name) for name in found})
    with pytest.raises(ValueError, match=r"none of the 43 images of chexpert \(findings \['Mass'\]\)\. What"):
        opened(two, where={"findings": ["Mass"]})


def test_recipes_refused(roots: Path) -> None:
    two = members(roots, "nih", "chexpert")
    for message, keys in {
        "takes 2 to 9 data.members, and there are 1": {"members": two[:1]},
        "two are called nih: give one of them another `name`": {"members": [two[0], two[0]]},
        "data.members belongs to data.dataset: joint": {"dataset": "nih", "members": two},
        "data.source: pack holds one data set": {"members": two, "source": "pack"},
        "give each of data.members its own split and lists": {"members": two, "split": "lists", "lists": LISTS},
        "data.members, nih: data.lists and data.split": {"members": [two[0] | {"split": "lists"}, two[1]]},
        "redraw=epoch does not go with data.members of different": {
            "members": [two[0] | {"weight": 2}, two[1]], "sampling": {"cap_per_label": 9, "redraw": "epoch"}
        },
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=message):
            Recipe.model_validate({"data": {"dataset": "joint", **keys}})


def test_moved_members_are_the_same_recipe_and_patients(roots: Path, tmp_path: Path) -> None:
    before = recipe(members(roots, "nih", "chexpert"))
    moved = tmp_path / "moved"
    for name in ("nih", "chexpert"):
        shutil.copytree(roots / name, moved / name, copy_function=os.link)
    after = recipe(members(moved, "nih", "chexpert"))
    assert (
        before.identity() == after.identity() != recipe(members(roots, "nih", "chexpert", nih={"weight": 2})).identity()
    )
    there = open_dataset(after)
    assert there.hashes == open_dataset(before).hashes
    seen = there.patients_of(before.data, ("train", "val"))  # its roots are not looked at
    rows = np.concatenate([there.splits.train, there.splits.val])
    assert seen.tolist() == np.unique(there.index.patient_id[rows]).tolist()


def test_a_run_on_all_has_seen_the_patients_of_one(roots: Path) -> None:
    """The labels of a member are known by their hash, so that a test on it alone is held against the run's training."""
    joint = open_dataset(recipe(members(roots, "nih", "chexpert")))
    run = SimpleNamespace(meta={"hashes": joint.hashes}, recipe=recipe(members(roots, "nih", "chexpert")))
    nih = {"root": roots / "nih", "findings": ["Mass"], "val_fraction": 0.25}
    same = open_dataset(Recipe.model_validate({"data": nih}))
    assert shared_patients(run, same, ("train", "val"), "test").tolist() == []  # type: ignore[arg-type, union-attr]
    other = open_dataset(Recipe.model_validate({"data": nih | {"split": "by_patient"}}))
    seen = shared_patients(run, other, ("train", "val"), "test")  # type: ignore[arg-type]
    alone = SimpleNamespace(meta={"hashes": other.hashes}, recipe=Recipe.model_validate({"data": other.data}))
    both = shared_patients(alone, joint, ("train", "val"), "test")  # type: ignore[arg-type]
    trained = other.index.patient_id[np.concatenate([other.splits.train, other.splits.val])]
    assert both is not None and both.tolist() == np.unique(trained[trained > 75]).tolist() != []
    expected = other.index.patient_id[other.splits.test]
    assert seen is not None and seen.tolist() == np.unique(expected[expected <= 75]).tolist() != []


def test_who_was_seen_by_a_run_on_a_part_of_several(roots: Path) -> None:
    """What limits and conditions leave of all members' images is not what they leave of one: nobody whom the run has
    seen is missed. A joint data set is held against another by the members that both have."""
    part = {"max_train_samples": 60, "max_val_samples": 20, "where": {"without": ["Effusion"]}}
    asked = recipe(members(roots, "chexpert", "nih"), **part)
    joint = open_dataset(asked)
    run: Any = SimpleNamespace(meta={"hashes": joint.hashes}, recipe=asked)
    rows = np.concatenate([joint.splits.train, joint.splits.val])
    seen = joint.index.patient_id[rows[joint.index.member_of(rows) == 1]] - 10**18  # NIH's own numbers
    moved: dict[str, Any] = {"split": "by_patient", "ratios": [0.2, 0.2, 0.6]}
    alone = open_dataset(Recipe.model_validate({"data": {"root": roots / "nih", "findings": ["Edema"], **moved}}))
    another = opened(members(roots, "nih", "vindr", nih=moved), ["Edema"])
    for other in (alone, another):
        found, test = shared_patients(run, other, ("train", "val"), "test"), other.index.patient_id[other.splits.test]
        assert found is not None and np.isin(test, seen).any() and np.isin(test[np.isin(test, seen)], found).all()


def test_three_members_and_no_patients_in_one(roots: Path, caplog: pytest.LogCaptureFixture) -> None:
    index = opened(members(roots, "nih", "chexpert", "vindr"), "nih15").index
    assert len(index) == 400 + 43 + 4 and "if vindr does not name patients" in caplog.text
    assert set(index.member_names([0, 400, 446]).tolist()) == {"nih", "chexpert", "vindr"}  # type: ignore[union-attr]
    assert not index.mask_NC[443:, index.findings.index("Mass")].any()  # VinDr has Nodule/Mass, which is neither


@pytest.mark.parametrize(("trained", "warns"), [("nih", True), ("joint", True), ("chexpert", False)])
def test_images_under_other_names_are_warned_of(
    roots: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, trained: str, warns: bool
) -> None:
    """RSNA's are NIH's, whatever their label files are."""
    root, lists = rsna(tmp_path), {name: f"{name}.txt" for name in ("train", "val", "test")}
    for name, image in zip(lists.values(), RSNA_IMAGES, strict=True):
        (root / name).write_text(f"{image}.dcm")
    data = {"dataset": "rsna", "root": root, "findings": "all", "split": "lists", "lists": lists}
    joint = recipe(members(roots, "nih", "chexpert"))
    of = joint if trained == "joint" else Recipe.model_validate({"data": {"dataset": trained}})
    run = SimpleNamespace(meta={"hashes": {"labels": "of another file"}}, recipe=of, path=tmp_path)
    check_unseen(run, open_dataset(Recipe.model_validate({"data": data})))  # type: ignore[arg-type]
    assert ("of nih, which it was trained on, are the same, NIH's" in caplog.text) == warns
