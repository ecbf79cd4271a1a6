"""`distcxr score`: scikit-learn's figures for anyone's file, comparisons, and mistakes in plain words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from cohort import cohort, predictions
from sklearn.metrics import average_precision_score, roc_auc_score

from distcxr.cli import main
from distcxr.metrics.calibration import probabilities
from distcxr.runfolder.predictions import write_predictions

FINDINGS = ("Mass", "Nodule", "Hernia", "No Finding")
NUM = 240
DATA = cohort(0, num=NUM, patients=50, decimals=6)
FILES = [f"{patient:08d}_{row:03d}.png" for row, patient in enumerate(DATA.patient_id.tolist())]
SECOND = np.arange(NUM) % 2 == 1


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """NIH-like labels of 240 images, and a list of every second one."""
    targets = DATA.targets_NC.copy()
    targets[:, 3] = ~targets[:, :3].any(axis=1)
    rows = ["Image Index,Finding Labels,Patient ID,Patient Age,Patient Gender,View Position"]
    for name, patient, row in zip(FILES, DATA.patient_id.tolist(), targets, strict=True):
        label = "|".join(finding for finding, target in zip(FINDINGS, row, strict=True) if target)
        rows.append(f"{name},{label},{patient},{20 + patient % 60},{'MF'[patient % 2]},PA")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "test_list.txt").write_text("\n".join(name for name, on in zip(FILES, SECOND, strict=True) if on))
    (tmp_path / "val_list.txt").write_text("\n".join(name for name, on in zip(FILES, ~SECOND, strict=True) if on))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: str, scores: Any, keep: Any = SECOND, findings: tuple[str, ...] = FINDINGS) -> None:
    lines = [",".join(("Image", *findings))]
    for row in np.random.default_rng(0).permutation(np.flatnonzero(keep)):
        lines.append(",".join((FILES[row], *map(repr, scores[row].tolist()))))
    Path(path).write_text("\n".join(lines) + "\n")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["distcxr", "score", *arguments, "--replicates", "40"])
    return main()


LISTED = ("--labels", "labels.csv", "--list", "test_list.txt", "--json", "out.json")


def stored(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "out.json").read_text(), parse_constant=pytest.fail)
    assert isinstance(content, dict)
    return content


def test_a_row_of_the_leaderboard(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("mine.csv", DATA.logits_NC.astype(np.float64))
    assert call(monkeypatch, "mine.csv", *LISTED, "--leaderboard", "row.md") == 0
    auroc = f"{stored(folder)['macro']['auroc']:.4f}".removeprefix("0")
    assert f"\n| mine | {auroc} | ." in (folder / "row.md").read_text()
    assert call(monkeypatch, "mine.csv", *LISTED, "--leaderboard", "nowhere/row.md") == 2


def targets_of(column: int) -> Any:
    targets = DATA.targets_NC.copy()
    targets[:, 3] = ~targets[:, :3].any(axis=1)
    return targets[SECOND, column]


@pytest.mark.parametrize("kind", ["probabilities", "logits"])
def test_figures_are_sklearns(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    scores = DATA.logits_NC.astype(np.float64)
    scores = probabilities(scores) if kind == "probabilities" else scores
    write("p.csv", scores)
    assert call(monkeypatch, "p.csv", *LISTED) == 0
    content, printed = stored(folder), capsys.readouterr().out
    assert f"taken as {kind}" in printed and f"{SECOND.sum()} images of" in printed and "written: out.json" in printed
    for column, name in enumerate(FINDINGS):
        entry, truth = content["findings"][name], targets_of(column)
        assert entry["auroc"] == pytest.approx(roc_auc_score(truth, scores[SECOND, column]), rel=0, abs=1e-12)
        expected = average_precision_score(truth, scores[SECOND, column])
        assert entry["auprc"] == pytest.approx(expected, rel=0, abs=1e-12)
        assert (entry["num"], entry["num_positive"]) == (SECOND.sum(), truth.sum())
        assert f"{entry['auroc']:.4f}" in printed
        few = entry["num_positive_patients"] < 10
        assert few == (entry["auroc_low"] is None)
        assert few or f"{entry['auroc_low']:.4f}-{entry['auroc_high']:.4f}" in printed
    assert content["macro"]["findings"] == list(FINDINGS[:3]) and content["split"] == "test"
    assert content["step"] is None and content["loss"] is None
    assert content["operating_points_from"] == "this split (optimistic)"
    assert {group["attribute"] for group in content["subgroups"]} == {"sex", "age", "view", "images per patient"}
    assert any("not NIH's test list" in warning for warning in content["warnings"])
    assert any("Not predicted" in warning and "Edema" in warning for warning in content["warnings"])
    assert content["source"]["scale"] == ("probability" if kind == "probabilities" else "logit")


def test_our_own_file_is_read_as_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write("p.csv", DATA.logits_NC.astype(np.float64))
    assert call(monkeypatch, "p.csv", *LISTED) == 0
    foreign = stored(folder)
    at = np.flatnonzero(SECOND)
    names = [FILES[row] for row in at]
    targets = np.stack([targets_of(column) for column in range(4)], axis=1).astype(np.uint8)
    arrays = (DATA.patient_id[at].tolist(), FINDINGS, DATA.logits_NC[at])
    write_predictions("own.csv", *predictions(names, *arrays, targets, np.ones_like(targets)))
    assert call(monkeypatch, "own.csv", *LISTED) == 0
    own = stored(folder)
    assert own["findings"] == foreign["findings"] and own["subgroups"] == foreign["subgroups"]
    assert call(monkeypatch, "own.csv", "--json", "out.json") == 0, "it holds its labels"
    alone = stored(folder)
    assert alone["findings"] == foreign["findings"] and alone["split"] == "predictions"
    assert {group["attribute"] for group in alone["subgroups"]} == {"images per patient"}
    write_predictions("own.csv", *predictions(names, *arrays, 1 - targets, np.ones_like(targets)))
    capsys.readouterr()
    assert call(monkeypatch, "own.csv", *LISTED) == 0
    printed = capsys.readouterr().out
    assert f"warning: {targets.size:,} labels differ from those that own.csv holds" in printed


def test_thresholds_from_validation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prob = probabilities(DATA.logits_NC)
    write("p.csv", prob)
    write("val.csv", prob, ~SECOND)
    assert call(monkeypatch, "p.csv", *LISTED, "--calibrate-on", "val.csv") == 0
    content = stored(folder)
    assert content["operating_points_from"] == "val"
    assert any("patients are in val.csv and among the scored" in warning for warning in content["warnings"])
    threshold = content["findings"]["Mass"]["operating_points"]["recall_90"]["threshold_prob"]
    truth = DATA.targets_NC[~SECOND, 0]
    positive = np.sort(prob[~SECOND, 0][truth == 1])
    assert threshold == positive[int(np.floor(0.1 * len(positive)))], "the highest that keeps 90 % of validation's"
    assert content["findings"]["Mass"]["temperature"] is not None


def test_against_another_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    good = DATA.logits_NC.astype(np.float64)
    bad = good + 3 * rng.normal(size=good.shape)
    write("p.csv", good)
    write("other.csv", bad[:, [3, 1, 0]], findings=("No Finding", "Nodule", "Mass"))
    assert call(monkeypatch, "p.csv", *LISTED, "--against", "other.csv") == 0
    against = stored(folder)["against"]
    assert list(against["findings"]) == ["Mass", "Nodule", "No Finding"], "those that both have"
    assert against["macro"]["findings"] == ["Mass", "Nodule"]
    mass = against["findings"]["Mass"]
    truth = targets_of(0)
    expected = roc_auc_score(truth, good[SECOND, 0]) - roc_auc_score(truth, bad[SECOND, 0])
    assert mass["difference"] == pytest.approx(expected, rel=0, abs=1e-12) and expected > 0
    assert mass["difference_low"] is mass["p"] is None and mass["reason"] == mass["p_reason"]
    assert mass["p_reason"] == "7 positive patients: nothing holds with fewer than 10"
    nodule = against["findings"]["Nodule"]
    assert 0 < nodule["p_delong"] <= nodule["p_delong_holm"] < 0.05 and 2 / 41 < nodule["p"] == nodule["p_floor"]
    assert nodule["difference_low"] < nodule["difference"] < nodule["difference_high"]
    assert nodule["auprc"]["difference"] > 0 and against["macro"]["auprc"]["difference_low"] > 0
    assert against["operating_points_from"] == "this split (optimistic)"
    recall = nodule["operating_points"]["specificity_90"]["recall"]
    assert recall["difference"] == pytest.approx(recall["recall"] - recall["recall_other"]) and recall["p"]
    printed = capsys.readouterr().out
    assert f"<= {nodule['p']:.4f}" in printed and "warning: Intervals are of 40 bootstrap samples only" in printed
    assert f"{mass['difference']:+.4f}" in printed and "less other.csv" in printed


def test_accuracy_where_the_classes_exclude_each_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ill = DATA.targets_NC[:, 0].astype(np.uint8)
    lines = ["image,patient,normal,ill"]
    rows = zip(FILES, DATA.patient_id.tolist(), ill.tolist(), strict=True)
    lines += [f"{name},{patient},{1 - one},{one}" for name, patient, one in rows]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    ours = np.stack((-DATA.logits_NC[:, 0], DATA.logits_NC[:, 0]), axis=1).astype(np.float64)
    for name, scores in (("p.csv", ours), ("other.csv", np.tile([1.0, 0.0], (NUM, 1)))):  # always normal
        write(name, scores, findings=("normal", "ill"))
    assert call(monkeypatch, "p.csv", *LISTED, "--against", "other.csv", "--logits") == 0
    content, expected = stored(folder), ((ours[:, 1] > 0) == ill)[SECOND].mean()
    found = content["against"]["accuracy"]
    assert content["accuracy"] == found["accuracy"] == pytest.approx(expected)
    assert found["accuracy_other"] == pytest.approx(1 - ill[SECOND].mean())
    assert found["difference"] == pytest.approx(found["accuracy"] - found["accuracy_other"]) and found["p"]
    printed = capsys.readouterr().out
    assert f"accuracy, of the likeliest class: {expected:.4f}" in printed and "likeliest class  " in printed


def test_rates_are_compared_at_thresholds_from_validation_of_both(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prob = probabilities(DATA.logits_NC)
    for name, scores in (("p", prob), ("other", prob**2)):
        write(f"{name}.csv", scores)
        write(f"{name}_val.csv", scores, ~SECOND)
    both = ("--against", "other.csv", "--calibrate-on", "p_val.csv")
    assert call(monkeypatch, "p.csv", *LISTED, *both) == 0
    assert stored(folder)["against"]["findings"]["Nodule"]["operating_points"] == {}
    assert "only one of the two models has thresholds from validation" in capsys.readouterr().out
    assert call(monkeypatch, "p.csv", *LISTED, *both, "--against-calibrate-on", "other_val.csv") == 0
    against = stored(folder)["against"]
    assert against["operating_points_from"] == "val"
    points = against["findings"]["Nodule"]["operating_points"]
    assert points["youden"]["recall"]["difference"] == 0, "its order is the same, and so are its thresholds"
    assert points["probability_50"]["recall"]["difference"] > 0
    assert call(monkeypatch, "p.csv", *LISTED, "--against-calibrate-on", "other_val.csv") == 2


def test_labels_in_a_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"{name},{patient},{target[0]}" for name, patient, target in
            zip(FILES, DATA.patient_id, DATA.targets_NC, strict=True)]  # fmt: skip
    (folder / "table.csv").write_text("f,Patient ID,Cardiac Size\n" + "\n".join(rows) + "\n")
    write("p.csv", DATA.logits_NC.astype(np.float64)[:, :1], findings=("cardiac size",))
    assert call(monkeypatch, "p.csv", "--labels", "table.csv", "--json", "out.json") == 0
    entry = stored(folder)["findings"]["Cardiac Size"]
    expected = roc_auc_score(DATA.targets_NC[SECOND, 0], DATA.logits_NC[SECOND, 0])
    assert entry["auroc"] == pytest.approx(expected, rel=0, abs=1e-12)


def test_absent_class_and_one_patient_are_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = np.flatnonzero(DATA.patient_id == np.bincount(DATA.patient_id).argmax())
    keep = np.isin(np.arange(NUM), own)
    write("p.csv", DATA.logits_NC.astype(np.float64), keep)
    assert call(monkeypatch, "p.csv", "--labels", "labels.csv", "--json", "out.json") == 0
    printed = capsys.readouterr().out
    assert "warning: All images are of one patient" in printed and "No areas" in printed
    assert f"{len(own)} of the {NUM} labelled images are scored; --list names those that are due" in printed
    assert all(entry["auroc_low"] is None and entry["reason"] for entry in stored(folder)["findings"].values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.csv", *LISTED), "none.csv can't be read"),
        (("p.csv", "--labels", "none.csv"), "none.csv can't be read: No such file"),
        (("p.csv",), "give them with --labels"),
        (("p.csv", "--labels", "labels.csv", "--list", "val_list.txt"), "lacks 120 of the 120 images of val_list.txt"),
        (("p.csv", "--labels", "labels.csv", "--list", "none.txt"), "the list none.txt can't be read"),
        (("p.csv", *LISTED, "--probabilities"), "is not a probability"),
        (("p.csv", *LISTED, "--against", "few.csv"), "few.csv lacks 119 of the 120 images of p.csv"),
        (("p.csv", *LISTED, "--calibrate-on", "few.csv"), "few.csv has no column of Hernia, No Finding"),
        (("strangers.csv", "--labels", "labels.csv"), "none of the 2 images is in the labels: 0, 1, where labels name"),
        (("stranger.csv", "--labels", "labels.csv"), "1 of the 2 images are not in the labels: z.png"),
        (("p.csv", *LISTED, "--seed", "-1"), "seed"),
        (("p.csv", "--labels", "labels.csv", "--json", "no/such/folder.json"), "can't be written"),
    ],
)
def test_mistakes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    write("p.csv", DATA.logits_NC.astype(np.float64))
    Path("few.csv").write_text(f"f,Mass,Nodule\n{FILES[1]},0.5,0.25\n")
    Path("strangers.csv").write_text("f,Mass\n0,0.5\n1,0.25\n")
    Path("stranger.csv").write_text(f"f,Mass\n{FILES[1]},0.5\nz.png,0.25\n")
    assert call(monkeypatch, *arguments) == 2
    out, printed = capsys.readouterr()
    assert printed.startswith("error: ") and message in printed and "Traceback" not in printed
    assert not out, "a mistake is found before the work"


def test_a_runs_predictions_give_the_runs_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte: thresholds from its validation predictions, patients and subgroups from the label file."""
    data, folder = tiny.phantom(tmp_path), tmp_path / "run"
    more = ("train.max_steps=2", "eval.replicates=40", "eval.pictures=0", "eval.localise=false")
    tiny.train(tmp_path, f"output={folder}", *more)
    labels = str(data / "Data_Entry_2017_v2020.csv")
    lists = ("--list", str(data / "test_list.txt"), "--calibrate-on", str(folder / "predictions_val.csv"))
    out = tmp_path / "out.json"
    assert call(monkeypatch, str(folder / "predictions_test.csv"), "--labels", labels, *lists, "--json", str(out)) == 0
    scored, run = json.loads(out.read_text()), json.loads((folder / "metrics_test.json").read_text())
    assert run["operating_points_from"] == "val" and run["intervals"]["replicates"] == 40
    beside = {"step", "loss", "warnings", "checkpoint_from"}
    of_a_run = {"tta", "trained_with"}
    assert scored.keys() >= run.keys() - of_a_run
    for key in run.keys() - beside - of_a_run:
        assert json.dumps(scored[key]) == json.dumps(run[key]), key


def test_our_own_file_saved_by_a_spreadsheet(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = np.ones((NUM, 1), dtype=np.uint8)
    write_predictions(
        "own.csv", *predictions(FILES, DATA.patient_id, ["Mass"], DATA.logits_NC[:, :1], DATA.targets_NC[:, :1], one)
    )
    text = Path("own.csv").read_text()
    Path("own.csv").write_text("\ufeff" + text.replace("\n", "\r\n"), encoding="utf-8", newline="")
    assert call(monkeypatch, "own.csv") == 0
    capsys.readouterr()
    header, first, *others = text.splitlines()
    cells = first.split(",")
    for place, cell, message in ((1, "9" * 30, "18 digits or fewer"), (4, "1e300", "NaN or infinite: lines 2")):
        row = ",".join([*cells[:place], cell, *cells[place + 1 :]])
        Path("own.csv").write_text("\n".join([header, row, *others]) + "\n")
        assert call(monkeypatch, "own.csv") == 2
        printed = capsys.readouterr().err
        assert printed.startswith("error: own.csv") and message in printed
