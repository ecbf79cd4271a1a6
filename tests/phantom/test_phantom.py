"""Synthetic X-rays: the same bytes however drawn, NIH's layout, and findings that a linear probe does not see."""

from __future__ import annotations

import csv
import json
import zlib
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distcxr.phantom.draw import draw_xray
from distcxr.phantom.findings import PAINTERS, RESHAPERS
from distcxr.phantom.plan import FREQUENCY, plan_xrays
from distcxr.phantom.writing import write_phantom

IMAGES, SIZE = 48, 64


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "Data_Entry_2017_v2020.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "set"
    write_phantom(out, images=IMAGES, size=SIZE, seed=5, workers=1)
    return out


def test_two_processes_write_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path, images=IMAGES, size=SIZE, seed=5, workers=2)
    assert contents(tmp_path) == contents(folder)


def test_another_seed_gives_other_xrays(folder: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path, images=8, size=SIZE, seed=6, workers=1)
    shared = {name for name in contents(tmp_path) if name.endswith(".png")} & set(contents(folder))
    assert shared
    assert all((tmp_path / name).read_bytes() != (folder / name).read_bytes() for name in shared)


def test_a_larger_set_starts_with_the_smaller(folder: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path, images=20, size=SIZE, seed=5, workers=1)
    assert rows_of(tmp_path) == rows_of(folder)[:20]
    for row in rows_of(tmp_path):
        name = f"images/{row['Image Index']}"
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_csv_has_the_columns_and_values_of_nih(folder: Path) -> None:
    header = (folder / "Data_Entry_2017_v2020.csv").read_text().splitlines()[0]
    assert header == (
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
    )
    rows = rows_of(folder)
    assert len(rows) == IMAGES == len(list((folder / "images").iterdir()))
    for row in rows:
        labels = row["Finding Labels"].split("|")
        assert labels == ["No Finding"] or set(labels) <= set(FREQUENCY)
        assert len(labels) == len(set(labels))
        assert row["Image Index"] == f"{int(row['Patient ID']):08d}_{int(row['Follow-up #']):03d}.png"
        assert 0 <= int(row["Patient Age"]) <= 95
        assert row["Patient Gender"] in "MF" and row["View Position"] in ("PA", "AP")
        with Image.open(folder / "images" / row["Image Index"]) as image:
            assert (image.mode, image.size) == ("L", (SIZE, SIZE))


def test_lists_share_the_xrays_out_by_patient(folder: Path) -> None:
    train_val, test = ((folder / name).read_text().split("\n") for name in ("train_val_list.txt", "test_list.txt"))
    assert sorted(train_val + test) == sorted(row["Image Index"] for row in rows_of(folder))
    assert train_val and test
    assert not {name[:8] for name in train_val} & {name[:8] for name in test}


def test_findings_are_common_enough_to_score() -> None:
    xrays = plan_xrays(4000, 0)
    count = Counter(name for xray in xrays for name in xray.findings)
    assert set(count) == set(FREQUENCY) == set(PAINTERS) | set(RESHAPERS)
    assert min(count.values()) >= 0.03 * len(xrays)
    assert 0.35 < sum(not xray.findings for xray in xrays) / len(xrays) < 0.45
    assert 0.17 < sum(xray.in_test for xray in xrays) / len(xrays) < 0.23
    assert {b.follow_up - a.follow_up for a, b in pairwise(xrays) if a.patient_id == b.patient_id} == {1}
    assert set(Counter(xray.patient_id for xray in xrays).values()) == set(range(1, 7))


def changes_of(finding: str) -> list[np.ndarray]:
    """Absolute grey change [64, 64] that the finding makes to each of twelve chests, else the same to the noise."""
    pairs = [
        [draw_xray(names, np.random.default_rng(seed), 64, "M", "PA").astype(int) for names in ([], [finding])]
        for seed in range(12)
    ]
    return [np.abs(healthy - ill) for healthy, ill in pairs]


@pytest.mark.parametrize("finding", sorted(FREQUENCY))
def test_each_finding_shows(finding: str) -> None:
    shares = [(change > 12).mean() for change in changes_of(finding)]
    assert min(shares) > 0 and 0.003 < np.median(shares) < 0.35


# Where the change lies on average: distance from the midline and height, in half image sides (v from -1, top, to 1).
@pytest.mark.parametrize(
    ("finding", "out", "height"),
    [
        ("Cardiomegaly", (0.1, 0.5), (0.0, 0.5)),
        ("Effusion", (0.35, 0.8), (0.1, 0.6)),
        ("Hernia", (0.0, 0.25), (0.1, 0.6)),
        ("Pleural_Thickening", (0.45, 0.9), (-0.6, 0.4)),
        ("Pneumothorax", (0.4, 0.9), (-0.7, 0.3)),
    ],
)
def test_findings_lie_where_they_belong(finding: str, out: tuple[float, float], height: tuple[float, float]) -> None:
    change = np.mean(changes_of(finding), axis=0)
    centres = (np.arange(64) + 0.5) / 32 - 1
    assert out[0] < np.average(np.abs(centres), weights=change.sum(axis=0)) < out[1]
    assert height[0] < np.average(centres, weights=change.sum(axis=1)) < height[1]


def test_rows_are_filtered_like_real_xrays(folder: Path) -> None:
    filters: Counter[int] = Counter()
    for path in (folder / "images").iterdir():
        data, at, stream = path.read_bytes(), 8, b""
        while at < len(data):
            length = int.from_bytes(data[at : at + 4], "big")
            stream += data[at + 8 : at + 8 + length] if data[at + 4 : at + 8] == b"IDAT" else b""
            at += 12 + length
        filters.update(zlib.decompress(stream)[:: SIZE + 1])
    assert filters[3] + filters[4] > 0.5 * filters.total()
    assert filters[3] and filters[4]


def test_a_whole_folder_is_left_alone_and_an_unfinished_one_completed(tmp_path: Path) -> None:
    write_phantom(tmp_path, images=8, size=32, workers=1)
    first, stamps = contents(tmp_path), {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert json.loads(first["phantom.json"]) == {"version": 1, "images": 8, "size": 32, "seed": 0}
    write_phantom(tmp_path, images=8, size=32, workers=1)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == stamps
    next((tmp_path / "images").iterdir()).unlink()
    write_phantom(tmp_path, images=8, size=32, workers=1)
    assert contents(tmp_path) == first
    (tmp_path / "phantom.json").rename(tmp_path / "phantom.unfinished.json")  # as a killed run leaves it
    next((tmp_path / "images").iterdir()).write_bytes(b"half")
    write_phantom(tmp_path, images=8, size=32, workers=1)
    assert contents(tmp_path) == first


def test_folders_of_others_are_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("chapter 1")
    with pytest.raises(ValueError, match=r"thesis\.txt.*empty or new folder"):
        write_phantom(tmp_path, images=8, size=32)
    assert list(contents(tmp_path)) == ["thesis.txt"]
    with pytest.raises(ValueError, match="is a file"):
        write_phantom(tmp_path / "thesis.txt", images=8, size=32)


def test_real_data_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "00000001_000.png").write_bytes(b"a real X-ray")
    with pytest.raises(ValueError, match="images"):
        write_phantom(tmp_path, images=8, size=32)
    assert contents(tmp_path) == {"images/00000001_000.png": b"a real X-ray"}


@pytest.mark.parametrize("other", [{"images": 9}, {"size": 40}, {"seed": 1}])
def test_other_settings_are_refused(tmp_path: Path, other: dict[str, int]) -> None:
    write_phantom(tmp_path, images=8, size=32, workers=1)
    with pytest.raises(ValueError, match="delete it or give another folder"):
        write_phantom(tmp_path, **({"images": 8, "size": 32, "seed": 0} | other))


@pytest.mark.parametrize("wrong", [{"images": 7}, {"size": 31}, {"seed": -1}, {"workers": 0}])
def test_settings_out_of_range_are_named(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        write_phantom(tmp_path / "new", **({"images": 8, "size": 32} | wrong))
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_linear_probe_on_thumbnails_sees_little() -> None:
    """Grey at fixed places must not give the findings away, or a quickstart AUROC would prove nothing."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from threadpoolctl import threadpool_limits

    xrays = plan_xrays(1600, 0)
    thumbnails_NP, targets_NC = [], np.array([[name in xray.findings for name in FREQUENCY] for xray in xrays])
    for xray in xrays:
        pixels = draw_xray(xray.findings, np.random.default_rng([0, 1, xray.number]), 64, xray.sex, xray.view)
        thumbnails_NP.append(pixels.reshape(16, 4, 16, 4).mean(axis=(1, 3)).ravel())
    features_NP = np.array(thumbnails_NP)
    held_out = np.array([xray.in_test for xray in xrays])
    features_NP = (features_NP - features_NP[~held_out].mean(0)) / features_NP[~held_out].std(0)
    with threadpool_limits(1):
        for strength in (1.0, 0.01):
            aurocs = []
            for targets_N in targets_NC.T:
                probe = LogisticRegression(C=strength, max_iter=1000).fit(features_NP[~held_out], targets_N[~held_out])
                aurocs.append(roc_auc_score(targets_N[held_out], probe.decision_function(features_NP[held_out])))
            assert 0.55 < np.mean(aurocs) < 0.75
