"""The files at the end of a run: thresholds from validation, pictures, localisation, and nothing of it can lose it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from cohort import known
from PIL import Image

from distcxr.engine import final_scores
from distcxr.engine.evaluate import Scores, evaluate
from distcxr.engine.final_scores import Weights, operating_of, score_splits, trained_with, write_scores
from distcxr.engine.fit import finish, fit
from distcxr.engine.pictures import write_pictures
from distcxr.metrics.operating import Operating
from distcxr.metrics.scored import Known, Scored
from distcxr.metrics.threshold import Rule, choose_threshold, count_cells
from distcxr.recipe import Recipe
from distcxr.runfolder.predictions import Predictions, read_predictions


def read(path: Path) -> Any:
    return json.loads(path.read_text(), parse_constant=pytest.fail)


def column_of(found: Predictions, name: str) -> Known:
    at = found.findings.index(name)
    return known(found.logits_NC[:, at], found.targets_NC[:, at])


def test_thresholds_come_from_validation(finished: Path) -> None:
    metrics, kept = read(finished / "metrics_test.json"), read(finished / "operating.json")
    val, test = (read_predictions(finished / f"predictions_{split}.csv") for split in ("val", "test"))
    assert metrics["operating_points_from"] == "val" == metrics["checkpoint_from"]
    assert "optimistic" in read(finished / "metrics_val.json")["operating_points_from"]
    assert kept["step"] == metrics["step"] and Operating.from_json(kept["operating"]).findings == tuple(test.findings)
    checked = 0
    for name, entry in metrics["findings"].items():
        chosen = choose_threshold(column_of(val, name), Rule("youden"))
        point = entry["operating_points"]["youden"]
        assert point["threshold_logit"] == chosen.value
        if chosen.value is not None:
            cells = count_cells(column_of(test, name), chosen.value)
            assert (point["tp"], point["fn"]) == (cells.true_positive, cells.false_negative)
            checked += 1
    assert checked > 3


def test_pictures_are_of_errors(finished: Path) -> None:
    entries, test = read(finished / "pictures" / "pictures.json"), read_predictions(finished / "predictions_test.csv")
    assert [entry["kind"] for entry in entries] == ["false_positive"] * 2 + ["false_negative"] * 2
    colours = []
    for entry in entries:
        one = column_of(test, entry["finding"])
        row = test.files.index(entry["file"])
        assert one.targets_M[row] == (entry["kind"] == "false_negative") == (entry["finding"] in entry["labels"])
        assert entry["prob"] == pytest.approx(1 / (1 + np.exp(-one.scores_M[row])))
        with Image.open(finished / "pictures" / entry["image"]) as image:
            assert image.size == (256, 256) and image.mode == "L"
        with Image.open(finished / "pictures" / entry["heat"]) as heat:
            assert heat.size == (256, 256)
            colours.append(np.ptp(np.asarray(heat.convert("RGB")), axis=2).max())
    assert max(colours) == 0  # 32 px make a map of one position: nothing is above its own average


def cases(
    logits: list[list[float]], targets: list[list[int]], num: int, mask: Any = None
) -> list[tuple[str, int, int]]:
    from distcxr.engine.pictures import worst_cases

    logits_NC, targets_NC = np.array(logits, dtype=np.float32), np.array(targets, dtype=np.uint8)
    mask_NC = np.ones_like(targets_NC) if mask is None else np.array(mask, dtype=np.uint8)
    found = worst_cases(logits_NC, targets_NC, mask_NC, range(logits_NC.shape[1]), num)
    return [(case.kind[6:], case.position, case.column) for case in found]


def test_findings_take_turns_in_the_worst_cases() -> None:
    # The second finding's logits are lower everywhere, as a rare one's are.
    logits = [[9, -4], [8, -9], [7, -8], [-7, -6], [-8, -7], [-9, -9.5]]
    targets = [[0, 0], [0, 0], [0, 1], [1, 0], [1, 0], [1, 1]]
    found = cases(logits, targets, 3)
    assert cases(logits, targets, 4)[7] == ("negative", 2, 1)
    # Both findings' worst is 0: the one that is more wrong in its own terms has it, the other its next.
    assert found[:3] == [("positive", 0, 1), ("positive", 1, 0), ("positive", 2, 0)]
    assert found[3:] == [("negative", 5, 1), ("negative", 4, 0), ("negative", 3, 0)]
    assert cases(logits, targets, 0) == []


def test_worst_cases_leave_out_unknown_labels() -> None:
    logits, targets = [[5.0], [4.0], [-5.0], [-4.0]], [[0], [0], [1], [1]]
    assert cases(logits, targets, 1, mask=[[0], [1], [0], [1]]) == [("positive", 1, 0), ("negative", 3, 0)]


def test_localisation_where_there_are_boxes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = tiny.phantom(tmp_path)
    run = tiny.build(tmp_path, f"output={tmp_path / 'run'}", "train.max_steps=1", "eval.splits=[test]")
    row = run.setup.splits.test[np.flatnonzero(run.setup.index.targets_NC[run.setup.splits.test, 4])[0]]
    assert run.setup.index.findings[4] == "Mass"
    header = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
    (data / "BBox_List_2017.csv").write_text(f"{header}{run.setup.index.file_name(row)},Mass,100,200,300,400,,,\n")
    fit(run)
    found = read(tmp_path / "run" / "localisation_test.json")
    assert found["num_images"] == 1 and found["findings"]["Mass"]["num"] == 1
    assert found["findings"]["Mass"]["box_share"] == pytest.approx(300 * 400 / 1024**2, rel=0.1)
    assert not (tmp_path / "run" / "metrics_val.json").exists()  # scored for its thresholds alone
    assert read(tmp_path / "run" / "metrics_test.json")["operating_points_from"] == "val"

    (data / "BBox_List_2017.csv").write_text("Image Index\n00000001_000.png\n")
    finish(run)
    assert "not compared with boxes" in caplog.text and "line 1: columns" in caplog.text
    assert not (tmp_path / "run" / "localisation_test.json").exists()  # of other weights
    run.setup.close()


def test_what_only_illustrates_cannot_lose_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr("distcxr.engine.final_scores.write_report", broken)
    monkeypatch.setattr(final_scores, "write_pictures", broken)
    monkeypatch.setattr(final_scores, "write_localisation", broken)
    tiny.phantom(tmp_path)
    tiny.train(tmp_path, f"output={tmp_path / 'run'}", "train.max_steps=1")
    assert caplog.text.count("no ink") == 3 and "distcxr report" in caplog.text
    assert read(tmp_path / "run" / "metrics_test.json")["split"] == "test"


def test_without_pictures_or_a_readable_validation(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    run = tiny.build(tmp_path, f"output={tmp_path / 'run'}", "train.max_steps=1", "eval.pictures=0")
    for path in run.setup.index.files(run.setup.splits.val):
        Path(path).write_bytes(b"")
    fit(run)
    run.setup.close()
    metrics = read(tmp_path / "run" / "metrics_test.json")
    assert metrics["operating_points_from"] is None and metrics["findings"]["Mass"]["operating_points"] == {}
    assert not (tmp_path / "run" / "pictures").exists() and not (tmp_path / "run" / "operating.json").exists()


class Exact(torch.nn.Module):
    """Logits from whole numbers alone, so they are the same bits in any batch."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = torch.nn.Linear(1, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        total = ((images * 0.5 + 0.5) * 255).round().long().sum((1, 2, 3))
        primes = torch.tensor([2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43])
        return ((total[:, None] * primes) % 997).float() / 100 - 5


@tiny.worlds(1, 2, 3, 4)
def test_files_are_the_same_bytes_on_any_world(tmp_path: Path, world_size: int) -> None:
    """Three test images: with four ranks, some have none."""
    if is_main := tiny.on_main(world_size):
        data = tiny.phantom(tmp_path)
        names = (data / "test_list.txt").read_text().split()
        (data / "test.txt").write_text("\n".join(names[:3]))
    if world_size > 1:
        torch.distributed.barrier()
    run = tiny.build(
        tmp_path, f"output={tmp_path / 'run'}", "data.split=lists", "train.global_batch_size=12", "augment={flip: 0.5}",
        "augment.normalize=half", "data.lists={train: train_val_list.txt, test: test.txt}", "eval.pictures=0",
    )  # fmt: skip
    run.setup.__dict__["module"] = Exact(len(run.setup.index.findings))
    weights = Weights(1, None)
    scores = score_splits(run.setup, run.folder, weights, ["val", "test"])
    assert len(scores["test"].rows) == 3
    if is_main:
        alone = tmp_path / "alone"
        alone.mkdir()
        operating = None
        for split in ("val", "test"):
            rows, logits = scores[split].rows, []
            for row in rows.tolist():  # one by one, without any world
                pixels = torch.from_numpy(_decoded(run, row))
                logits.append(run.setup.module((pixels[None, None] / 255 - 0.5) / 0.5))
            index, again_NC = run.setup.index, torch.cat(logits).numpy()
            labels = (index.targets_NC[rows], index.mask_NC[rows], index.patient_id[rows])
            scored = Scored.of(index.findings, again_NC, *labels)
            again = Scores(rows, again_NC, scores[split].loss, scores[split].report, scored, None)
            assert np.array_equal(again.logits_NC, scores[split].logits_NC)
            operating = operating_of(run.setup, again) if split == "val" else operating
            made = trained_with(run.setup.recipe)
            write_scores(run.setup, alone, split, again, weights, operating, trained_with=made)
            for file in (f"metrics_{split}.json", f"predictions_{split}.csv"):
                assert (alone / file).read_bytes() == (run.folder / file).read_bytes()


def _decoded(run: tiny.Run, row: int) -> Any:
    from distcxr.data.pixels.decode import decode_grey
    from distcxr.data.pixels.resize import resize_grey

    return resize_grey(decode_grey(Path(run.setup.index.files([row])[0]).read_bytes()), 32)


def test_pictures_of_other_weights_go(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    run = tiny.build(tmp_path, f"output={tmp_path / 'run'}", "eval.pictures=3")
    scores = evaluate(run.setup, "val")
    (run.folder / "pictures").mkdir()
    (run.folder / "pictures" / "val_false_positive_09.png").touch()
    write_pictures(run.setup, run.folder, "val", scores)
    names = {path.name for path in (run.folder / "pictures").iterdir()}
    assert "val_false_positive_09.png" not in names and "val_false_positive_03_heat.png" in names
    run.setup.close()


def test_a_run_ends_with_one_screen(finished: Path) -> None:
    """One table, warnings, where the page is; rates at thresholds, calibration and localisation are in files."""
    log, _, page = (finished / "log.txt").read_text().partition("report: ")
    assert page.startswith(f"{finished / 'report.html'}\n")
    assert log.count("(patients)") == 1, "one table, though two splits were scored"
    _, *lines = log.split("test split, weights of step")[1].splitlines()
    titles, lines = lines[:2], lines[2:]
    assert set(" ".join(titles).split()) == {
        "positives", "average", "test", "(patients)", "AUROC", "95%", "interval", "precision"
    }  # fmt: skip
    metrics = read(finished / "metrics_test.json")
    num = len(metrics["findings"])
    assert max(map(len, (*titles, *lines[: num + 1]))) <= 71
    for line, (name, entry) in zip(lines[:num], metrics["findings"].items(), strict=True):
        area = "-" if entry["auroc"] is None else f"{entry['auroc']:.4f}"
        counts = [f"{entry['num_positive']}", f"({entry['num_positive_patients']})"]
        assert line.split()[:4] == [name, *counts, area]
    assert lines[num].startswith(f"macro of {len(metrics['macro']['findings'])} ")
    assert lines[num + 1].startswith("val split: macro of ")
    assert [line.partition("warning: ")[2] for line in lines[num + 2 :]] == [*metrics["warnings"], ""]
    points = [entry["operating_points"] for entry in metrics["findings"].values()]
    assert all({"youden", "probability_50"} < set(point) for point in points)


def test_the_curves_are_drawn(finished: Path) -> None:
    assert "Loss by epoch" in (finished / "curves.svg").read_text()


def test_scores_say_what_the_weights_were_trained_with() -> None:
    assert trained_with(Recipe())["loss"]["name"] == "bce" and "stages" not in trained_with(Recipe())
    data = {"sampling": {"cap_per_label": 100}}
    stages = [{"epochs": 1}, {"epochs": 1, "loss": {"name": "focal"}, "sampling": {"balance": "sqrt"}}]
    found = trained_with(Recipe.model_validate({"data": data, "train": {"stages": stages}}))["stages"]
    assert [part["loss"]["name"] for part in found] == ["bce", "focal"]
    assert ["gamma" in part["loss"] for part in found] == [False, True]
    assert [part["sampling"]["balance"] for part in found] == ["none", "sqrt"]
    assert [part["sampling"]["cap_per_label"] for part in found] == [100, 100]
