"""Everything that is said of one split: areas, operating points, calibration and subgroups, with intervals.

Shape suffixes: N samples, C findings.

    validation ──► choose_operating ──► Operating ──┐  thresholds, temperatures
    any split  ─────────────────────► full_report ◄─┘──► FullReport ──► metrics_<split>.json, table, page

Nothing here depends on the number of ranks, threads or cores: the same scores make the same JSON, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distcxr.metrics.bootstrap import Areas, PatientResamples, area_estimates
from distcxr.metrics.calibration import (
    Calibration,
    Logits,
    Reliability,
    calibration_estimates,
    probabilities,
    reliability,
)  # fmt: skip
from distcxr.metrics.caveats import caveats
from distcxr.metrics.delong import delong_interval
from distcxr.metrics.estimate import Estimate
from distcxr.metrics.full_json import full_json
from distcxr.metrics.operating import DEFAULT_RULES as DEFAULT_RULES
from distcxr.metrics.operating import FROM_ITSELF as FROM_ITSELF
from distcxr.metrics.operating import Operating as Operating
from distcxr.metrics.operating import Ranked, Scale, as_logits, not_finite, rank
from distcxr.metrics.operating import choose_operating as choose_operating
from distcxr.metrics.ranking import known
from distcxr.metrics.report import Report, build_report
from distcxr.metrics.subgroup import UNKNOWN, Subgroups, by_age, by_images_per_patient, by_name, score_subgroups
from distcxr.metrics.threshold import Confusion, count_cells, rate_estimates


@dataclass(frozen=True)
class OperatingPoint:
    """One finding at one rule's threshold.

    Attributes:
        logit, prob: the threshold on both scales.
        confusion: None without a threshold, or without known labels.
        rates: `threshold.RATES` by name.
        reason: why there is no threshold, or no count.
    """

    logit: float | None
    prob: float | None
    confusion: Confusion | None
    rates: dict[str, Estimate]
    reason: str | None


@dataclass(frozen=True)
class FindingCalibration:
    """One finding's probabilities as they are; and of logits divided by the temperature, where there is one."""

    plain: Calibration
    plain_curve: Reliability
    scaled: Calibration | None
    scaled_curve: Reliability | None


@dataclass(frozen=True)
class FullReport:
    """What a model scores on one split, with intervals; tuples are in the order of the findings.

    Attributes:
        report: the quick report of the same scores; its areas are those of `areas`.
        delong: AUROC with DeLong's interval.
        operating_from: the split that thresholds and temperatures are from, None without them.
        points: by rule.
        checkpoint_from: the split that chose the weights, None where none did.
        notes: sentences that the caller wants among the warnings.
    """

    report: Report
    num_patients: int
    level: float
    replicates: int
    seed: int
    areas: Areas
    delong: tuple[Estimate, ...]
    calibration: tuple[FindingCalibration, ...]
    operating: Operating | None
    operating_from: str | None
    points: dict[str, tuple[OperatingPoint, ...]]
    subgroups: Subgroups
    checkpoint_from: str | None
    notes: tuple[str, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that belong beside the figures."""
        return (*self.notes, *caveats(self))

    def to_json(self) -> dict[str, Any]:
        """The content of `metrics_<split>.json`: plain Python types, None with a reason where undefined."""
        return full_json(self)

    def table_rows(self) -> list[tuple[str, ...]]:
        """What the end of a run shows: titles, then finding, positives, AUROC with its interval and average precision,
        a row per finding, the macro average last. Everything else is in the report and the JSON.
        """
        titles = (self.report.split, "positives", "AUROC", f"{self.level:.0%} interval", "average\nprecision")
        rows: list[tuple[str, ...]] = [titles]
        for column, (name, score) in enumerate(self.report.findings.items()):
            auroc, auprc = self.areas.auroc[column], self.areas.auprc[column]
            counts = f"{score.num_positive:,}/{score.num:,}"
            rows.append((name, counts, _cell(auroc.value), _interval(auroc), _cell(auprc.value)))
        auroc, auprc = self.areas.macro_auroc, self.areas.macro_auprc
        macro = f"macro of {len(self.report.macro_findings)}"
        rows.append((macro, "", _cell(auroc.value), _interval(auroc), _cell(auprc.value)))
        return rows


def full_report(
    split: str,
    findings: Sequence[str],
    logits_NC: Logits,
    targets_NC: NDArray[np.uint8],
    mask_NC: NDArray[np.uint8],
    *,
    patient_id: NDArray[np.int64],
    sex: NDArray[np.str_] | None = None,
    age: NDArray[np.float32] | None = None,
    view: NDArray[np.str_] | None = None,
    macro_findings: Sequence[str] | None = None,
    unreadable: Iterable[tuple[str, str]] = (),
    operating: Operating | None = None,
    operating_from: str | None = None,
    checkpoint_from: str | None = None,
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    scale: Scale = "logit",
    notes: Sequence[str] = (),
) -> FullReport:
    """Score a split, with patient-level intervals.

    Args:
        logits_NC: raw float32 logits; or float64 ones; or, with `scale="probability"`, float64 probabilities. They
            rank as they are: float64 is never rounded to float32.
        targets_NC, mask_NC, macro_findings, unreadable: as for `build_report`.
        patient_id: integers `[N]`.
        sex, age, view: `[N]` as in the index, "" or NaN where unknown; None leaves the attribute out.
        operating: from `choose_operating`; without it there are no operating points and no temperatures.
        operating_from: the split they were chosen on, for example "val", or `FROM_ITSELF`.
        checkpoint_from: the split that chose the weights, where one did: a warning depends on it.
        replicates, seed, level: of the bootstrap and its intervals.
        notes: sentences to put before the report's own warnings.

    Raises ValueError as `build_report` and `PatientResamples` do, for operating points of other findings, and for
    operating points without the split they are from.
    """
    if (operating is None) != (operating_from is None):
        raise ValueError("operating points and the split they are from go together: give both or neither")
    if operating is not None and operating.findings != tuple(findings):
        raise ValueError(f"operating points are of {list(operating.findings)}, but scored are {list(findings)}")
    ranked = rank(logits_NC)
    report = build_report(split, findings, ranked.scores_NC, targets_NC, mask_NC, macro_findings, unreadable)
    # The report has the reason why what diverged has no figures; below it has no known labels.
    finite_NC = np.where(not_finite(logits_NC, mask_NC) > 0, 0, mask_NC).astype(np.uint8)
    resamples = PatientResamples(patient_id, replicates, seed)
    columns = [list(findings).index(name) for name in report.macro_findings]
    areas = area_estimates(resamples, ranked.scores_NC, targets_NC, finite_NC, columns, level)
    if report.macro_reason:
        undefined = Estimate(None, None, None, report.macro_reason)
        areas = replace(areas, macro_auroc=undefined, macro_auprc=undefined)
    groupings = [] if sex is None else [by_name("sex", sex)]
    groupings += [] if age is None else [by_age(age)]
    groupings += [] if view is None else [by_name("view", view)]
    groupings += [by_images_per_patient(patient_id)]
    told = [grouping for grouping in groupings if grouping.groups not in ((), (UNKNOWN,))]
    subgroups = score_subgroups(resamples, told, findings, ranked.scores_NC, targets_NC, finite_NC, columns, level)
    return FullReport(
        report=report,
        num_patients=resamples.num_patients,
        level=level,
        replicates=replicates,
        seed=seed,
        areas=areas,
        delong=tuple(
            delong_interval(*known(ranked.scores_NC[:, column], targets_NC[:, column], finite_NC[:, column]), level)
            for column in range(len(findings))
        ),
        calibration=_calibration(resamples, as_logits(logits_NC, scale), targets_NC, finite_NC, operating, level),
        operating=operating,
        operating_from=operating_from,
        points=_points(resamples, ranked, targets_NC, finite_NC, report, operating, scale, level),
        subgroups=subgroups,
        checkpoint_from=checkpoint_from,
        notes=tuple(notes),
    )


def _calibration(
    resamples: PatientResamples,
    logits_NC: Logits,
    targets_NC: NDArray[np.uint8],
    mask_NC: NDArray[np.uint8],
    operating: Operating | None,
    level: float,
) -> tuple[FindingCalibration, ...]:
    temperatures = [fitted.value for fitted in operating.temperatures] if operating else []
    plain_C = calibration_estimates(resamples, logits_NC, targets_NC, mask_NC, level=level)
    scaled_C: list[Calibration | None] = [None] * len(plain_C)
    fitted = [column for column, value in enumerate(temperatures) if value is not None]
    if fitted:
        scales = [temperatures[column] or 1.0 for column in fitted]
        arrays = (logits_NC[:, fitted], targets_NC[:, fitted], mask_NC[:, fitted])
        found_C = calibration_estimates(resamples, *arrays, temperature_C=scales, level=level)
        for column, calibration in zip(fitted, found_C, strict=True):
            scaled_C[column] = calibration
    found = []
    for column, (plain, scaled) in enumerate(zip(plain_C, scaled_C, strict=True)):
        logits_N, targets_N = known(logits_NC[:, column], targets_NC[:, column], mask_NC[:, column])
        curve = reliability(probabilities(logits_N), targets_N)
        scaled_curve = None
        if scaled is not None:
            scaled_curve = reliability(probabilities(logits_N, temperatures[column] or 1.0), targets_N)
        found.append(FindingCalibration(plain, curve, scaled, scaled_curve))
    return tuple(found)


def _points(
    resamples: PatientResamples,
    ranked: Ranked,
    targets_NC: NDArray[np.uint8],
    mask_NC: NDArray[np.uint8],
    report: Report,
    operating: Operating | None,
    scale: Scale,
    level: float,
) -> dict[str, tuple[OperatingPoint, ...]]:
    found: dict[str, tuple[OperatingPoint, ...]] = {}
    for rule in operating.thresholds if operating else ():
        assert operating is not None
        score_C = [operating.threshold(rule, column, scale) for column in range(len(report.findings))]
        rank_C = [None if score is None else ranked.to_rank(column, score) for column, score in enumerate(score_C)]
        rates_C = rate_estimates(resamples, ranked.scores_NC, targets_NC, mask_NC, rank_C, level)
        points = []
        for column, name in enumerate(report.findings):
            threshold = rank_C[column]
            if threshold is None:
                reason = f"no threshold, {operating.thresholds[rule][column].reason} where it was chosen"
                points.append(OperatingPoint(None, None, None, rates_C[column], reason))
                continue
            arrays = known(ranked.scores_NC[:, column], targets_NC[:, column], mask_NC[:, column])
            logit = operating.threshold(rule, column, "logit")
            prob = operating.threshold(rule, column, "probability")
            cells = count_cells(*arrays, threshold) if len(arrays[0]) else None
            unscored = None if cells else report.findings[name].reason
            points.append(OperatingPoint(logit, prob, cells, rates_C[column], unscored))
        found[rule] = tuple(points)
    return found


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _interval(estimate: Estimate) -> str:
    return "-" if estimate.low is None else f"{estimate.low:.4f}-{estimate.high:.4f}"
