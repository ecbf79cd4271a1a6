"""Every figure of one split: areas, operating points, calibration and subgroups, with intervals.

Shape suffixes: N samples, C findings.

    validation ──► choose_operating ──► Operating ──┐  thresholds, temperatures
    any split  ─────────────────────► full_report ◄─┘──► FullReport ──► metrics_<split>.json, table, page

Nothing here depends on the number of ranks, threads or cores: the same scores make the same JSON, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from distcxr.metrics.areas import Areas, area_estimates
from distcxr.metrics.bootstrap import PatientResamples
from distcxr.metrics.calibration import Calibration, calibration_estimates
from distcxr.metrics.decision import DecisionCurve, decision_curves
from distcxr.metrics.delong import delong_interval
from distcxr.metrics.estimate import LEVEL, Estimate
from distcxr.metrics.operating import FROM_ITSELF, Operating
from distcxr.metrics.recalibration import Recalibration, recalibrate
from distcxr.metrics.scored import Scored
from distcxr.metrics.subgroup import UNKNOWN, Subgroups, by_age, by_images_per_patient, by_name, score_subgroups
from distcxr.metrics.summary import Summary, area_text, summarise
from distcxr.metrics.threshold import Confusion, count_cells, rate_estimates
from distcxr.metrics.threshold_choice import with_choice

GROUP_RULE = "youden"
"""The rule with the thresholds that groups' recall and specificity are at."""


@dataclass(frozen=True)
class OperatingPoint:
    """One finding at one rule's threshold, given on both scales; `reason`: why there is none, or no count.

    Without a threshold, or without known labels, there are no counts.
    """

    logit: float | None
    prob: float | None
    confusion: Confusion | None
    rates: dict[str, Estimate]
    reason: str | None
    with_choice: dict[str, Estimate] = field(default_factory=dict)
    """Recall and specificity with intervals that include the choice; none of a rule that does not choose, and where
    the thresholds are of an older version or of the split itself."""


@dataclass(frozen=True)
class FullReport:
    """What a model scores on one split, with intervals; tuples are in the order of the findings.

    `calibration`, `recalibration` and `decisions` are of probabilities as they are, `calibrated` of logits divided by
    the temperature (None for a finding without one), `points` by rule; the areas of `report` are those of `areas`. The
    rest is as `full_report` got it.
    """

    report: Summary
    num_patients: int
    replicates: int
    seed: int
    areas: Areas
    delong: tuple[Estimate, ...]
    calibration: tuple[Calibration, ...]
    calibrated: tuple[Calibration | None, ...]
    recalibration: tuple[Recalibration, ...]
    decisions: tuple[DecisionCurve, ...]
    operating: Operating | None
    operating_from: str | None
    points: dict[str, tuple[OperatingPoint, ...]]
    subgroups: Subgroups
    checkpoint_from: str | None
    notes: tuple[str, ...]

    def table_rows(self) -> list[tuple[str, ...]]:
        """What the end of a run shows: titles, then finding, positives (images, and their patients), AUROC with its
        interval and average precision, a row per finding, the macro average last. Everything else is in the report and
        the JSON.
        """
        titles = (self.report.split, "positives\n(patients)", "AUROC", f"{LEVEL:.0%} interval", "average\nprecision")
        rows: list[tuple[str, ...]] = [titles]
        for column, (name, score) in enumerate(self.report.findings.items()):
            auroc, auprc = self.areas.auroc[column], self.areas.auprc[column]
            counts = f"{score.num_positive:,} ({score.num_positive_patients:,})"
            rows.append((name, counts, area_text(auroc.value), _interval(auroc), area_text(auprc.value)))
        auroc, auprc = self.areas.macro_auroc, self.areas.macro_auprc
        macro = f"macro of {len(self.report.macro_findings)}"
        rows.append((macro, "", area_text(auroc.value), _interval(auroc), area_text(auprc.value)))
        return rows


def full_report(
    split: str,
    scored: Scored,
    *,
    sex: NDArray[np.str_],
    age: NDArray[np.float32],
    view: NDArray[np.str_],
    member: NDArray[np.str_] | None = None,
    macro_findings: Sequence[str] | None = None,
    unreadable: Iterable[tuple[str, str]] = (),
    operating: Operating | None = None,
    operating_from: str | None = None,
    checkpoint_from: str | None = None,
    replicates: int = 1000,
    seed: int = 0,
    notes: Sequence[str] = (),
) -> FullReport:
    """Score a split, with patient-level intervals.

    Args:
        sex, age, view: `[N]` as in the index, "" or NaN where unknown; an attribute unknown of all is left out.
        member: `[N]`, of a joint data set: which of its members each sample is of.
        macro_findings, unreadable: as for `summarise`.
        operating: from `choose_operating`; without it there are no operating points and no temperatures.
        operating_from: the split they were chosen on, for example "val", or `FROM_ITSELF`.
        checkpoint_from: the split that chose the weights, where one did: a warning depends on it.
        replicates, seed: of the bootstrap.
        notes: sentences to put before the report's own warnings.

    Raises ValueError as `summarise` and `PatientResamples` do, for operating points of other findings, and for
    operating points without the split they are from.
    """
    if (operating is None) != (operating_from is None):
        raise ValueError("operating points and the split they are from go together: give both or neither")
    if operating is not None and operating.findings != scored.findings:
        raise ValueError(f"operating points are of {list(operating.findings)}, but scored are {list(scored.findings)}")
    summary = summarise(split, scored, macro_findings, unreadable)
    resamples = PatientResamples(scored.num_patients, replicates, seed)
    areas = area_estimates(scored, summary.macro_findings)
    if summary.macro_reason:
        undefined = Estimate(None, None, None, summary.macro_reason)
        areas = replace(areas, macro_auroc=undefined, macro_auprc=undefined)
    groupings = [by_name("sex", sex), by_age(age), by_name("view", view), by_images_per_patient(scored.patient_N)]
    if member is not None:
        groupings.insert(0, by_name("data set", member))
    with_groups = [grouping for grouping in groupings if grouping.groups not in ((), (UNKNOWN,))]
    temperature_C = [fitted.value for fitted in operating.temperatures] if operating else [None] * len(scored.known)
    has_rule = operating is not None and GROUP_RULE in operating.thresholds
    group_thresholds = _ranks(scored, operating, GROUP_RULE) if operating and has_rule else None
    return FullReport(
        report=summary,
        num_patients=scored.num_patients,
        replicates=replicates,
        seed=seed,
        areas=areas,
        delong=tuple(delong_interval(known) for known in scored.known),
        calibration=tuple(found for found in calibration_estimates(resamples, scored) if found),
        calibrated=tuple(calibration_estimates(resamples, scored, temperature_C)),
        recalibration=tuple(map(recalibrate, scored.known)),
        decisions=tuple(decision_curves(resamples, scored)),
        operating=operating,
        operating_from=operating_from,
        points=_points(scored, operating, operating_from) if operating else {},
        subgroups=score_subgroups(scored, with_groups, summary.macro_findings, group_thresholds),
        checkpoint_from=checkpoint_from,
        notes=tuple(notes),
    )


def _points(scored: Scored, operating: Operating, operating_from: str | None) -> dict[str, tuple[OperatingPoint, ...]]:
    found: dict[str, tuple[OperatingPoint, ...]] = {}
    for rule, chosen_C in operating.thresholds.items():
        rank_C = _ranks(scored, operating, rule)
        rates_C = rate_estimates(scored, rank_C)
        points = []
        for column, (known, rank, rates) in enumerate(zip(scored.known, rank_C, rates_C, strict=True)):
            if rank is None:
                reason = f"no threshold, {chosen_C[column].reason} where it was chosen"
                points.append(OperatingPoint(None, None, None, rates, reason))
                continue
            logit = operating.threshold(rule, column, "logit")
            prob = operating.threshold(rule, column, "probability")
            cells = count_cells(known, rank) if len(known.targets_M) else None
            choice = {}
            counts, resampled = operating.counts[column], operating.resampled(rule, column, scored.scale)
            if cells and counts and resampled and operating_from != FROM_ITSELF:
                rank_Q = list(map(known.to_rank, resampled))
                choice = with_choice(known, scored.num_patients, rank, rank_Q, counts.num_positive_patients)
            points.append(OperatingPoint(logit, prob, cells, rates, None if cells else known.reason, choice))
        found[rule] = tuple(points)
    return found


def _ranks(scored: Scored, operating: Operating, rule: str) -> list[float | None]:
    """A rule's thresholds as `Known.scores_M` are."""
    score_C = [operating.threshold(rule, column, scored.scale) for column in range(len(scored.known))]
    return [None if score is None else known.to_rank(score) for known, score in zip(scored.known, score_C, strict=True)]


def _interval(estimate: Estimate) -> str:
    return "-" if estimate.low is None else f"{estimate.low:.4f}-{estimate.high:.4f}"
