"""A full report as plain Python types: what `metrics_<split>.json` holds. The one file that knows its keys.

A figure is three keys, for example `auroc`, `auroc_low`, `auroc_high`; one that is undefined is null and never NaN,
with a `reason` beside it, or an `auroc_reason`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, astuple, replace
from typing import Any

from distcxr.metrics.areas import AREA_METHODS
from distcxr.metrics.calibration import BINS, Calibration
from distcxr.metrics.caveats import caveats
from distcxr.metrics.decision import THRESHOLDS, DecisionCurve
from distcxr.metrics.degrees import MIN_PATIENTS
from distcxr.metrics.estimate import LEVEL, Estimate
from distcxr.metrics.evaluation import FullReport, OperatingPoint
from distcxr.metrics.group_tests import ALPHA, MIN_COMPARED, TEST_METHOD, Difference
from distcxr.metrics.operating import HELD
from distcxr.metrics.paired_tests import METHODS, Comparison, PairedDifference
from distcxr.metrics.recalibration import METHOD, Recalibration
from distcxr.metrics.subgroup import MACRO, GroupScore
from distcxr.metrics.threshold import RATE_METHOD


def full_json(full: FullReport) -> dict[str, Any]:
    """The content of `metrics_<split>.json`; `step` and `loss` are null, for the caller to fill in."""
    report, areas = full.report, full.areas
    return {
        "split": report.split,
        "num_samples": report.num_samples,
        "num_patients": full.num_patients,
        "step": None,
        "loss": None,
        "intervals": {
            "level": LEVEL,
            "replicates": full.replicates,
            "seed": full.seed,
            "unit": "patient",
            "min_patients": MIN_PATIENTS,
            **_methods(full),
        },
        "macro": {
            **figure("auroc", areas.macro_auroc),
            **reasoned("auprc", areas.macro_auprc),
            "findings": list(report.macro_findings),
            "num_findings": len(report.macro_findings),
            "reason": areas.macro_auroc.reason,
        },
        "findings": {name: _finding(full, column, name) for column, name in enumerate(report.findings)},
        "operating_points_from": full.operating_from,
        "operating_points_threshold": HELD,
        "recalibration_intervals": METHOD,
        "checkpoint_from": full.checkpoint_from,
        "subgroups": _subgroups(full),
        "differences": [_difference(found) for found in full.subgroups.differences],
        "num_pairs_compared": len(full.subgroups.tested),
        "difference_test": {
            "method": TEST_METHOD,
            "alpha": ALPHA,
            "min_patients": MIN_COMPARED,
            "num_tested": len(full.subgroups.tested),
        },
        "warnings": caveats(full),
        "unreadable": [entry._asdict() for entry in report.unreadable],
    }


def _methods(full: FullReport) -> dict[str, str]:
    """How each kind of interval is made, in words."""
    percentile = f"percentile of {full.replicates:,} patient resamples"
    methods = {**AREA_METHODS, "rates": RATE_METHOD, "brier": percentile, "ece": percentile}
    return {f"{name}_method": method for name, method in methods.items()}


def comparison_json(comparison: Comparison, findings: Sequence[str]) -> dict[str, Any]:
    """Paired differences, the scored model less the other; the bootstrap's draws are those of the report."""
    entries = {}
    for column, name in enumerate(findings):
        auroc = comparison.auroc[column]
        entries[name] = {
            **paired_json("auroc", auroc),
            "p_delong": auroc.p_delong,
            "p_delong_holm": auroc.p_delong_holm,
            "auprc": paired_json("auprc", comparison.auprc[column]),
            "operating_points": {
                rule: {rate: paired_json(rate, found[column]) for rate, found in rates.items()}
                for rule, rates in comparison.points.items()
            },
        }
    macro = {
        **paired_json("auroc", comparison.macro_auroc),
        "auprc": paired_json("auprc", comparison.macro_auprc),
        "findings": list(comparison.macro_findings),
    }
    return {"methods": METHODS, "macro": macro, "findings": entries}


def paired_json(name: str, found: PairedDifference) -> dict[str, Any]:
    """A figure of both models, and its difference."""
    return {
        name: found.a,
        f"{name}_other": found.b,
        **figure("difference", found.difference),
        "p": found.p,
        "p_floor": found.p_floor,
        "p_holm": found.p_holm,
        "p_reason": found.p_reason,
        "reason": found.difference.reason,
    }


def figure(name: str, estimate: Estimate) -> dict[str, float | None]:
    """The three keys of a figure."""
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def reasoned(name: str, estimate: Estimate) -> dict[str, Any]:
    """`figure`, with a key for the reason where one of the three is missing."""
    return figure(name, estimate) | ({f"{name}_reason": estimate.reason} if estimate.reason else {})


def _finding(full: FullReport, column: int, name: str) -> dict[str, Any]:
    score, auroc = full.report.findings[name], full.areas.auroc[column]
    delong, calibrated = full.delong[column], full.calibrated[column]
    temperature = full.operating.temperatures[column] if full.operating else None
    counts = full.operating.counts[column] if full.operating else None
    no_temperature = "no operating points were chosen" if temperature is None else temperature.reason
    scaled = None
    if calibrated is not None:
        reason = score.reason if calibrated.brier.value is None else calibrated.brier.reason
        scaled = _calibration(calibrated) | {"reason": reason}
    return {
        **figure("auroc", auroc),
        **figure("auprc", full.areas.auprc[column]),
        "delong_low": delong.low,
        "delong_high": delong.high,
        "delong_reason": score.reason or delong.reason,
        "num_positive": score.num_positive,
        "num_positive_patients": score.num_positive_patients,
        "num": score.num,
        "reason": score.reason or auroc.reason,
        "auprc_reason": score.reason or full.areas.auprc[column].reason,
        **_calibration(full.calibration[column]),
        **_recalibration(full.recalibration[column]),
        "decision_curve": _decision(full.decisions[column]),
        "temperature": temperature.value if temperature else None,
        "temperature_reason": no_temperature,
        "calibrated": scaled,
        "operating_points_chosen_on": counts and asdict(counts),
        "operating_points": {rule: _point(points[column]) for rule, points in full.points.items()},
    }


def _calibration(calibration: Calibration) -> dict[str, Any]:
    curve = calibration.curve
    return {
        **reasoned("brier", calibration.brier),
        **reasoned("ece", calibration.ece),
        "ece_bins": BINS,
        "reliability": {
            "mean_prob": curve.mean_prob_B.tolist(),
            "frequency": curve.frequency_B.tolist(),
            "count": curve.count_B.tolist(),
        },
    }


def _recalibration(found: Recalibration) -> dict[str, Any]:
    named = {
        "calibration_slope": found.slope,
        "calibration_intercept": found.intercept,
        "observed_expected": found.observed_expected,
        "brier_skill": found.brier_skill,
    }
    entry: dict[str, Any] = {}
    for name, estimate in named.items():
        entry |= reasoned(name, estimate)
    reasons = dict.fromkeys(one.reason for one in named.values() if one.reason)
    return entry | {"recalibration_reason": "; ".join(reasons) or None}


def _decision(curve: DecisionCurve) -> dict[str, list[float | None]] | None:
    """None without known labels."""
    if curve.treat_all[0] is None:
        return None
    ends = zip(*((one.value, one.low, one.high) for one in curve.model), strict=True)
    names = ("net_benefit", "net_benefit_low", "net_benefit_high")
    return {
        "threshold": list(THRESHOLDS),
        **dict(zip(names, map(list, ends), strict=True)),
        "treat_all": list(curve.treat_all),
    }


def _point(point: OperatingPoint) -> dict[str, Any]:
    entry: dict[str, Any] = {"threshold_logit": point.logit, "threshold_prob": point.prob}
    reasons: dict[str, None] = {}  # a set that keeps its order
    for name, rate in point.rates.items():
        entry |= reasoned(name, replace(rate, reason=point.reason) if point.logit is None else rate)
        if rate.reason:
            reasons[f"{name}: {rate.reason}"] = None
    for name, rate in point.with_choice.items():
        entry |= {f"{name}_choice_low": rate.low, f"{name}_choice_high": rate.high}
    counts = astuple(point.confusion) if point.confusion else (None,) * 4
    entry |= dict(zip(("tp", "fp", "fn", "tn"), counts, strict=True))
    return entry | {"reason": point.reason or "; ".join(reasons) or None}


def _subgroups(full: FullReport) -> list[dict[str, Any]]:
    entries: dict[tuple[str, str], dict[str, Any]] = {}
    for score in full.subgroups.scores:
        entry = entries.setdefault(
            (score.attribute, score.group), {"attribute": score.attribute, "group": score.group, "findings": {}}
        )
        if score.finding == MACRO:
            entry["num_samples"] = score.num
            entry["num_patients"] = score.num_patients
            entry["macro"] = {
                **figure("auroc", score.auroc),
                "findings": list(score.macro_findings),
                "reason": score.auroc.reason,
            }
        else:
            entry["findings"][score.finding] = _group_finding(full, score)
    return list(entries.values())


def _group_finding(full: FullReport, score: GroupScore) -> dict[str, Any]:
    whole = full.report.findings[score.finding]
    return {
        **figure("auroc", score.auroc),
        "num_positive": score.num_positive,
        "num_positive_patients": score.num_positive_patients,
        "num": score.num,
        "num_patients": score.num_patients,
        "mean_prob": score.mean_prob,
        "frequency": score.frequency,
        **(reasoned("calibration_gap", score.gap) if score.gap else {}),
        **{key: value for name, rate in (score.rates or {}).items() for key, value in reasoned(name, rate).items()},
        "rate_reason": "; ".join(f"{name}: {rate.reason}" for name, rate in (score.rates or {}).items() if rate.reason)
        or None,
        "reason": (whole.reason if score.num == 0 else None) or score.auroc.reason,
    }


def _difference(found: Difference) -> dict[str, Any]:
    return {
        "attribute": found.attribute,
        "finding": found.finding,
        "group_a": found.lower.group,
        "group_b": found.higher.group,
        **figure("auroc_a", found.lower.auroc),
        **figure("auroc_b", found.higher.auroc),
        **figure("difference", found.difference),
        "p": found.p,
        "p_adjusted": found.p_adjusted,
        **({"findings": list(found.macro_findings)} if found.macro_findings else {}),
    }
