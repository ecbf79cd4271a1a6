"""The page: what it prints is what the JSON holds, whatever the folder holds."""

from __future__ import annotations

import json
import re
import shutil
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pages import Parsed, edit, made, resolve
from run_folders import ROOT, write_run

from distcxr.data.labels import NIH14
from distcxr.data.sources.nih import KNOWN_HASHES
from distcxr.recipe.loss import Loss
from distcxr.recipe.selection import Sampling
from distcxr.report.checklists import _CLAIM, _TRIPOD
from distcxr.report.leaderboard import LABELS as OFFICIAL_LABELS
from distcxr.report.leaderboard import TEST_IMAGES as OFFICIAL_TEST_IMAGES
from distcxr.report.leaderboard import TEST_LIST as OFFICIAL_TEST_LIST
from distcxr.report.page import write_report


def test_the_page_says_what_the_weights_were_trained_with(folder: Path) -> None:
    focal = {"loss": Loss(name="focal").in_use(), "sampling": Sampling(cap_per_label=10_000).model_dump()}
    bce = {"loss": Loss(weights="balanced", label_smoothing=0.1).in_use(), "sampling": Sampling().model_dump()}
    parts = [{"name": "bce", "weights": "balanced", "share": 0.5}, {"name": "auc_margin"}]
    combined = {"loss": Loss.model_validate({"name": "combined", "parts": parts}).in_use()}
    for trained_with, shown in (
        (combined, "0.5 x bce (weights balanced) + 1.0 x auc_margin (margin 1.0)"),
        (focal, "focal (gamma 2.0), at most 10,000 images per label"),
        ({"stages": [focal, focal]}, "focal (gamma 2.0), at most 10,000 images per label"),
        (
            {"stages": [focal, bce]}, "stage 1: focal (gamma 2.0), at most 10,000 images per label; "
            "stage 2: bce (weights balanced, label smoothing 0.1)",
        ),
    ):  # fmt: skip
        edit(folder / "metrics_test.json", lambda held, value=trained_with: held.update(trained_with=value))  # type: ignore[misc]
        page, _, _ = made(folder)
        assert ["loss and sampling", shown] in page.rows
    edit(folder / "metrics_test.json", lambda held: held.update(trained_with={"loss": 3}, accuracy=0.75))
    with pytest.raises(ValueError, match=r"metrics_test\.json is not as distcxr writes it"):
        write_report(folder)


def test_the_accuracy_of_classes_is_among_the_first_figures(folder: Path) -> None:
    edit(folder / "metrics_test.json", lambda held: held.update(accuracy=0.75))
    page, _, _ = made(folder)
    assert ("/metrics/test/accuracy", "0.750") in page.figures


def test_updates_left_out_and_spikes_are_warned_of(folder: Path) -> None:
    page, _, content = made(folder)
    assert not any("left out" in warning or "spikes" in warning for warning in content["warnings"])
    lines = (folder / "steps.csv").read_text().splitlines()
    for step, loss in ((50, "3.5"), (52, "nan"), (54, "inf")):
        cells = lines[step].split(",")
        lines[step] = ",".join([*cells[:2], loss, *cells[3:]])
    (folder / "steps.csv").write_text("\n".join(lines) + "\n")
    page, _, content = made(folder)
    assert "2 updates were left out: no finite loss (train.on_nan)." in content["warnings"]
    (spikes,) = [warning for warning in content["warnings"] if "spikes" in warning]
    assert spikes.startswith("The training loss spikes at 1 step; the highest, at step 50, is 3.5, ")
    assert spikes in page.words and "rings: spikes" in page.words


def test_every_printed_figure_is_the_jsons(finished: Path) -> None:
    page, _, content = made(finished)
    assert len(page.figures) > 1000
    for pointer, shown in page.figures:
        value, digits = resolve(content, pointer), shown.replace(",", "")
        half = 0.5 * 10 ** -len(digits.partition(".")[2].partition("e")[0])
        if "e" in digits:
            half *= 10 ** int(digits.partition("e")[2])
        assert abs(float(digits) - value) <= half * 1.000001, f"{pointer}: {shown} is printed for {value}"


def test_no_figure_is_printed_that_is_not_from_the_json(finished: Path) -> None:
    """In tables of results every cell with a decimal point is a figure with its place in the JSON."""
    html = write_report(finished).read_text()
    for part in ("patients", "findings", "calibration", "thresholds", "subgroups", "localisation"):
        section = html.split(f'<section id="{part}">')[1].split("</section>")[0]
        cells = re.findall(r"<td[^>]*>(.*?)</td>", section)
        bare = [
            cell for cell in cells if re.search(r"\d\.\d", re.sub(r"<span data-at.*?</span>|<svg.*?</svg>", "", cell))
        ]
        assert cells and not bare, bare


def test_the_page_opens_with_labels_flow_and_who_is_in_each_split(folder: Path) -> None:
    edit(folder / "metrics_test.json", lambda held: held.update(unreadable=[{"file": "a.png", "reason": "cut"}]))
    edit(
        folder / "environment.json",
        lambda held: held["cohort"]["splits"]["val"]["findings"]["Mass"].update(num_known=8_000),
    )
    page, markdown, content = made(folder)
    assert "mined from the radiologists' reports with natural language processing" in content["reference_standard"]
    assert markdown.index("Reference standard") < markdown.index("## Findings")
    assert ["in the label file", "112,120", "30,805", ""] in page.rows
    assert ["with a file", "112,119", "30,805", "without a file: 1"] in page.rows
    num_patients = str(content["metrics"]["test"]["num_patients"])
    assert ["scored, test", "300", num_patients, "can't be read: 1"] in page.rows
    assert ["age, quartiles", *["34 to 59"] * 3] in page.rows
    assert ["women and girls", "12,60450.0 %", "1,40050.0 %", "1,39850.0 %"] in page.rows
    head = next(row for row in page.rows if "train, patients" in row)
    assert head[1:] == ["train, images", "train, patients", "val, images", "val, patients", "val, labels known",
                        "test, images", "test, patients"]  # fmt: skip
    assert content["percent"]["val"]["findings"]["Mass"]["images"] == pytest.approx(100 * 589 / 8_000, abs=0.1)


def test_a_folder_from_before_cohorts_makes_a_page(folder: Path) -> None:
    edit(folder / "environment.json", lambda held: held.pop("cohort"))
    page, _, _ = made(folder)
    assert "began before its splits' demographics" in page.words and ["split train", "77,871", "25,208"] in page.rows
    (folder / "environment.json").write_text('{"cohort": {"splits": 3}}')
    with pytest.raises(ValueError, match=r"environment\.json is not as distcxr writes it"):
        write_report(folder)


def test_methods_and_checklists(folder: Path) -> None:
    page, _, content = made(folder)
    rows = {row[0]: row[1] for row in page.rows if len(row) == 2}
    assert rows["interval: AUROC"].startswith("score interval (Wilson's form) with Obuchowski's variance")
    assert rows["interval: Brier score"] == "percentile of 40 patient resamples" and "intervals" not in rows
    assert rows["heat map"] == "Grad-CAM less its mean" and content["methods"]["heat map"] == rows["heat map"]
    assert "hold its weights fixed" in page.words
    listed = {name: [row["item"] for row in rows] for name, rows in content["checklists"].items()}
    assert [len(rows) for rows in listed.values()] == [52, 44] and all(
        len(set(rows)) == len(rows) for rows in listed.values()
    )
    assert ["20b", "characteristics of the participants, by set of data", "Patients and labels"] in page.rows
    assert ["44", "funding", "not covered: yours to write"] in page.rows
    assert ["39", "failures", "Worst errors"] in page.rows
    anchors = {held["id"] for tag, held in page.elements if tag == "section"}
    links = [held["href"] for tag, held in page.elements if tag == "a"]
    assert {f"#{name}" for name in anchors} == set(links)
    named = {name for items in (_TRIPOD, _CLAIM) for _, _, names in items for name in names}
    assert named <= anchors  # a name that no section has would read "yours to write"
    assert sum(len(row["sections"]) for rows in content["checklists"].values() for row in rows) > 50
    shutil.rmtree(folder / "pictures")

    def without_methods(held: Any) -> None:  # as of runs scored before they were named
        held["intervals"] = {key: value for key, value in held["intervals"].items() if not key.endswith("_method")}

    edit(folder / "metrics_test.json", without_methods)
    page, _, _ = made(folder)
    assert ["39", "failures", "not covered: yours to write"] in page.rows
    assert ["intervals", "95 %, percentile of 40 patient resamples (bootstrap, seed 0)"] in page.rows


def test_groups_show_their_counts_and_no_figure_of_few_patients(folder: Path) -> None:
    page, _, content = made(folder)
    groups = content["metrics"]["test"]["subgroups"]
    (female,) = [one for one in groups if one["group"] == "F"]
    found = {name: one for name, one in female["findings"].items() if one["num_positive_patients"] >= 1}
    assert found and any(one["auroc_low"] is None for one in found.values())
    for name, one in found.items():
        counts = f"{one['num']:,}/{one['num_patients']:,}/{one['num_positive_patients']:,}"
        cells = [cell for row in page.rows if row[0] == name.replace("_", " ") for cell in row if counts in cell]
        shown = [cell for cell in cells if not cell.startswith("–")]
        assert len(cells) >= 4, (name, counts)  # AUROC, recall, specificity, calibration
        if one["auroc_low"] is None:
            assert len(shown) < len(cells)
            few = one["num_positive_patients"]
            why = f"{few} positive patient{'s' * (few != 1)}: an interval needs 10"
            assert why in page.words and one["reason"] == why
    assert "left out where fewer than 10 patients of the group decide it" in page.words
    for title in ("Recall", "Specificity", "Frequency less mean probability"):
        assert f"{title} of every finding by sex" in page.words


def test_html_and_markdown_print_each_findings_figures(finished: Path) -> None:
    page, markdown, _ = made(finished)
    metrics = json.loads((finished / "metrics_test.json").read_text())
    assert {name for name, scores in metrics["findings"].items() if scores["auroc_low"] is not None}
    for name, scores in metrics["findings"].items():
        if scores["auroc"] is None:
            continue
        row = next(row for row in page.rows if row[0] == name.replace("_", " ") and f"{scores['auroc']:.3f}" in row)
        counts = (scores["num_positive"], scores["num_positive_patients"], scores["num"])
        expected = [*(f"{count:,}" for count in counts), f"{scores['auroc']:.3f}"]
        if scores["auroc_low"] is not None:
            expected.append(f"{scores['auroc_low']:.3f}–{scores['auroc_high']:.3f}")
        assert row[1 : 1 + len(expected)] == expected
        table = markdown.split("\n## Findings\n")[1].splitlines()
        line = next(line for line in table if line.startswith(f"| {name.replace('_', ' ')} | "))
        assert [cell.strip() for cell in line.split("|")[2 : 2 + len(expected)]] == expected
    macro = metrics["macro"]
    assert f"{macro['auroc']:.3f} (95 % interval {macro['auroc_low']:.3f} to {macro['auroc_high']:.3f})" in page.words
    assert f"Macro AUROC {macro['auroc']:.3f}" in markdown


def test_the_page_needs_nothing_else(finished: Path) -> None:
    page = write_report(finished)
    html = page.read_text()
    assert "default-src 'none'" in html and "@import" not in html and "url(" not in html
    for tag, attributes in Parsed(html).elements:
        for name in ("src", "href"):
            target = attributes.get(name) or "#"
            assert target.startswith(("#", "data:image/jpeg;base64,")), f"<{tag} {name}={target}>"
    assert html.count("<img ") == 8  # 2 of each kind, with heat maps


def test_drawings_are_well_formed_and_have_numbers(finished: Path) -> None:
    drawings = re.findall(r"<svg.*?</svg>", write_report(finished).read_text())
    assert len(drawings) > 14 * 3
    for drawing in drawings:
        ET.fromstring(drawing)
        assert "nan" not in drawing and "inf" not in drawing


def test_all_sections_are_there(finished: Path) -> None:
    page, markdown, content = made(finished)
    titles = (
        "Patients and labels", "Findings", "Comparison", "Curves", "Calibration", "Decision curves", "Thresholds",
        "Subgroups", "Localisation", "Worst errors", "Training", "Data", "Methods", "Checklists", "Origin",
    )  # fmt: skip
    assert re.findall(r"^## (.*)$", markdown, re.M) == list(titles)
    for title in titles:
        assert title in page.words
    for words in ("Youden", "Pointing", "0123456789abcdef", OFFICIAL_LABELS, "NVIDIA A100", "global_batch_size: 128"):
        assert words in page.words
    assert content["throughput"]["img_per_s"] == pytest.approx(1900, abs=40)
    assert content["missing"] == []


def test_the_same_folder_gives_the_same_bytes(folder: Path) -> None:
    names = ("report.html", "report.md", "report.json")
    write_report(folder)
    first = [(folder / name).read_bytes() for name in names]
    write_report(folder)
    assert [(folder / name).read_bytes() for name in names] == first
    assert not [path for path in folder.iterdir() if path.name.endswith(".part")]


def test_the_training_split_is_counted_though_nobody_scored_it(folder: Path) -> None:
    page, _, _ = made(folder)
    assert ["split train", "77,871", "25,208", ""] in [list(row) for row in page.rows]


def test_the_hashes_of_nih_are_the_readers() -> None:
    assert KNOWN_HASHES[OFFICIAL_TEST_LIST] == "NIH test_list.txt" and KNOWN_HASHES[OFFICIAL_LABELS] == "NIH v2020"


def comparable(metrics: Any) -> None:
    metrics["num_samples"] = OFFICIAL_TEST_IMAGES
    metrics["macro"]["findings"] = list(NIH14)


def test_only_the_official_test_list_may_be_compared(folder: Path) -> None:
    edit(folder / "metrics_test.json", comparable)
    page, markdown, content = made(folder)
    assert content["compare"]["comparable"] and "may be compared with the published ones" in page.words
    assert "this run" in [row[0] for row in page.rows] and "upper bounds" in page.words
    assert "0.8015" in page.words and "0.745" in page.words  # with the digits that their authors printed
    assert "Goel 2024" in page.words and "ChestMNIST" in markdown


@pytest.mark.parametrize(
    "name, change, reason",
    [
        ("environment.json", lambda held: held["hashes"].update({"test_list.txt": "0"}), "its test list is not NIH's"),
        ("environment.json", lambda held: held["hashes"].update({"labels": "0"}), "its labels are not NIH's"),
        ("environment.json", lambda held: held.pop("hashes"), "its labels are not NIH's"),
        ("metrics_test.json", lambda held: held.update(num_samples=25_000), "25,000 images were scored"),
        ("metrics_test.json", lambda held: held["macro"]["findings"].pop(), "its average is of 13 findings"),
    ],
)  # fmt: skip
def test_any_other_may_not(folder: Path, name: str, change: Callable[[Any], None], reason: str) -> None:
    edit(folder / "metrics_test.json", comparable)
    edit(folder / name, change)
    page, _, content = made(folder)
    assert not content["compare"]["comparable"] and "may not be compared" in page.words and reason in page.words
    assert "this run" not in [row[0] for row in page.rows]


def test_validation_that_chose_everything_is_warned_of_once(folder: Path) -> None:
    page, _, _ = made(folder)
    assert page.words.count("chose both the checkpoint and the thresholds") == 1

    def forget(metrics: Any) -> None:  # of a distcxr whose scores knew nothing of their checkpoint
        metrics["warnings"] = []
        del metrics["checkpoint_from"]

    edit(folder / "metrics_test.json", forget)
    page, _, content = made(folder)
    assert page.words.count("chose both the checkpoint and the thresholds") == 1
    assert len(content["warnings"]) == 1
    recipe = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(recipe.replace("weights: best", "weights: last"))
    page, _, _ = made(folder)
    assert "chose both" not in page.words


def test_a_heat_map_without_heat_is_told(folder: Path) -> None:
    page, _, _ = made(folder)
    assert "its heat map is empty" not in page.words
    shutil.copy(folder / "pictures" / "0.png", folder / "pictures" / "0_heat.png")
    page, markdown, _ = made(folder)
    assert page.words.count("its heat map is empty") == markdown.count("its heat map is empty") == 1


def test_an_ensemble_has_its_members_beside_it(folder: Path) -> None:
    members = [{"checkpoint": f"runs/{name}/checkpoints/best", "model": name, "step": 9, "auroc": auroc}
               for name, auroc in (("densenet121", 0.81234), ("resnet50", None))]  # fmt: skip
    edit(folder / "metrics_test.json", lambda metrics: metrics.update(members=members, step=None, loss=None))
    page, markdown, _ = made(folder)
    assert "# ensemble of 2" in markdown
    rows = {row[0]: row[1:] for row in page.rows}
    assert rows["densenet121, runs/densenet121/checkpoints/best"] == ["9", "0.812"]
    assert rows["resnet50, runs/resnet50/checkpoints/best"] == ["9", "–"]
    for words in (page.words, markdown):
        assert words.count("Heat maps are those of the ensemble's first member alone, densenet121") == 2


def test_averages_of_groups_say_what_they_average(folder: Path) -> None:
    """A group that lacks a finding has an average that does not compare with the others'."""
    edit(
        folder / "metrics_test.json",
        lambda metrics: [group["macro"].update(findings=["Mass", "Hernia"]) for group in metrics["subgroups"]],
    )
    assert "averages of different findings do not compare" not in made(folder)[0].words
    edit(folder / "metrics_test.json", lambda metrics: metrics["subgroups"][0]["macro"].update(findings=["Mass"]))
    page, _, content = made(folder)
    head = next(row for row in page.rows if "average of" in row)
    shown = page.rows[page.rows.index(head) + 1 :][: len(content["metrics"]["test"]["subgroups"])]
    place = head.index("average of")
    assert [row[place][:16] for row in shown] == ["1 of 14 findings", *["2 of 14 findings"] * (len(shown) - 1)]
    assert len({row[place][16:] for row in shown}) >= 2 and "not in the average: Atelectasis (" in page.words
    few = content["metrics"]["test"]["subgroups"][0]["findings"]["Mass"]["num_positive_patients"]
    assert shown[0][head.index("fewest positive patients")] == f"{few}Mass"
    assert "averages of different findings do not compare" in page.words


def test_weights_of_different_steps_are_told(folder: Path) -> None:
    edit(folder / "metrics_val.json", lambda metrics: metrics.update(step=30))
    page, _, _ = made(folder)
    assert "test at step 60, val at step 30" in page.words


def test_a_report_that_cant_be_written_leaves_nothing_half_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: object, **__: object) -> int:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    before = sorted(folder.rglob("*"))
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ValueError, match=r"can't be written to .*: No space left"):
        write_report(folder)
    assert sorted(folder.rglob("*")) == before


def test_templates_are_installed() -> None:
    assert "distcxr.report = templates/*" in (ROOT / "setup.cfg").read_text()
    assert {path.name for path in (ROOT / "distcxr" / "report" / "templates").iterdir()} == {
        "card.md", "page.html", "page.css",
    }  # fmt: skip


def test_the_official_test_list_makes_a_small_page_soon(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", OFFICIAL_TEST_IMAGES, patients=2797, replicates=20, pictures=8, steps=6000)
    started_s = time.process_time()
    page = write_report(folder)
    assert time.process_time() - started_s < 10
    assert page.stat().st_size < 3e6
