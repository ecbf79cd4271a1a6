"""The full report: scikit-learn's figures in every key, thresholds that do not leak, nulls with reasons, same bytes."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import numpy as np
import pytest
from cohort import Cohort, cohort, scored
from numpy.typing import NDArray

from distcxr.metrics.calibration import probabilities
from distcxr.metrics.caveats import caveats
from distcxr.metrics.decision import THRESHOLDS
from distcxr.metrics.evaluation import FullReport, full_report
from distcxr.metrics.figures_json import full_json
from distcxr.metrics.operating import FROM_ITSELF, RULES, Operating, choose_operating
from distcxr.metrics.recalibration import recalibrate
from distcxr.metrics.scored import Scale

FINDINGS = ("Hernia", "Mass", "Edema", "No Finding")
FEW = 50  # replicates: enough for the plumbing


def chosen(val: Cohort, scale: Scale = "logit") -> Operating:
    return choose_operating(scored(*val, FINDINGS, scale))


def made(data: Cohort, val: Cohort | None = None, scale: Scale = "logit", **more: Any) -> FullReport:
    """A report of `data`, with what validation chose where there is a `val`."""
    if val is not None:
        more["operating"] = chosen(val, scale)
        more.setdefault("operating_from", "val")
    nameless = np.full(len(data.patient_id), "")
    unknown = {"sex": nameless, "age": np.full(len(nameless), np.nan, dtype=np.float32), "view": nameless}
    more = {"replicates": FEW, **unknown, **more}
    return full_report("test", scored(*data, FINDINGS, scale), **more)


def content_of(data: Cohort, *more: Any, **keys: Any) -> dict[str, Any]:
    return full_json(made(data, *more, **keys))


def nulls_without_reason(content: Any, path: str = "") -> list[str]:
    """Figures that are null in an entry where no key ending in `reason` is text."""
    if isinstance(content, list):
        return [
            found for number, item in enumerate(content) for found in nulls_without_reason(item, f"{path}/{number}")
        ]
    if not isinstance(content, dict):
        return []
    explained = any(key.endswith("reason") and value for key, value in content.items())
    silent = ("step", "loss", "checkpoint_from", "operating_points_from", "calibrated")
    found = [
        f"{path}/{key}"
        for key, value in content.items()
        if value is None and not key.endswith("reason") and key not in silent and not explained
    ]
    return found + [bad for key, value in content.items() for bad in nulls_without_reason(value, f"{path}/{key}")]


def test_every_figure_is_sklearns() -> None:
    from sklearn import metrics

    data, val = cohort(0), cohort(1)
    content = content_of(data, val)
    for column, name in enumerate(FINDINGS):
        keep = data.mask_NC[:, column] == 1
        truth, scores = data.targets_NC[keep, column], data.logits_NC[keep, column]
        prob = probabilities(scores)
        entry = content["findings"][name]
        close = {"rel": 0, "abs": 1e-12}
        assert entry["auroc"] == pytest.approx(metrics.roc_auc_score(truth, scores), **close)
        assert entry["auprc"] == pytest.approx(metrics.average_precision_score(truth, scores), **close)
        assert entry["brier"] == pytest.approx(metrics.brier_score_loss(truth, prob), **close)
        assert (entry["num"], entry["num_positive"]) == (keep.sum(), truth.sum())
        assert sum(entry["reliability"]["count"]) == keep.sum()
        assert set(entry["operating_points"]) == set(RULES)
        for point in entry["operating_points"].values():
            called = scores >= np.float32(point["threshold_logit"])
            tn, fp, fn, tp = metrics.confusion_matrix(truth, called, labels=[0, 1]).ravel()
            assert (point["tp"], point["fp"], point["fn"], point["tn"]) == (tp, fp, fn, tn)
            assert point["recall"] == pytest.approx(metrics.recall_score(truth, called), **close)
            assert point["precision"] == pytest.approx(metrics.precision_score(truth, called), **close)
            assert point["specificity"] == pytest.approx(metrics.recall_score(1 - truth, ~called), **close)
            assert point["npv"] == pytest.approx(metrics.precision_score(1 - truth, ~called), **close)
            assert point["accuracy"] == pytest.approx(metrics.accuracy_score(truth, called), **close)
            assert point["f1"] == pytest.approx(metrics.f1_score(truth, called), **close)
            assert point["threshold_prob"] == pytest.approx(1 / (1 + math.exp(-point["threshold_logit"])))
    assert content["macro"]["findings"] == list(FINDINGS[:3])
    assert content["macro"]["auroc"] == pytest.approx(
        np.mean([content["findings"][name]["auroc"] for name in FINDINGS[:3]]), rel=0, abs=1e-12
    )


def test_intervals_hold_their_figure_and_are_of_patients() -> None:
    data = cohort(0, num=600, patients=60)
    content = content_of(data, cohort(1), replicates=300)
    expected = {"level": 0.95, "replicates": 300, "seed": 0, "unit": "patient"}
    assert content["intervals"].items() >= expected.items()
    assert content["intervals"]["brier_method"] == "percentile of 300 patient resamples"
    assert "Obuchowski" in content["intervals"]["auroc_method"]
    assert content["num_patients"] == len(np.unique(data.patient_id)) and content["num_samples"] == 600
    for entry in (*content["findings"].values(), content["macro"]):
        assert entry["auroc_low"] < entry["auroc"] < entry["auroc_high"]
        assert entry["auprc_low"] < entry["auprc"] < entry["auprc_high"]
    for entry in content["findings"].values():
        assert entry["delong_low"] < entry["auroc"] < entry["delong_high"]
        for point in entry["operating_points"].values():
            assert point["recall_low"] <= point["recall"] <= point["recall_high"]
    # Images of a patient resemble each other here: DeLong, which does not know, is the narrower one on the whole.
    by_patient = sum(entry["auroc_high"] - entry["auroc_low"] for entry in content["findings"].values())
    delong = sum(entry["delong_high"] - entry["delong_low"] for entry in content["findings"].values())
    assert by_patient > 1.1 * delong


def test_thresholds_come_from_validation_alone() -> None:
    """Other labels on the test split change no threshold and no temperature."""
    data, val = cohort(0), cohort(1)
    shuffled = data._replace(targets_NC=np.random.default_rng(0).permutation(data.targets_NC))
    one, two = (content_of(split, val)["findings"]["Mass"] for split in (data, shuffled))
    assert one["auroc"] != two["auroc"] and one["temperature"] == two["temperature"]
    for rule in RULES:
        points = [entry["operating_points"][rule] for entry in (one, two)]
        assert points[0]["threshold_logit"] == points[1]["threshold_logit"]
        assert points[0]["recall"] != points[1]["recall"]
    chosen = content_of(val, val)["findings"]["Mass"]["operating_points"]
    assert chosen["recall_90"]["recall"] >= 0.9 and chosen["specificity_90"]["specificity"] >= 0.9


def test_a_fixed_probability_is_the_threshold_whatever_validation_holds() -> None:
    data, val = cohort(0), cohort(1)
    val.targets_NC[:, 0] = 0
    for scores, scale in ((data.logits_NC, "logit"), (probabilities(data.logits_NC), "probability")):
        held = val.logits_NC if scale == "logit" else probabilities(val.logits_NC)
        content = content_of(data._replace(logits_NC=scores), val._replace(logits_NC=held), scale)
        points = content["findings"][FINDINGS[0]]["operating_points"]
        assert points["youden"]["threshold_prob"] is None
        point, keep = points["probability_50"], data.mask_NC[:, 0] == 1
        right = (probabilities(data.logits_NC[keep, 0]) >= 0.5) == data.targets_NC[keep, 0]
        assert (point["threshold_prob"], point["threshold_logit"]) == (0.5, 0.0)
        assert point["accuracy"] == pytest.approx(right.mean(), abs=1e-12) and point["tp"] + point["tn"] == right.sum()


def test_temperature_is_applied_beside_the_plain_figures() -> None:
    data, val = cohort(0), cohort(1)
    loud = data._replace(logits_NC=data.logits_NC * 4), val._replace(logits_NC=val.logits_NC * 4)
    entry, plain = content_of(*loud)["findings"]["Mass"], content_of(loud[0])["findings"]["Mass"]
    assert entry["temperature"] > 2 and plain["temperature"] is None and plain["temperature_reason"]
    assert entry["brier"] == plain["brier"] and entry["ece"] == plain["ece"] and plain["calibrated"] is None
    assert entry["calibrated"]["brier"] < entry["brier"] and entry["calibrated"]["ece"] < entry["ece"]
    assert entry["calibrated"]["reliability"]["count"] != entry["reliability"]["count"]


def test_operating_points_survive_json() -> None:
    val = cohort(1)
    val.targets_NC[:, 0] = 0
    operating = chosen(val)
    text = json.dumps(operating.to_json() | {"step": 12}, allow_nan=False)
    assert Operating.from_json(json.loads(text)) == operating
    assert operating.thresholds["youden"][0].reason is not None
    for broken in ({}, {"scale": "logit"}, json.loads(text) | {"scale": "percent"}, json.loads(text) | {"findings": 3}):
        with pytest.raises(ValueError, match="not operating points"):
            Operating.from_json(broken)


def test_thresholds_know_how_many_positives_they_rest_on() -> None:
    """2 validation positives of one patient warn wherever the threshold is used; an older file is read, and warns."""
    data, val = cohort(0), cohort(1)
    val.mask_NC[:, 0], val.targets_NC[:, 0] = 1, 0
    val.targets_NC[np.flatnonzero(val.patient_id == val.patient_id[0])[:2], 0] = 1
    full = made(data, val)
    content = full_json(full)
    num_patients = len(np.unique(val.patient_id))
    expected = {"num": 400, "num_positive": 2, "num_patients": num_patients, "num_positive_patients": 1}
    assert content["findings"]["Hernia"]["operating_points_chosen_on"] == expected
    assert full.operating is not None and full.operating.to_json()["findings"]["Hernia"]["chosen_on"] == expected
    assert content["operating_points_threshold"].startswith("held")
    few = [warning for warning in content["warnings"] if warning.startswith("Thresholds and temperatures chosen on")]
    assert len(few) == 1 and "Hernia (positives: 2, of patients: 1)" in few[0] and "Mass" not in few[0]
    older = full.operating.to_json()
    for entry in older["findings"].values():
        del entry["chosen_on"]
    content = content_of(data, operating=Operating.from_json(older), operating_from="val")
    assert content["findings"]["Hernia"]["operating_points_chosen_on"] is None
    assert any("is not known: an older version" in warning for warning in content["warnings"])


def test_recalibration_and_decision_curves_are_in_the_json() -> None:
    data = cohort(0)
    data.mask_NC[:, 3] = 0
    content = content_of(data)["findings"]
    one = recalibrate(scored(*data, FINDINGS).known[1])
    mass = content["Mass"]
    for name in ("slope", "intercept"):
        estimate = getattr(one, name)
        keys = [f"calibration_{name}{end}" for end in ("", "_low", "_high")]
        assert [mass[key] for key in keys] == [estimate.value, estimate.low, estimate.high]
    assert mass["observed_expected"] == one.observed_expected.value and mass["brier_skill"] == one.brier_skill.value
    curve = mass["decision_curve"]
    assert {len(values) for values in curve.values()} == {len(THRESHOLDS)}
    assert all(low <= high for low, high in zip(curve["net_benefit_low"], curve["net_benefit_high"], strict=True))
    assert content["No Finding"]["decision_curve"] is None
    assert content["No Finding"]["recalibration_reason"] == "no known labels"


def test_float64_probabilities_rank_without_rounding() -> None:
    """Neighbouring doubles around 0.7 are one float32: a cast would tie them."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    data = cohort(0)
    rng = np.random.default_rng(0)
    steps = rng.integers(0, 60, size=data.logits_NC.shape) + 40 * data.targets_NC
    prob = 0.7 + steps * 2.0**-53
    assert len(np.unique(prob.astype(np.float32))) == 1
    content = content_of(data._replace(logits_NC=prob), data._replace(logits_NC=prob), "probability")
    for column, name in enumerate(FINDINGS):
        keep = data.mask_NC[:, column] == 1
        truth, scores = data.targets_NC[keep, column], prob[keep, column]
        # scikit-learn on integers of the same order: it too calls doubles as close as these distinct
        expected = roc_auc_score(truth, steps[keep, column])
        assert 0.7 < expected < 0.99
        entry = content["findings"][name]
        assert entry["auroc"] == pytest.approx(expected, rel=0, abs=1e-12)
        assert entry["auprc"] == pytest.approx(average_precision_score(truth, steps[keep, column]), rel=0, abs=1e-12)
        point = entry["operating_points"]["recall_90"]
        called = scores >= point["threshold_prob"]
        assert point["tp"] == np.count_nonzero(called & (truth == 1)) >= 0.9 * truth.sum()
        assert point["fp"] == np.count_nonzero(called & (truth == 0)) < np.count_nonzero(truth == 0)


def test_thresholds_hold_between_scores_of_other_files() -> None:
    """A validation threshold falls between test scores: what is called is score >= threshold in float64, exactly."""
    data, val = cohort(0, decimals=6), cohort(1, decimals=6)
    test_prob, val_prob = probabilities(data.logits_NC), probabilities(val.logits_NC)
    operating = chosen(val._replace(logits_NC=val_prob), "probability")
    full = made(data._replace(logits_NC=test_prob), scale="probability", operating=operating, operating_from="val")
    same = made(data, val)
    for rule, points in full.points.items():
        for column, point in enumerate(points):
            assert point.prob == operating.thresholds[rule][column].value
            keep = data.mask_NC[:, column] == 1
            called = int(np.count_nonzero(test_prob[keep, column] >= point.prob))
            assert point.confusion is not None
            assert point.confusion.true_positive + point.confusion.false_positive == called
            assert point.confusion == same.points[rule][column].confusion, "logits and their sigmoid call the same"


def test_probabilities_of_0_and_1_have_figures() -> None:
    data = cohort(0)
    prob = np.clip(probabilities(data.logits_NC), 0.2, 0.8)
    prob[prob == 0.2], prob[prob == 0.8] = 0.0, 1.0
    content = content_of(data._replace(logits_NC=prob), scale="probability")
    keep = data.mask_NC[:, 1] == 1
    expected = np.mean((prob[keep, 1] - data.targets_NC[keep, 1]) ** 2)
    assert content["findings"]["Mass"]["brier"] == pytest.approx(expected, rel=0, abs=1e-12)


@pytest.mark.parametrize("case", ["class absent", "no labels", "diverged", "one patient", "nothing at all"])
def test_what_is_undefined_is_null_with_a_reason(case: str) -> None:
    data, val = cohort(0), cohort(1)
    if case == "class absent":
        data.targets_NC[:, 1], data.mask_NC[:, 1] = 0, 1
    elif case == "no labels":
        data.mask_NC[:, 1] = 0
    elif case == "diverged":
        data.logits_NC[3, 1], data.mask_NC[3, 1] = np.nan, 1
        val.logits_NC[5, 2], val.mask_NC[5, 2] = np.inf, 1
    elif case == "one patient":
        data.patient_id[:] = 7
    else:
        data = Cohort(*(array[:0] for array in data))
    full = made(data, val, sex=np.array(["M", "F"])[np.arange(len(data.patient_id)) % 2], unreadable=[("a.png", "cut")])
    content = json.loads(json.dumps(full_json(full), allow_nan=False))
    assert nulls_without_reason(content) == []
    assert content["step"] is None and content["loss"] is None
    assert content["unreadable"] == [{"file": "a.png", "reason": "cut"}]
    mass = content["findings"]["Mass"]
    if case == "one patient":
        assert mass["auroc"] is not None and mass["auroc_low"] is None and "one patient" in mass["reason"]
        assert any("one patient" in warning for warning in caveats(full))
    else:
        assert mass["auroc"] is None and mass["operating_points"]["youden"]["recall"] is None
    if case == "diverged":
        assert mass["reason"].endswith("logits are not finite") and content["macro"]["auprc"] is None
        assert content["macro"]["reason"] == "logits are not finite: Mass"
        assert "not finite" in mass["operating_points"]["youden"]["reason"]
        assert "not finite" in content["findings"]["Edema"]["operating_points"]["youden"]["reason"]
        assert "not finite" in content["findings"]["Edema"]["temperature_reason"]
        assert {group["findings"]["Mass"]["reason"] for group in content["subgroups"]} == {mass["reason"]}
    if case in ("class absent", "no labels"):
        assert content["macro"]["findings"] == ["Hernia", "Edema"] and content["macro"]["auroc"] is not None
        assert any(warning.startswith("No areas") and "Mass" in warning for warning in caveats(full))
    assert len(full.table_rows()) == len(FINDINGS) + 2


def test_subgroups_partition_the_samples_and_differences_are_named() -> None:
    data = cohort(0, num=600, patients=200)
    groups = np.where(data.patient_id % 2 == 0, "M", "F")
    groups[:5] = ""
    data.logits_NC[groups == "F"] = np.random.default_rng(1).normal(size=(np.count_nonzero(groups == "F"), 4))
    age = np.full(600, np.nan, dtype=np.float32)
    full = made(data, sex=groups, age=age, view=np.where(np.arange(600) < 400, "PA", "AP"))
    content = full_json(full)
    by_attribute: dict[str, list[dict[str, Any]]] = {}
    for group in content["subgroups"]:
        by_attribute.setdefault(group["attribute"], []).append(group)
    assert set(by_attribute) == {"sex", "view", "images per patient"}, "ages are unknown for all: no groups"
    for members in by_attribute.values():
        assert sum(group["num_samples"] for group in members) == 600
    assert [group["group"] for group in by_attribute["sex"]] == ["F", "M", "unknown"]
    found = [entry for entry in content["differences"] if entry["attribute"] == "sex"]
    assert {"macro", "Mass"} <= {entry["finding"] for entry in found}
    for entry in found:
        assert (entry["group_a"], entry["group_b"]) == ("F", "M")
        assert entry["p"] <= entry["p_adjusted"] < 0.05 and entry["difference_low"] < entry["difference"]
        assert entry["difference"] == entry["auroc_b"] - entry["auroc_a"] > 0
    assert content["num_pairs_compared"] >= len(content["differences"])


def test_warnings() -> None:
    data, val = cohort(0), cohort(1)

    def warned(**more: Any) -> str:
        return " ".join(caveats(made(data, val, **more)))

    assert "val split chose both the checkpoint and the thresholds" in warned(checkpoint_from="val")
    assert "chose both" not in warned() and "optimistic" not in warned()
    assert "chosen on the test split itself" in warned(operating_from=FROM_ITSELF)
    assert "chosen on the test split itself" in warned(operating_from="test")
    assert "test split chose the checkpoint" in warned(checkpoint_from="test")
    assert caveats(made(data, notes=["Mind the gap."]))[0] == "Mind the gap."
    data.logits_NC[:, 1] *= -1
    data.logits_NC[:, 2] = 0.25
    positive = np.flatnonzero(data.targets_NC[:, 0])
    data.mask_NC[positive[12:], 0] = 0
    is_positive = (data.targets_NC[:, 0] & data.mask_NC[:, 0]) == 1
    num, num_patients = np.count_nonzero(is_positive), len(set(data.patient_id[is_positive]))
    warnings = warned(unreadable=[("a.png", "cut")])
    assert "Worse than chance" in warnings and ": Mass." in warnings
    assert "same score for every image: Edema" in warnings
    few = f"Fewer than 20 positive patients, who decide the figures: Hernia ({num_patients}, {num} images)"
    assert few in warnings
    assert "1 files could not be read and were left out: a.png." in warnings


def test_half_without_an_interval_is_not_the_same_score_for_all() -> None:
    """Two positives of one patient: AUROC exactly 0.5, no interval, scores in one bin but all different."""
    logits_NC = np.linspace(-0.01, -0.02, 20, dtype=np.float32)[:, None].repeat(4, axis=1)
    targets_NC = np.zeros((20, 4), dtype=np.uint8)
    targets_NC[[4, 15]] = 1
    full = made(Cohort(logits_NC, targets_NC, np.ones_like(targets_NC), np.arange(20) % 11))
    assert full.areas.auroc[0].value == 0.5 and full.areas.auroc[0].low is None
    assert not any("same score" in warning for warning in caveats(full))


def test_same_bytes_whatever_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    data, val = cohort(0), cohort(1)
    texts = []
    for cores in ({0}, {0, 1, 2}):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: cores)
        texts.append(json.dumps(content_of(data, val)))
    assert texts[0] == texts[1]
    assert json.dumps(content_of(data, val, seed=1)) != texts[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"operating_from": "val"}, "go together"),
        ({"replicates": 1}, "make no interval"),
        ({"macro_findings": ["Cardiomegaly"]}, "are not scored"),
    ],
)
def test_mistakes(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(cohort(0), **more)


def test_operating_points_of_other_findings_are_refused() -> None:
    data = cohort(0)
    operating = choose_operating(scored(*data, FINDINGS[::-1]))
    with pytest.raises(ValueError, match="operating points are of"):
        made(data, operating=operating, operating_from="val")


def test_the_table_shows_areas_and_the_interval_of_the_auroc() -> None:
    full = made(cohort(0), cohort(1))
    titles, *rows, macro = full.table_rows()
    assert titles == ("test", "positives\n(patients)", "AUROC", "95% interval", "average\nprecision")
    assert [row[0] for row in rows] == list(FINDINGS)
    area, precision, score = full.areas.auroc[1], full.areas.auprc[1], full.report.findings["Mass"]
    counts = f"{score.num_positive} ({score.num_positive_patients})"
    figures = (f"{area.value:.4f}", f"{area.low:.4f}-{area.high:.4f}", f"{precision.value:.4f}")
    assert rows[1] == ("Mass", counts, *figures)
    area, precision = full.areas.macro_auroc, full.areas.macro_auprc
    figures = (f"{area.value:.4f}", f"{area.low:.4f}-{area.high:.4f}", f"{precision.value:.4f}")
    assert macro == (f"macro of {len(full.report.macro_findings)}", "", *figures)


def nih_sized() -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    targets = (rng.random((25_596, 14)) < np.linspace(0.004, 0.24, 14)).astype(np.uint8)
    logits = (rng.normal(size=targets.shape) + targets - 2).astype(np.float32)
    return logits, targets, rng.integers(0, 2797, size=len(targets))


def test_the_nih_test_split_takes_seconds() -> None:
    logits, targets, patients = nih_sized()
    names = [f"finding {column}" for column in range(14)]
    mask = np.ones_like(targets)
    sex, view = np.array(["M", "F"])[patients % 2], np.array(["PA", "AP"])[np.arange(len(patients)) % 2]
    start = time.process_time()
    held = scored(logits, targets, mask, patients, names)
    full = full_report(
        "test", held, sex=sex, age=(patients % 90).astype(np.float32), view=view, operating=choose_operating(held),
        operating_from="val",
    )  # fmt: skip
    json.dumps(full_json(full))
    assert time.process_time() - start < 30
