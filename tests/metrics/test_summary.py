"""The summary's numbers, scalars and table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from cohort import scored
from numpy.typing import NDArray

from distcxr.metrics.summary import Summary, UnreadableFile, summarise

FINDINGS = ["Hernia", "Mass", "Edema", "No Finding"]
Arrays = tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.uint8]]


def arrays(num: int = 300, num_findings: int = 4) -> Arrays:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, size=(num, num_findings)).astype(np.uint8)
    logits = (rng.normal(size=targets.shape) + targets).astype(np.float32).round(1)
    mask = (rng.random(targets.shape) < 0.9).astype(np.uint8)
    return logits, targets, mask


def summary(findings: Sequence[str], *parts: NDArray[Any], **more: Any) -> Summary:
    return summarise("val", scored(*parts, np.arange(len(parts[0])), findings), **more)


def with_hernia_absent() -> Summary:
    logits, targets, mask = arrays()
    targets[:, 0] = 0
    mask[:, 0] = 1
    return summary(FINDINGS, logits, targets, mask, unreadable=[("a.png", "truncated")])


def test_scores_equal_sklearn_over_known_labels() -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    logits, targets, mask = arrays()
    report = summary(FINDINGS, logits, targets, mask)
    areas = []
    for column, name in enumerate(FINDINGS):
        keep = mask[:, column] == 1
        truth, scores = targets[keep, column], logits[keep, column]
        areas.append(roc_auc_score(truth, scores))
        score = report.findings[name]
        assert score.auroc == pytest.approx(areas[-1], rel=0, abs=1e-12)
        assert score.auprc == pytest.approx(average_precision_score(truth, scores), rel=0, abs=1e-12)
        assert (score.num_positive, score.num, score.reason) == (int(truth.sum()), int(keep.sum()), None)
    assert report.macro_auroc == pytest.approx(np.mean(areas[:3]), rel=0, abs=1e-12)
    assert report.macro_findings == ("Hernia", "Mass", "Edema")
    assert report.num_samples == 300


def test_macro_is_over_the_named_findings() -> None:
    report = summary(FINDINGS, *arrays(), macro_findings=["No Finding", "Mass"])
    assert report.macro_findings == ("No Finding", "Mass")
    areas = [report.findings[name].auroc for name in ("No Finding", "Mass")]
    assert report.macro_auroc == pytest.approx(sum(area for area in areas if area is not None) / 2)


def test_finding_with_an_absent_class_has_a_reason_and_is_not_averaged() -> None:
    report = with_hernia_absent()
    hernia = report.findings["Hernia"]
    assert (hernia.auroc, hernia.auprc, hernia.num_positive, hernia.num) == (None, None, 0, 300)
    assert hernia.reason == "no positives among 300 known labels"
    assert report.macro_findings == ("Mass", "Edema")
    assert report.macro_auroc is not None and report.macro_auroc > 0.5


def test_every_reason() -> None:
    logits, targets, mask = arrays()
    mask[:, 0] = 0
    targets[:, 1] = 1
    logits[5, 3], mask[5, 3] = np.nan, 1
    num_known = mask.sum(axis=0)
    report = summary(FINDINGS, logits, targets, mask)
    reasons = [report.findings[name].reason for name in FINDINGS]
    assert reasons == [
        "no known labels",
        f"no negatives among {num_known[1]} known labels",
        None,
        f"1 of {num_known[3]} logits are not finite",
    ]
    assert report.macro_findings == ("Edema",)


def test_logits_that_are_not_finite_leave_the_average_undefined() -> None:
    """An average over the rest could pass for the best epoch."""
    logits, targets, mask = arrays()
    logits[0, 1], mask[0, 1] = np.inf, 1
    report = summary(FINDINGS, logits, targets, mask)
    assert (report.macro_auroc, report.macro_findings) == (None, ())
    assert report.macro_reason == "logits are not finite: Mass"
    assert report.findings["Edema"].auroc is not None


def test_logits_without_a_known_label_may_be_anything() -> None:
    logits, targets, mask = arrays()
    expected = summary(FINDINGS, logits, targets, mask)
    logits[mask == 0] = np.nan
    assert summary(FINDINGS, logits, targets, mask) == expected


@pytest.mark.parametrize(
    ("findings", "reason"),
    [(["Mass"], "undefined for all 1 named findings"), (["No Finding"], "no findings are named")],
)
def test_macro_without_anything_to_average(findings: list[str], reason: str) -> None:
    report = summary(findings, np.zeros((3, 1), np.float32), np.zeros((3, 1), np.uint8), np.ones((3, 1), np.uint8))
    assert report.macro_auroc is None and report.macro_findings == ()
    assert report.macro_reason is not None and report.macro_reason.startswith(reason)


def test_report_of_no_samples() -> None:
    report = summary(["Mass"], np.zeros((0, 1), np.float32), np.zeros((0, 1), np.uint8), np.ones((0, 1), np.uint8))
    assert report.findings["Mass"].reason == "no known labels"
    assert report.num_samples == 0


@pytest.mark.parametrize(
    ("macro", "message"),
    [(["Mass", "Cardiomegaly"], r"\['Cardiomegaly'\] are not scored"), (["Mass", "Mass"], "repeat a name")],
)
def test_averages_of_names_that_do_not_fit_are_an_error(macro: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        summary(FINDINGS, *arrays(), macro_findings=macro)


def test_scalars_leave_out_what_is_undefined() -> None:
    report = with_hernia_absent()
    scalars = report.scalars()
    names = ("Mass", "Edema", "No Finding")
    expected = {f"val/{metric}/{name}" for metric in ("auroc", "auprc") for name in names}
    assert set(scalars) == expected | {"val/auroc/macro"}
    assert scalars["val/auroc/Mass"] == report.findings["Mass"].auroc
    assert scalars["val/auprc/Mass"] == report.findings["Mass"].auprc
    assert scalars["val/auroc/macro"] == report.macro_auroc


def test_the_table_names_the_average_and_the_reasons() -> None:
    report = with_hernia_absent()
    titles, hernia, mass, *_, macro = report.table_rows()
    assert titles == ("val", "positives", "auroc", "auprc", "")
    assert hernia == ("Hernia", "0/300", "-", "-", "no positives among 300 known labels")
    score = report.findings["Mass"]
    assert mass == ("Mass", f"{score.num_positive}/{score.num}", f"{score.auroc:.4f}", f"{score.auprc:.4f}", "")
    assert macro == ("macro of 2", "", f"{report.macro_auroc:.4f}", "", "")


def test_unreadable_file_is_a_pair() -> None:
    assert UnreadableFile("a.png", "truncated") == ("a.png", "truncated")
