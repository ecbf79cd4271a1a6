"""Measures, on simulated patients, how often tests between two models raise a false alarm, what intervals of
calibration cover, and what an interval at a validation threshold leaves out.

    python benchmarks/inference.py --quick                 within two minutes
    python benchmarks/inference.py --check --json FILE

Every patient has as many images; half of the variance of labels and scores is the patient's. Two models are equally
good and share half of their noise, so every difference found between them is a false alarm. A report has 14 findings,
independent of each other. Shape suffixes: N images, P patients, C findings.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distcxr.metrics.bootstrap import PatientResamples
from distcxr.metrics.clustered import paired_p_value
from distcxr.metrics.operating import Operating
from distcxr.metrics.paired_tests import compare_models
from distcxr.metrics.recalibration import recalibrate
from distcxr.metrics.scored import Known, Scored, count_patients
from distcxr.metrics.threshold import Rule, Threshold, choose_threshold, rate_estimates
from distcxr.metrics.threshold_choice import resampled_thresholds, with_choice

FINDINGS = 14
REPLICATES = 1000
LEVEL = 0.05  # of the tests
RATE = 0.05  # of positives, where a table has no other
COMPARED = [(area, positives, images) for area in (0.6, 0.8, 0.95) for positives in (12, 20, 50, 200)
            for images in (1, 3, 10)]  # fmt: skip
CALIBRATED = [(rate, positives, images) for rate in (0.003, 0.05, 0.2) for positives in (12, 20, 50, 200)
              for images in (1, 5)]  # fmt: skip
CHOSEN_ON = [(positives,) for positives in (2, 5, 10, 20, 50, 100, 200)]
BOUNDS = {"p_delong": (0.0, 0.08), "p": (0.0, 0.12), "slope": (0.92, 1.0), "intercept": (0.92, 1.0),
          "observed / expected": (0.92, 1.0), "Brier skill": (0.88, 1.0)}  # fmt: skip
"""Of every case from `FEW` positive patients on."""
MOST_REPORTS = 0.07
"""With any false alarm after Holm's adjustment, on average over these cases: a case alone has few reports."""
FEW = 18  # where 20 were aimed at

Floats = NDArray[np.float64]
Labels = NDArray[np.uint8]
Row = dict[str, float | None]


def main() -> int:
    """Simulate, print the tables; exit status 1 where --check finds a bound broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the reports, every fifth case")
    parser.add_argument("--check", action="store_true", help="fail where a bound is broken")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="cases at a time")
    parser.add_argument("--reports", type=int, help="simulated for each case (default 150, 15 with --quick)")
    args = parser.parse_args()
    if args.check and args.quick:
        parser.error("--check needs every case and many reports: leave --quick away")
    reports, every = args.reports or (15 if args.quick else 150), 5 if args.quick else 1
    started = time.perf_counter()
    measured: dict[str, tuple[Callable[..., Row], Sequence[tuple[float, ...]]]] = {
        "comparisons": (comparison_errors, COMPARED),
        "calibration": (calibration_coverage, CALIBRATED),
        "thresholds": (threshold_choice, CHOSEN_ON),
    }
    with ProcessPoolExecutor(args.processes) as pool:
        begun = {
            name: [pool.submit(measure, *case, reports) for case in cases[::every]]
            for name, (measure, cases) in measured.items()
        }
        tables = {name: [row.result() for row in rows] for name, rows in begun.items()}
    for name, rows in tables.items():
        print(f"{name}\n\n{table(rows)}\n")
    minutes = (time.perf_counter() - started) / 60
    cores = len(os.sched_getaffinity(0))
    print(f"{reports} reports of {FINDINGS} findings for each case, {minutes:.1f} minutes, {cores} cores")
    broken = list(broken_bounds(tables))
    for sentence in broken:
        print(f"broken: {sentence}")
    if args.json:
        content = {"date": time.strftime("%Y-%m-%d"), "reports": reports, "replicates": REPLICATES, **tables}
        args.json.write_text(json.dumps(content, indent=1, allow_nan=False))
    return int(args.check and bool(broken))


def comparison_errors(area: float, positives: int, images: int, reports: int) -> Row:
    """Shares of false alarms between two equally good models, and of reports with any after Holm's adjustment."""
    rng = np.random.default_rng([round(100 * area), positives, images])
    apart = math.sqrt(2) * NormalDist().inv_cdf(area)
    at = tuple(Threshold(NormalDist().inv_cdf(0.9), Rule("specificity", 0.9), None) for _ in range(FINDINGS))
    operating = Operating(tuple(map(str, range(FINDINGS))), "logit", 0, {"fixed": at}, (), ())
    p_values: dict[str, list[float | None]] = {}
    patients = []
    for report in range(reports):
        patient_N, targets_NC = labels(rng, positives, images)
        shared_NC = noise(rng, patient_N)
        scores = [(shared_NC + noise(rng, patient_N)) / math.sqrt(2) + apart * targets_NC for _ in range(2)]
        a, b = (scored(score_NC, targets_NC, patient_N) for score_NC in scores)
        resamples = PatientResamples(a.num_patients, REPLICATES, report)
        found = compare_models(resamples, a, b, operating=(operating, operating))
        by_image = [paired_p_value(*map(of_its_own, pair)) for pair in zip(a.known, b.known, strict=True)]
        noted = {
            "by image": by_image,
            "p_delong": [one.p_delong for one in found.auroc],
            "p": [one.p for one in found.auroc],
            "p, average precision": [one.p for one in found.auprc],
            "p, recall": [one.p for one in found.points["fixed"]["recall"]],
            "any p_delong_holm": [smallest([one.p_delong_holm for one in found.auroc])],
            "any p_holm": [smallest([one.p_holm for one in found.auroc])],
        }
        for name, values in noted.items():
            p_values.setdefault(name, []).extend(values)
        patients += [positive_patients(known) for known in a.known]
    row: Row = {"AUROC": area, "positive patients": float(np.median(patients)), "images": float(images)}
    return row | {name: share([p < LEVEL for p in values if p is not None]) for name, values in p_values.items()}


def calibration_coverage(rate: float, positives: int, images: int, reports: int) -> Row:
    """Shares of 95 % intervals that hold the true figure of probabilities that are right."""
    rng = np.random.default_rng([round(1000 * rate), positives, images])
    centre, spread = math.log(rate / (1 - rate)) - 0.4, 1.2
    grid = centre + spread * np.linspace(-8, 8, 4001)
    weight = np.exp(-0.5 * ((grid - centre) / spread) ** 2)
    prob = 1 / (1 + np.exp(-grid))
    mean = float(weight @ prob / weight.sum())
    skill = 1 - float(weight @ (prob * (1 - prob)) / weight.sum()) / (mean * (1 - mean))
    truth = {"slope": 1.0, "intercept": 0.0, "observed_expected": 1.0, "brier_skill": skill}
    covered: dict[str, list[bool]] = {name: [] for name in truth}
    patients: list[int] = []
    each = positives_of_a_patient(rng, images, lambda patient_N: calibrated(rng, patient_N, centre, spread)[1])
    for _ in range(reports):
        patient_N = np.repeat(np.arange(max(20, round(positives / each))), images)
        logits_NC, targets_NC = calibrated(rng, patient_N, centre, spread)
        for known in scored(logits_NC, targets_NC, patient_N).known:
            patients.append(positive_patients(known))
            found = recalibrate(known)
            for name, value in truth.items():
                one = getattr(found, name)
                if one.low is not None:
                    covered[name].append(one.low <= value <= one.high)
    row: Row = {"rate": rate, "positive patients": float(np.median(patients)), "images": float(images)}
    titles = ("slope", "intercept", "observed / expected", "Brier skill")
    return row | dict(zip(titles, map(share, covered.values()), strict=True))


def threshold_choice(positives: int, reports: int, images: int = 3, area: float = 0.85) -> Row:
    """A threshold for a recall of .9, chosen on few positive patients; then its recall on a test split of 100."""
    rng = np.random.default_rng([positives, images])
    apart = math.sqrt(2) * NormalDist().inv_cdf(area)
    true, widths, held, asked, with_its_choice = [], [], [], [], []
    for report in range(reports):
        splits = []
        for number in (positives, 100):
            patient_N, targets_NC = labels(rng, number, images)
            splits.append(scored(noise(rng, patient_N) + apart * targets_NC, targets_NC, patient_N))
        val, test = splits
        at = [choose_threshold(known, Rule("recall", 0.9)).value for known in val.known]
        found = rate_estimates(test, at)
        resamples = PatientResamples(val.num_patients, REPLICATES, report)
        again = resampled_thresholds(resamples, val, Rule("recall", 0.9))
        for column, (threshold, rates) in enumerate(zip(at, found, strict=True)):
            recall = rates["recall"]
            if threshold is None or recall.low is None or recall.high is None:
                continue
            true.append(NormalDist().cdf(apart - threshold))
            widths.append(recall.high - recall.low)
            held.append(recall.low <= true[-1] <= recall.high)
            asked.append(recall.low <= 0.9 <= recall.high)
            chosen_on = positive_patients(val.known[column])
            wide = with_choice(test.known[column], test.num_patients, threshold, again[column], chosen_on)["recall"]
            if wide.low is not None and wide.high is not None:
                with_its_choice.append((wide.low, wide.high))
    spread, width = float(np.std(true)), float(np.mean(widths))
    of_test = width / (2 * NormalDist().inv_cdf(0.975))
    return {
        "positive patients": float(positives), "true recall": float(np.mean(true)),
        "a tenth is below": float(np.quantile(true, 0.1)), "interval's width": width,
        "covers the recall of this threshold": share(held), "covers the recall asked for": share(asked),
        "too narrow by a factor of": math.hypot(1, spread / of_test),
        "with the choice, covers the mean recall": share(
            [low <= np.mean(true) <= high for low, high in with_its_choice]
        ),
        "its width": float(np.mean([high - low for low, high in with_its_choice])) if with_its_choice else None,
    }  # fmt: skip


def labels(rng: np.random.Generator, positives: int, images: int) -> tuple[NDArray[np.int64], Labels]:
    """Patients `[N]` and labels `[N, C]`, of about as many positive patients."""
    above = NormalDist().inv_cdf(1 - RATE)
    each = positives_of_a_patient(rng, images, lambda patient_N: noise(rng, patient_N) > above)
    while True:
        patient_N = np.repeat(np.arange(max(20, round(positives / each))), images)
        targets_NC = (noise(rng, patient_N) > above).astype(np.uint8)
        if targets_NC.any(axis=0).all():
            return patient_N, targets_NC


def calibrated(
    rng: np.random.Generator, patient_N: NDArray[np.int64], centre: float, spread: float
) -> tuple[Floats, Labels]:
    """Logits that are right, and labels with the probabilities that they give; both alike within a patient."""
    logits_NC = centre + spread * noise(rng, patient_N)
    ranks_NC = _normal_share(noise(rng, patient_N))
    return logits_NC, (ranks_NC < 1 / (1 + np.exp(-logits_NC))).astype(np.uint8)


def noise(rng: np.random.Generator, patient_N: NDArray[np.int64]) -> Floats:
    """Standard normal `[N, C]`, half of its variance the patient's."""
    of_patient_PC = rng.normal(size=(int(patient_N.max()) + 1, FINDINGS))
    found: Floats = (of_patient_PC[patient_N] + rng.normal(size=(len(patient_N), FINDINGS))) / math.sqrt(2)
    return found


def positives_of_a_patient(rng: np.random.Generator, images: int, draw: Any) -> float:
    """The share of patients with a positive image."""
    patient_N = np.repeat(np.arange(2000), images)
    return float(draw(patient_N).reshape(2000, images, FINDINGS).any(axis=1).mean())


def scored(scores_NC: Floats, targets_NC: Labels, patient_N: NDArray[np.int64]) -> Scored:
    """All labels known."""
    names = list(map(str, range(FINDINGS)))
    return Scored.of(names, scores_NC.astype(np.float32), targets_NC, np.ones_like(targets_NC), patient_N)


def of_its_own(known: Known) -> Known:
    """The same with every image a patient of its own: DeLong's test by image."""
    return replace(known, patient_M=np.arange(known.num, dtype=np.int32))


def positive_patients(known: Known) -> int:
    """Patients with a positive image."""
    return count_patients(known.patient_M[known.targets_M == 1])


def smallest(p_values: list[float | None]) -> float | None:
    """None where there is none."""
    return min((p for p in p_values if p is not None), default=None)


def share(noted: list[bool]) -> float | None:
    """None of nothing."""
    return float(np.mean(noted)) if noted else None


def broken_bounds(tables: dict[str, list[Row]]) -> Iterator[str]:
    """What is outside `BOUNDS` and above `MOST_REPORTS`."""
    for name, rows in tables.items():
        held = [row for row in rows if (row["positive patients"] or 0) >= FEW]
        for row in held:
            for key, (low, high) in BOUNDS.items():
                value = row.get(key)
                if value is not None and not low <= value <= high:
                    where = ", ".join(f"{of} {row[of]:g}" for of in list(row)[:3])
                    yield f"{name}, {where}: {key} is {value:.3f}, not {low:g} to {high:g}"
        noted = [value for row in held if (value := row.get("any p_delong_holm")) is not None]
        if noted and float(np.mean(noted)) > MOST_REPORTS:
            yield f"{name}: any p_delong_holm is {np.mean(noted):.3f} on average, not up to {MOST_REPORTS}"


def table(rows: list[Row]) -> str:
    """As markdown."""
    cells = [["-" if value is None else f"{value:.3g}" for value in row.values()] for row in rows]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _normal_share(values: Floats) -> Floats:
    """The share of standard normal numbers below each, within 1e-9."""
    grid = np.linspace(-9, 9, 60_001)
    below = np.array([0.5 * math.erfc(-at / math.sqrt(2)) for at in grid])
    return np.interp(values, grid, below)


if __name__ == "__main__":
    sys.exit(main())
