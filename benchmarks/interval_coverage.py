"""Do 95 % intervals hold the truth 95 times in a hundred, and do groups that are alike come out alike?

    python benchmarks/interval_coverage.py --quick                         a minute
    python benchmarks/interval_coverage.py --json coverage.json            the table of BENCHMARKS.md
    python benchmarks/interval_coverage.py --nih /data/nih --reports 400   null reports on the official list

Truth is known because it is made: scores of two normal distributions, those of a patient's images correlated by .5, of
patients with 1, with 1 to 10, or with Pareto-distributed numbers of images. The interval is the product's own, beside
that of the percentile of patient resamples. Monte Carlo error of .95 from 2,000 data sets: .005.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distcxr.metrics.areas import area_estimates
from distcxr.metrics.bootstrap import PatientResamples, area_replicates
from distcxr.metrics.estimate import Estimate
from distcxr.metrics.influence import auprc_spread, logit_interval
from distcxr.metrics.scored import Scored
from distcxr.metrics.subgroup import Grouping, by_age, by_images_per_patient, by_name, score_subgroups
from distcxr.metrics.threshold import rate_estimates

NORMAL = NormalDist()
WITHIN_PATIENT = 0.5
POSITIVE_AMONG_ILL = 0.6  # images of a patient with the finding that show it; at least one does
IMAGES = ("1", "1-10", "pareto")
PATIENTS = (4, 10, 14, 20, 32, 100, 500)
AUROCS = (0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
RECALLS = (0.5, 0.8, 0.9, 0.97)
PREVALENCES = (0.003, 0.02, 0.1)


class Case(NamedTuple):
    """One row: a figure, its truth, and the data it is measured on."""

    figure: str  # auroc, auprc, recall
    patients: int  # with a positive
    images: str
    truth: float  # the AUROC behind an average precision
    prevalence: float = 0.1
    spread: float = 1.0  # standard deviation of positives, negatives have 1


def cases(quick: bool) -> Iterator[Case]:
    """All rows, or some that show the rest."""
    counts, images = ((10, 32), ("1-10",)) if quick else (PATIENTS, IMAGES)
    for kind in images:
        for patients in counts:
            for auroc in (0.8, 0.95) if quick else AUROCS:
                yield Case("auroc", patients, kind, auroc)
            for recall in (0.8,) if quick else RECALLS:
                yield Case("recall", patients, kind, recall)
            if not quick:
                yield Case("auroc", patients, kind, 0.8, spread=1.6)
                yield Case("auroc", patients, kind, 0.95, spread=1.6)
            if kind != "pareto":
                for prevalence in (0.1,) if quick else PREVALENCES:
                    if patients / prevalence <= 35_000:
                        yield Case("auprc", patients, kind, 0.8, prevalence)
                        yield Case("auprc", patients, kind, 0.95, prevalence)


def num_images(rng: np.random.Generator, kind: str, patients: int) -> NDArray[np.int64]:
    """Of each patient."""
    if kind == "1":
        return np.ones(patients, dtype=np.int64)
    if kind == "1-10":
        return rng.integers(1, 11, size=patients)
    return np.minimum(np.ceil(rng.pareto(1.1, size=patients) + 1e-9), 60).astype(np.int64)


def draw(rng: np.random.Generator, case: Case) -> Scored:
    """One data set. For average precision the number of ill patients varies, too: prevalence is part of the figure."""
    by_prevalence = case.figure == "auprc"
    patients = round(case.patients / case.prevalence) if by_prevalence else case.patients + max(300, 3 * case.patients)
    is_ill_P = rng.random(patients) < case.prevalence if by_prevalence else np.arange(patients) < case.patients
    count_P = num_images(rng, case.images, patients)
    row_N = np.repeat(np.arange(patients), count_P)
    share = 1.0 if case.images == "1" else POSITIVE_AMONG_ILL
    is_positive_N = is_ill_P[row_N] & (rng.random(len(row_N)) < share)
    if not by_prevalence:
        is_positive_N[(np.cumsum(count_P) - count_P)[is_ill_P]] = True
    shift = NORMAL.inv_cdf(case.truth) * (math.hypot(1, case.spread) if case.figure != "recall" else 1)
    scores_N = WITHIN_PATIENT**0.5 * rng.normal(size=patients)[row_N] + (1 - WITHIN_PATIENT) ** 0.5 * rng.normal(
        size=len(row_N)
    )
    scores_N[is_positive_N] = shift + case.spread * scores_N[is_positive_N]
    targets = is_positive_N.astype(np.uint8)[:, None]
    return Scored.of([case.figure], scores_N.astype(np.float32)[:, None], targets, np.ones_like(targets), row_N)


def truth_of(case: Case) -> float:
    """Of the population: average precision by integration over the positives' scores."""
    if case.figure != "auprc":
        return case.truth
    prevalence = case.prevalence * (1 if case.images == "1" else POSITIVE_AMONG_ILL)
    shift = NORMAL.inv_cdf(case.truth) * math.sqrt(2)
    at = np.linspace(-8, shift + 8, 20_001)
    recall, called = (np.array([1 - NORMAL.cdf(x - by) for x in at]) for by in (shift, 0.0))
    precision = prevalence * recall / np.maximum(prevalence * recall + (1 - prevalence) * called, 1e-300)
    density = np.exp(-((at - shift) ** 2) / 2) / math.sqrt(2 * math.pi)
    return float((precision * density).sum() * (at[1] - at[0]))


def measure(task: tuple[Case, int, int]) -> dict[str, Any]:
    """Coverage and width of a case over its data sets; percentiles of 400 resamples on some of them."""
    case, num_sets, num_percentile = task
    rng = np.random.default_rng([int(1000 * part) for part in case[3:]] + [case.patients, IMAGES.index(case.images)])
    truth, ours, percentile = truth_of(case), [], []
    for number in range(num_sets):
        held = draw(rng, case)
        if held.known[0].ranks is None:
            continue
        if case.figure == "recall":
            found = rate_estimates(held, [0.0])[0]["recall"]
        elif case.figure == "auroc":
            found = area_estimates(held).auroc[0]
        else:  # at any number of patients: those that have 10 where 8 are expected have a prevalence above the truth's
            spread = auprc_spread(held.known[0], held.num_patients)
            ends = logit_interval(spread) if 0 < spread.value < 1 and spread.df > 0 else (None, None)
            found = Estimate(spread.value, *ends, None)
        ours.append(found)
        if number < num_percentile and case.figure != "recall":
            row = 0 if case.figure == "auroc" else 1
            replicates_K = area_replicates(PatientResamples(held.num_patients, 400, threads=1), held)[row, 0]
            low, high = np.nanquantile(replicates_K, [0.025, 0.975])
            percentile.append(Estimate(found.value, float(low), float(high), None))
    return {**case._asdict(), "value": truth, "distcxr": _cover(ours, truth), "percentile": _cover(percentile, truth)}


def _cover(found: list[Estimate], truth: float) -> dict[str, float | None]:
    """The share of intervals that hold the truth (two digits of rounding spared), their mean width, and of how many."""
    ends = [(one.low, one.high) for one in found if one.low is not None and one.high is not None]
    if not ends:
        return {"coverage": None, "width": None, "given": 0.0}
    held = [low - 1e-9 <= truth <= high + 1e-9 for low, high in ends]
    assert all(low < high for low, high in ends) or found[0].reason is None
    width = float(np.mean([high - low for low, high in ends]))
    return {"coverage": float(np.mean(held)), "width": width, "given": len(ends) / len(found)}


class Split(NamedTuple):
    """Labels, patients and groups; no scores."""

    findings: tuple[str, ...]
    targets_NC: NDArray[np.uint8]
    patient_id: NDArray[np.str_]
    groupings: tuple[Grouping, ...]


def official_test(folder: Path) -> Split:
    """NIH ChestX-ray14's, from `Data_Entry_2017_v2020.csv` and `test_list.txt`."""
    wanted = set((folder / "test_list.txt").read_text().split())
    with (folder / "Data_Entry_2017_v2020.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["Image Index"] in wanted]
    labels = [set(row["Finding Labels"].split("|")) for row in rows]
    findings = tuple(sorted(set().union(*labels) - {"No Finding"}))
    targets_NC = np.array([[name in found for name in findings] for found in labels], dtype=np.uint8)
    patients = np.array([row["Patient ID"] for row in rows])
    sex_key = "Patient Sex" if "Patient Sex" in rows[0] else "Patient Gender"
    return Split(findings, targets_NC, patients, (
        by_name("sex", np.array([row[sex_key] for row in rows])),
        by_age(np.array([row["Patient Age"] for row in rows], dtype=np.float32)),
        by_name("view", np.array([row["View Position"] for row in rows])),
        by_images_per_patient(np.unique(patients, return_inverse=True)[1]),
    ))  # fmt: skip


def null_report(task: tuple[Split, int]) -> tuple[int, int, list[bool]]:
    """Scores with an AUROC of .8 in every group: pairs tested, false differences, and which intervals hold .8.

    Scores of a patient's images are correlated, and so are the findings' (by one half of what a patient has in common).
    """
    split, seed = task
    rng = np.random.default_rng([seed, 16])
    _, row_N = np.unique(split.patient_id, return_inverse=True)
    patients, num = int(row_N.max()) + 1, len(split.findings)
    shared = (rng.normal(size=(patients, 1)) + rng.normal(size=(patients, num))) / math.sqrt(2)
    own = rng.normal(size=split.targets_NC.shape)
    scores_NC = WITHIN_PATIENT**0.5 * shared[row_N] + (1 - WITHIN_PATIENT) ** 0.5 * own
    scores_NC += split.targets_NC * NORMAL.inv_cdf(0.8) * math.sqrt(2)
    mask_NC = np.ones_like(split.targets_NC)
    held = Scored.of(split.findings, scores_NC.astype(np.float32), split.targets_NC, mask_NC, split.patient_id)
    groups = score_subgroups(held, split.groupings)
    areas = area_estimates(held)
    ends = [(one.low, one.high) for one in (*areas.auroc, areas.macro_auroc)]
    held_by = [low is not None and high is not None and low <= 0.8 <= high for low, high in ends]
    return len(groups.tested), len(groups.differences), held_by


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row per figure, truth and kind of cluster, a column per number of positive patients."""
    counts = sorted({row["patients"] for row in rows})
    lines = ["| figure | images | truth | " + " | ".join(map(str, counts)) + " |", "|---" * (3 + len(counts)) + "|"]
    keys = dict.fromkeys(
        tuple(row[key] for key in ("figure", "images", "truth", "prevalence", "spread")) for row in rows
    )
    for key in keys:
        figure, images, truth, prevalence, spread = key
        cells = []
        for count in counts:
            row = next((row for row in rows if row["patients"] == count and key == tuple(
                row[name] for name in ("figure", "images", "truth", "prevalence", "spread"))), None)  # fmt: skip
            cells.append("" if row is None else f"{_text(row['distcxr'])} ({_text(row['percentile'])})")
        about = f", prevalence {prevalence:g}" if figure == "auprc" else f", spread {spread:g}" if spread != 1 else ""
        lines.append(f"| {figure} | {images} | {truth:g}{about} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _text(found: dict[str, float | None]) -> str:
    return "-" if found["coverage"] is None else f"{found['coverage']:.3f}".lstrip("0")


def main() -> int:
    """Measure, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few rows, few data sets")
    parser.add_argument("--sets", type=int, help="data sets per row (default 2000, 200 with --quick)")
    parser.add_argument("--percentile", type=int, help="of these with percentiles beside (default a tenth)")
    parser.add_argument(
        "--nih", type=Path, help="a folder with NIH's label file and test_list.txt: null reports on them"
    )
    parser.add_argument("--reports", type=int, default=400, help="null reports (default %(default)s)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    num_sets = args.sets or (200 if args.quick else 2000)
    num_percentile = num_sets // 10 if args.percentile is None else args.percentile
    content: dict[str, Any] = {"date": time.strftime("%Y-%m-%d %H:%M"), "sets": num_sets, "percentile": num_percentile}
    with ProcessPoolExecutor(args.workers) as pool:
        if args.nih is None:
            tasks = [(case, num_sets, num_percentile) for case in cases(args.quick)]
            content["rows"] = list(pool.map(measure, tasks))
            print(table(content["rows"]))
        else:
            split = official_test(args.nih)
            found = list(pool.map(null_report, ((split, seed) for seed in range(args.reports)), chunksize=4))
            held = np.array([report[2] for report in found]).mean(axis=0)
            content["null"] = {
                "reports": args.reports,
                "tested": found[0][0],
                "with_a_difference": float(np.mean([report[1] > 0 for report in found])),
                "coverage": dict(zip((*split.findings, "macro"), held.tolist(), strict=True)),
            }
            print(json.dumps(content["null"], indent=1))
    if args.json:
        args.json.write_text(json.dumps(content, indent=1, allow_nan=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
