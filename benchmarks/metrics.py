"""Measures exact AUROC and patient-level intervals beside scikit-learn, torchmetrics and a plain bootstrap loop.

    python benchmarks/metrics.py --quick               within a minute
    python benchmarks/metrics.py --check --json metrics.json

Synthetic logits of NIH's official test in size and prevalence: 25,596 images of 2,797 patients, 14 findings. Ways to
the same figure take turns, window by window; the median counts. A loop over 1,000 resamples is timed on a few of them
and scaled up. Compiling (once per machine) is not counted. One process; resampling patients is part of the time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from metrics_bench.table import Claim, Row, claims_table, table, take_turns
from numpy.typing import NDArray

from distcxr.metrics.areas import area_estimates
from distcxr.metrics.bootstrap import PatientResamples, area_replicates
from distcxr.metrics.calibration import calibration_estimates, fit_temperature
from distcxr.metrics.decision import decision_curves
from distcxr.metrics.delong import delong_interval
from distcxr.metrics.paired_tests import compare_models
from distcxr.metrics.recalibration import recalibrate
from distcxr.metrics.scored import Scored
from distcxr.metrics.subgroup import by_age, by_images_per_patient, by_name, score_subgroups
from distcxr.metrics.summary import summarise
from distcxr.metrics.threshold import Rule, choose_threshold, rate_estimates

# Of the 14 findings in the official test, by frequency: as many positives make the same work.
PREVALENCE = (.239, .180, .128, .109, .104, .071, .063, .045, .043, .042, .036, .022, .017, .003)  # fmt: skip
LARGE_IMAGES_PER_PATIENT = 3.6  # NIH's, all splits
LOOP_REPLICATES = {True: 1, False: 4}  # quick or not


class Data(NamedTuple):
    """Shapes as in `distcxr.metrics`."""

    logits_NC: NDArray[np.float32]
    targets_NC: NDArray[np.uint8]
    mask_NC: NDArray[np.uint8]
    patient_id: NDArray[np.int64]


def main() -> int:
    """Measure, print the tables; exit status 1 where --check finds a promise broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer windows, no memory at --large")
    parser.add_argument("--check", action="store_true", help="fail where a promise is not kept")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--samples", type=int, default=25_596)
    parser.add_argument("--patients", type=int, default=2_797)
    parser.add_argument("--large", type=int, default=1_000_000, help="samples of the large case (default %(default)s)")
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--windows", type=int, help="the median window counts (default 5, 3 with --quick)")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.windows = args.windows or (3 if args.quick else 5)
    if min(args.samples, args.large, args.windows) < 1 or args.replicates < 2 or not 1 < args.patients <= args.samples:
        parser.error("--samples, --large and --windows have to be at least 1, --replicates and --patients 2")
    if args.check and args.quick:
        parser.error("--check needs every figure: leave --quick away")
    if args.memory_of:
        print(_peak_mb(args.memory_of, args.replicates))
        return 0
    if args.json and not args.json.parent.is_dir():
        parser.error(f"--json: the folder {args.json.parent} is not there")
    rows, facts = measure(args)
    found = claims(args, rows, facts)
    print(
        f"{facts['cpu']}, {facts['cores']} cores, Python {facts['python']}, numpy {facts['numpy']}, {facts['date']}\n"
    )
    print(f"{table(rows)}\n\n{claims_table(found)}")
    if args.json:
        kept = [asdict(claim) | {"holds": claim.holds} for claim in found]
        content = {"facts": facts, "rows": [asdict(row) for row in rows], "claims": kept}
        args.json.write_text(json.dumps(content, indent=1, allow_nan=False))
    return int(args.check and not all(claim.holds for claim in found))


def make_data(num: int, patients: int, seed: int = 0) -> Data:
    """Logits and labels that images of a patient share in part; few patients have many images, as in NIH."""
    rng = np.random.default_rng(seed)
    share_P = rng.pareto(1.5, size=patients) + 0.3
    row_N = np.sort(
        np.concatenate((np.arange(patients), rng.choice(patients, num - patients, p=share_P / share_P.sum())))
    )
    logits, targets = (np.empty((num, len(PREVALENCE)), dtype=kind) for kind in (np.float32, np.uint8))
    for column, prevalence in enumerate(PREVALENCE):  # one at a time: the memory measured is not to be this
        ill_N = rng.normal(size=patients)[row_N] + rng.normal(size=num)
        targets[:, column] = ill_N > np.quantile(ill_N, 1 - prevalence)
        logits[:, column] = ill_N + 1.5 * rng.normal(size=num) - 3
    return Data(logits, targets, np.ones_like(targets), row_N)


def measure(args: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """Every row, and what they were measured on."""
    small = make_data(args.samples, args.patients)
    few = scored(Data(*(part[:64] for part in small)))
    area_replicates(PatientResamples(few.num_patients, 2), few)  # compiles
    rows = _areas(small, args.windows)
    large = make_data(args.large, max(2, round(args.large / LARGE_IMAGES_PER_PATIENT)))
    rows += _areas(large, 1 if args.quick else 3)
    del large
    gap = _largest_gap(small)
    rows += _bootstrap(small, args)
    rows += _figures(small, args)
    memory_mb = None
    if not args.quick:
        command = [sys.executable, __file__, "--memory-of", str(args.large), "--replicates", str(args.replicates)]
        memory_mb = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return rows, {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "replicates": args.replicates,
        "patients": args.patients,
        "memory_mb": memory_mb,
        "largest_gap_to_sklearn": gap,
        "gather_mb": args.samples * (4 * len(PREVALENCE) + 8) / 1e6,
    }


def _areas(data: Data, windows: int) -> list[Row]:
    ways: dict[str, Callable[[], object]] = {
        "scikit-learn loop": lambda: sklearn_areas(data),
        "distcxr": lambda: summarise("test", scored(data)),  # checks and average precision with it
    }
    note = ""
    try:
        import torch
        from torchmetrics.functional.classification import multilabel_auroc

        tensors = torch.from_numpy(data.logits_NC).sigmoid(), torch.from_numpy(data.targets_NC).long()
        ways["torchmetrics"] = lambda: multilabel_auroc(*tensors, num_labels=len(PREVALENCE), average="none")
    except ImportError:
        note = "not installed: pip install torchmetrics"
    rows = take_turns("AUROC", len(data.logits_NC), ways, windows)
    return rows + ([Row("AUROC", "torchmetrics", len(data.logits_NC), None, note=note)] if note else [])


def _bootstrap(data: Data, args: argparse.Namespace) -> list[Row]:
    """The loops resample patients as ours does, gather their rows, and score every finding anew."""
    few = min(args.replicates, LOOP_REPLICATES[args.quick])
    held = scored(data)
    resamples = PatientResamples(held.num_patients, args.replicates)

    def loop(areas: Callable[[Data], object]) -> Callable[[], object]:
        def run() -> None:
            for replicate in range(few):
                row = np.repeat(np.arange(len(data.logits_NC)), resamples.weights(replicate)[held.patient_N])
                areas(Data(*(part[row] for part in data)))

        return run

    rows = take_turns(
        f"AUROC, {args.replicates} replicates",
        len(data.logits_NC),
        {
            "scikit-learn loop": loop(sklearn_areas),
            "loop of distcxr's exact AUROC": loop(lambda data: summarise("test", scored(data))),
            "distcxr (average precision with it)": lambda: area_replicates(
                PatientResamples(held.num_patients, args.replicates), scored(data)
            ),
        },
        args.windows,
        scale={name: args.replicates / few for name in ("scikit-learn loop", "loop of distcxr's exact AUROC")},
    )
    for row in rows[:2]:
        row.note = f"from {few} replicates"
    return rows


def _figures(data: Data, args: argparse.Namespace) -> list[Row]:
    """The other parts of a report on their own, with resamples of their own, and all of them on the same resamples."""
    rng = np.random.default_rng(1)
    num = len(data.logits_NC)
    groupings = [
        by_name("sex", rng.choice(np.array(["F", "M"]), size=num)),
        by_age(rng.uniform(5, 90, size=num).astype(np.float32)),
        by_name("view", rng.choice(np.array(["AP", "PA"]), size=num)),
        by_images_per_patient(data.patient_id),
    ]
    held = scored(data)
    other_NC = (data.logits_NC + rng.normal(size=data.logits_NC.shape)).astype(np.float32)
    other = scored(data._replace(logits_NC=other_NC))
    parts: dict[str, Callable[[PatientResamples], object]] = {
        "AUROC and average precision": lambda _: area_estimates(held),
        "thresholds by 4 rules": lambda resamples: [
            choose_threshold(known, rule)
            for known in held.known
            for rule in (Rule("youden"), Rule("max_f1"), Rule("recall", 0.9), Rule("specificity", 0.9))
        ],
        "6 rates at a threshold": lambda _: rate_estimates(held, [-2.0] * len(PREVALENCE)),
        "Brier score and ECE": lambda resamples: calibration_estimates(resamples, held),
        "recalibration": lambda resamples: [recalibrate(known) for known in held.known],
        "decision curves": lambda resamples: decision_curves(resamples, held),
        "temperatures": lambda resamples: [fit_temperature(known) for known in held.known],
        "DeLong's intervals": lambda resamples: [delong_interval(known) for known in held.known],
        "AUROC in subgroups": lambda _: score_subgroups(held, groupings),
        "two models compared": lambda resamples: compare_models(resamples, held, other),
    }
    ways: dict[str, Callable[[], object]] = {
        name: lambda part=part: part(PatientResamples(held.num_patients, args.replicates))  # type: ignore[misc]
        for name, part in parts.items()
    }

    def everything() -> None:
        resamples = PatientResamples(held.num_patients, args.replicates)
        for part in parts.values():
            part(resamples)

    ways["all of these"] = everything
    rows = take_turns("", num, ways, args.windows)
    return [Row(row.way, "distcxr", num, row.wall_s, row.cpu_s) for row in rows]


def scored(data: Data) -> Scored:
    """Checked and sliced: a part of every measurement of areas."""
    return Scored.of([str(column) for column in range(len(PREVALENCE))], *data)


def sklearn_areas(data: Data) -> list[float]:
    """The usual loop."""
    from sklearn.metrics import roc_auc_score

    return [roc_auc_score(data.targets_NC[:, c], data.logits_NC[:, c]) for c in range(data.logits_NC.shape[1])]


def _largest_gap(data: Data) -> float:
    """Between scikit-learn's areas and ours."""
    ours = [found.auroc for found in summarise("test", scored(data)).findings.values()]
    return float(np.abs(np.array(ours) - sklearn_areas(data)).max())


def _peak_mb(num: int, replicates: int) -> float:
    """Peak memory of this process, libraries and all, after every figure of `num` samples."""
    data = make_data(num, max(2, round(num / LARGE_IMAGES_PER_PATIENT)))
    held = scored(data)
    resamples = PatientResamples(held.num_patients, replicates)
    summarise("test", held)
    area_estimates(held)
    rate_estimates(held, [-2.0] * len(PREVALENCE))
    calibration_estimates(resamples, held)
    for known in held.known:
        fit_temperature(known)
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent's memory before the exec
    return round(int(status.split("VmHWM:")[1].split()[0]) / 1e3, 1)


def claims(args: argparse.Namespace, rows: list[Row], facts: dict[str, Any]) -> list[Claim]:
    """What distcxr promises, and these rows' figures."""

    def row(figure: str, samples: int) -> Row:
        return next(r for r in rows if (r.figure, r.samples) == (figure, samples) and r.way.startswith("distcxr"))

    many = row(f"AUROC, {args.replicates} replicates", args.samples)
    return [
        Claim(f"AUROC of {args.samples:,}, times scikit-learn's speed", "≥", 6, row("AUROC", args.samples).ratio),
        Claim(f"AUROC of {args.large:,}, times scikit-learn's speed", "≥", 5, row("AUROC", args.large).ratio),
        Claim(f"{args.replicates} replicates, times the loop's speed", "≥", 100, many.ratio),
        Claim(f"{args.replicates} replicates, s", "≤", 1.5, many.wall_s),
        Claim("every figure of a report, s", "≤", 30, row("all of these", args.samples).wall_s),
        Claim(f"memory at {args.large:,}, MB", "≤", 1500, facts["memory_mb"]),
        Claim("gathered logits and ids, MB", "≤", 2, facts["gather_mb"]),
        Claim("difference from scikit-learn", "≤", 1e-12, facts["largest_gap_to_sklearn"]),
    ]


def _cpu_name() -> str:
    text = Path("/proc/cpuinfo").read_text()
    return next((line.split(":")[1].strip() for line in text.splitlines() if "model name" in line), platform.machine())


if __name__ == "__main__":
    sys.exit(main())
