"""What a full report of one split holds: areas, operating points, calibration and subgroups, with intervals."""

from __future__ import annotations

from dataclasses import dataclass

from distcxr.metrics.bootstrap import Areas
from distcxr.metrics.calibration import Calibration
from distcxr.metrics.estimate import LEVEL, Estimate
from distcxr.metrics.operating import Operating
from distcxr.metrics.subgroup import Subgroups
from distcxr.metrics.summary import Summary
from distcxr.metrics.threshold import Confusion


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
class FullReport:
    """What a model scores on one split, with intervals; tuples are in the order of the findings.

    Attributes:
        report: the summary of the same scores; its areas are those of `areas`.
        delong: AUROC with DeLong's interval.
        calibration: of probabilities as they are.
        calibrated: of logits divided by the temperature; None for a finding without one.
        operating_from: the split that thresholds and temperatures are from, None without them.
        points: by rule.
        checkpoint_from: the split that chose the weights, None where none did.
        notes: sentences that the caller wants among the warnings.
    """

    report: Summary
    num_patients: int
    replicates: int
    seed: int
    areas: Areas
    delong: tuple[Estimate, ...]
    calibration: tuple[Calibration, ...]
    calibrated: tuple[Calibration | None, ...]
    operating: Operating | None
    operating_from: str | None
    points: dict[str, tuple[OperatingPoint, ...]]
    subgroups: Subgroups
    checkpoint_from: str | None
    notes: tuple[str, ...]

    def table_rows(self) -> list[tuple[str, ...]]:
        """What the end of a run shows: titles, then finding, positives, AUROC with its interval and average precision,
        a row per finding, the macro average last. Everything else is in the report and the JSON.
        """
        titles = (self.report.split, "positives", "AUROC", f"{LEVEL:.0%} interval", "average\nprecision")
        rows: list[tuple[str, ...]] = [titles]
        for column, (name, score) in enumerate(self.report.findings.items()):
            auroc, auprc = self.areas.auroc[column], self.areas.auprc[column]
            counts = f"{score.num_positive:,}/{score.num:,}"
            rows.append((name, counts, _cell(auroc.value), _interval(auroc), _cell(auprc.value)))
        auroc, auprc = self.areas.macro_auroc, self.areas.macro_auprc
        macro = f"macro of {len(self.report.macro_findings)}"
        rows.append((macro, "", _cell(auroc.value), _interval(auroc), _cell(auprc.value)))
        return rows


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _interval(estimate: Estimate) -> str:
    return "-" if estimate.low is None else f"{estimate.low:.4f}-{estimate.high:.4f}"
