"""Pages of folders that lack files, hold damaged ones, or were written by someone who means harm."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cohort
import pytest
from pages import edit, made
from run_folders import simulate

from distcxr.data.labels import NIH14
from distcxr.metrics.summary import summarise
from distcxr.report.page import write_report

HOSTILE = "</td></table><script>alert(1)</script><img src=x onerror=alert(2)>\"' | **bold** `code` [link](http://evil.example)"


def test_what_users_write_stays_text(folder: Path) -> None:
    def spoil(metrics: Any) -> None:
        metrics["findings"] = {HOSTILE if name == "Mass" else name: one for name, one in metrics["findings"].items()}
        metrics["macro"]["findings"] = [HOSTILE if name == "Mass" else name for name in metrics["macro"]["findings"]]
        metrics["warnings"] = [HOSTILE]
        metrics["unreadable"] = [{"file": HOSTILE, "reason": HOSTILE}]
        metrics["subgroups"][0]["group"] = metrics["subgroups"][0]["attribute"] = HOSTILE
        metrics["findings"]["Hernia"]["reason"] = HOSTILE

    edit(folder / "metrics_test.json", spoil)
    edit(folder / "pictures" / "pictures.json", lambda entries: entries[0].update(file=HOSTILE, labels=[HOSTILE]))
    edit(
        folder / "environment.json",
        lambda held: held.update(command=[HOSTILE], commit=HOSTILE, hashes={HOSTILE: HOSTILE}),
    )
    text = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(
        text.replace("name: densenet121", f"name: {json.dumps(HOSTILE)}") + "# ``` </pre>\n"
    )
    predictions = (folder / "predictions_test.csv").read_text().split("\n", 1)
    quoted = '"' + HOSTILE.replace('"', '""') + '"'
    header = predictions[0].replace("Mass_true", quoted[:-1] + '_true"').replace("logit:Mass", '"logit:' + quoted[1:])
    header = header.replace(",Mass,", f",{quoted},")
    (folder / "predictions_test.csv").write_text(f"{header}\n{predictions[1]}")
    moved = folder.rename(folder.with_name("<script>alert(3)<script>"))

    page, markdown, content = made(moved)
    assert HOSTILE in content["curves"]["test"]
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 1 and not [
        held for _, held in page.elements if "onerror" in held or held.get("src") == "x"
    ]
    assert tags.count("table") == write_report(moved).read_text().count("</table>")
    assert page.words.count("<script>alert(1)</script>") > 10
    fenced = markdown.split("\n````yaml\n")
    assert len(fenced) == 2, "the recipe holds a fence of three, so its own must be longer"
    outside = re.sub(r"\\.", "", fenced[0])
    assert "<script" not in outside and "**bold**" not in outside and "](http" not in outside
    tables = re.findall(r"(?:^\|.*\n)+", fenced[0], re.M)
    for table in tables:
        widths = {re.sub(r"\\.", "", line).count("|") for line in table.splitlines()}
        assert len(widths) == 1, table


@pytest.mark.parametrize(
    "names",
    [
        ("metrics_test.json", "predictions_test.csv"), ("predictions_test.csv",), ("recipe.yaml",),
        ("environment.json",),
        ("steps.csv", "history.csv"), ("history.csv",), ("pictures/pictures.json",), ("localisation_test.json",),
        ("pictures/1_heat.png",), ("metrics_val.json",), ("metrics_test.json", "metrics_val.json"),
        ("recipe.yaml", "environment.json", "steps.csv", "history.csv", "predictions_test.csv", "predictions_val.csv"),
    ],
    ids=lambda names: "+".join(names),
)  # fmt: skip
def test_a_folder_that_lacks_files_has_a_page_that_says_so(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (folder / name).unlink()
    page, markdown, content = made(folder)
    optional = ("pictures/pictures.json", "localisation_test.json")
    expected = {name for name in names if name not in optional}
    if "metrics_test.json" in names:
        expected -= {"predictions_test.csv"}
    assert set(content["missing"]) == expected
    for name in expected:
        assert name in page.words and name.replace("_", "\\_") in markdown
    for words in ("nan", "None", "undefined method"):
        assert not re.search(rf"\b{words}\b", re.sub(r"(?s)## Origin.*", "", markdown)), words
    assert content["split"] == (
        "test" if "metrics_test.json" not in names else None if "metrics_val.json" in names else "val"
    )


def test_a_run_scored_without_intervals_has_a_page(folder: Path) -> None:
    held = simulate(300, 60, 1)
    scored = cohort.scored(held["logits"], held["targets"], held["mask"], held["patient_id"], NIH14)
    report = summarise("test", scored)
    content = {
        "split": "test", "num_samples": 300, "step": 60, "loss": 0.16, "unreadable": [],
        "macro": {"auroc": report.macro_auroc, "findings": list(report.macro_findings), "reason": None},
        "findings": {name: asdict(score) for name, score in report.findings.items()},
    }  # fmt: skip
    (folder / "metrics_test.json").write_text(json.dumps(content))
    page, _, _ = made(folder)
    assert f"Macro AUROC {report.macro_auroc:.3f}, the average of" in page.words
    assert "without intervals" in page.words and "Calibration" not in page.words


def test_what_is_undefined_is_a_dash_with_its_reason(folder: Path) -> None:
    def spoil(metrics: Any) -> None:
        metrics["macro"] |= {key: None for key in metrics["macro"] if key.startswith("au")}
        metrics["macro"] |= {"findings": [], "reason": "undefined for all 14 named findings"}
        for scores in metrics["findings"].values():
            scores |= {key: None for key in scores if key.startswith(("au", "brier", "ece", "temperature"))}
            scores |= {"reason": "no positives among 300 known labels", "reliability": None, "calibrated": None}
            for point in scores["operating_points"].values():
                point |= {key: None for key in point} | {"reason": "no threshold: no positives"}

    edit(folder / "metrics_test.json", spoil)
    page, markdown, _ = made(folder)
    assert "The macro AUROC is undefined (undefined for all 14 named findings), on 300 images" in page.words
    begin = next(number for number, row in enumerate(page.rows) if "AUROC" in row)  # below prevalence
    row = next(row for row in page.rows[begin:] if row[0] == "Mass")
    assert row[4] == "–" and row[5][0] == "–"
    assert f"{row[5][1:]}\xa0no positives among 300 known labels" in page.words
    assert not re.search(r"\bnan\b", markdown, re.IGNORECASE) and "None" not in markdown.split("## Origin")[0]


BROKEN = {
    "not-json": ("metrics_test.json", "{"),
    "nan": ("metrics_test.json", '{"macro": {"auroc": NaN}, "findings": {}, "num_samples": 3}'),
    "a-list": ("metrics_test.json", "[]"),
    "no-findings": ("metrics_val.json", '{"macro": {"auroc": 0.5}, "num_samples": 3}'),
    "words-for-numbers": ("metrics_test.json", '{"macro": {"auroc": "high"}, "findings": {}, "num_samples": 3}'),
    "no-count": ("metrics_test.json", '{"macro": {"auroc": 0.5}, "findings": {}}'),
    "subgroup": (
        "metrics_test.json", '{"macro": {"auroc": 0.5}, "findings": {}, "num_samples": 3, "subgroups": [{"group": 1}]}',
    ),
    "environment": ("environment.json", '{"hashes": 3}'),
    "recipe": ("recipe.yaml", "data: [1"),
    "recipe-section": ("recipe.yaml", "model: 3"),
    "recipe-infinite": ("recipe.yaml", "optim: {lr: .inf}"),
    "recipe-deep": ("recipe.yaml", "[" * 100_000),
    "recipe-date": ("recipe.yaml", "data: 2001-13-45"),
    "deep": ("metrics_test.json", "[" * 100_000),
    "recipe-bytes": ("recipe.yaml", b"\xff\xfe\x00"),
    "ragged": ("steps.csv", "step,loss\n1,0.5\n2\n"),
    "words": ("history.csv", "step,val_loss\n1,good\n"),
    "predictions": ("predictions_test.csv", "file,patient\n"),
    "pictures": ("pictures/pictures.json", '[{"split": "test"}]'),
    "a-way-out": (
        "pictures/pictures.json",
        '[{"split": "test", "file": "a", "finding": "Mass", "kind": "false_positive", "image": "../../secret.png"}]',
    ),
    "picture": ("pictures/0.png", b"no picture"),
    "localisation": ("localisation_test.json", '{"findings": {"Mass": 3}}'),
    "localisation: text": ("localisation_test.json", '{"tolerance_px": "8", "findings": {}}'),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_damaged_file_is_an_error_that_names_it(folder: Path, case: str) -> None:
    name, text = BROKEN[case]
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=re.escape(Path(name).name)):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_findings_may_be_called_like_figures(folder: Path) -> None:
    def rename(held: Any) -> None:
        held["findings"] = {"num" if name == "Mass" else name: one for name, one in held["findings"].items()}

    edit(folder / "metrics_test.json", rename)
    write_report(folder)
