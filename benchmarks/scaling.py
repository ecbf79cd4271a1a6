"""Measures the parts of a recipe's training step on 1, 2 and 4 ranks, and predicts 8 to 1,024 GPUs.

    python benchmarks/scaling.py --quick                                     shows that it works; a CPU will do
    python benchmarks/scaling.py recipes/densenet121.yaml --batch 64 --root /data/nih --json scaling.json
    python benchmarks/scaling.py --from scaling.json --latency-us 5 --bandwidth-gbs 100 --node-gpus 8

Every world is launched as training is, by `accelerate launch`, and steps as training does, once with the exchange of
gradients and once without (`no_sync`): the difference is what training waits for. In weak scaling every rank has
--batch images, in strong scaling all ranks together. With GPUs that is NCCL; without, gloo on shared cores: those
figures mean nothing for GPUs.

What is measured is in the first table. The others are predictions: `scaling_bench/model.py` holds the formula and what
it assumes. The link inside a node is fitted to measured all-reduces; the link between nodes is given, or fitted if
rows of several nodes are there (`scaling_bench/worker.py` describes how to get them).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from loader_bench.images import num_gpus
from scaling_bench.fit import fit, fit_between
from scaling_bench.model import Cluster, Link
from scaling_bench.table import PROGRESS, checked, facts, measured, predicted, settings

from distcxr.recipe import load_recipe

Row = dict[str, Any]
ROOT = Path(__file__).parents[1]
WORKER = Path(__file__).parent / "scaling_bench" / "worker.py"
QUICK_RECIPE = ROOT / "recipes" / "quickstart.yaml"
QUICK = {"ranks": [1, 2], "batch": 16, "steps": 4, "windows": 3, "largest_mb": 4}
FULL = {"ranks": [1, 2, 4], "batch": 64, "steps": 10, "windows": 7, "largest_mb": 64}
# What a node's network cards carry together, at four fifths of what is printed on them; latencies of a hop.
NETWORKS = {
    "10 Gb/s Ethernet": Link(30e-6, 1e9),
    "100 Gb/s": Link(5e-6, 10e9),
    "400 Gb/s": Link(5e-6, 40e9),
    "8 x 400 Gb/s": Link(5e-6, 320e9),
}
SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
SMALLEST_IMAGES, PHANTOM_SIZE = 400, 64


def main() -> int:
    """Measure, or read earlier results, and explain them."""
    parser = _parser()
    args = parser.parse_intermixed_args()
    if "=" in args.recipe.name:  # only keys: they are of the default recipe
        args.recipe, args.overrides = QUICK_RECIPE, [str(args.recipe), *args.overrides]
    try:
        return run(args)
    except ValueError as error:
        parser.error(str(error))


def run(args: argparse.Namespace) -> int:
    """One call of the command; its exit status."""
    for name, value in (QUICK if args.quick else FULL).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
            if name == "ranks" and num_gpus():
                args.ranks = [ranks for ranks in value if ranks <= num_gpus()]
    _check(args)
    if args.from_:
        rows: list[Row] = [row for path in args.from_ for row in _read(path)]
    else:
        rows = measure(args)
        if args.json:  # first of all: nothing that follows may lose it
            args.json.write_text(json.dumps(rows, indent=1))
    given = None
    if args.node_bandwidth_gbs:
        given = Link(args.node_latency_us / 1e6, args.node_bandwidth_gbs * 1e9)
    model, inside = fit(rows, given)
    networks = dict(NETWORKS)
    between = fit_between([row for row in rows if row["kind"] == "all_reduce" and row["nodes"] > 1], inside)
    if between is not None:
        networks = {"measured between nodes": between}
    if args.bandwidth_gbs:
        networks = {f"{args.bandwidth_gbs:g} GB/s a node": Link(args.latency_us / 1e6, args.bandwidth_gbs * 1e9)}
    roomy = replace(model, devices=args.node_gpus)  # a GPU for every rank, also where a CPU's cores were shared
    clusters = {name: Cluster(args.node_gpus, inside, link) for name, link in networks.items()}
    print(f"{facts(rows)}\n\n## Measured\n\n{measured(rows)}")
    print(f"\n## Does the model hold?\n\n{checked(rows, given)}")
    print(f"\n## Predicted, not measured\n\n{predicted(roomy, inside, clusters, args.sizes or SIZES, given is None)}")
    print(f"\n## DDP settings, predicted\n\n{settings(roomy, clusters, args.sizes or SIZES)}")
    return 0


def measure(args: argparse.Namespace) -> list[Row]:
    """The rows of one world after the other."""
    gpus = 0 if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1") else num_gpus()
    if gpus and max(args.ranks) > gpus:
        raise ValueError(f"--ranks {max(args.ranks)}: this node has {gpus} GPUs, and a GPU serves one rank")
    load_recipe(args.recipe, args.overrides)  # reports a mistake in it once, instead of every rank later
    rows: list[Row] = []
    busy_cores = round(os.getloadavg()[0], 1)  # before we are busy ourselves
    with tempfile.TemporaryDirectory(prefix="distcxr-scaling-", dir=args.work) as place:
        work = Path(place)
        root = args.root or os.environ.get("DISTCXR_NIH_ROOT")
        if not root:
            images = max(SMALLEST_IMAGES, 4 * args.batch * max(args.ranks))
            _log(f"no --root and no DISTCXR_NIH_ROOT: {images} synthetic X-rays stand in for real ones")
            root = work / "phantom"
            drawing = ["phantom", str(root), "--images", str(images), "--size", str(PHANTOM_SIZE)]
            subprocess.run([sys.executable, "-m", "distcxr.cli", *drawing], check=True, stdout=subprocess.DEVNULL)
        threads = args.threads or max(1, len(os.sched_getaffinity(0)) // max(args.ranks))
        for ranks in args.ranks:
            _log(f"{ranks} rank{'s' if ranks > 1 else ''}")
            rows += _measure_world(args, ranks, Path(root), work, threads)
    facts = {"command": " ".join(sys.argv), "date": datetime.date.today().isoformat(), "busy_cores": busy_cores}
    return [row | facts for row in rows]


def _measure_world(args: argparse.Namespace, ranks: int, root: Path, work: Path, threads: int) -> list[Row]:
    several = ["--multi_gpu"] if ranks > 1 else []
    smaller = sorted({max(1, args.batch // number) for number in (2, 4, *args.ranks)} - {args.batch})
    found = work / f"rows{ranks}.json"
    command = [
        sys.executable, "-m", "accelerate.commands.launch", *several, "--num_processes", str(ranks),
        "--num_machines", "1", "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no",
        str(WORKER), str(args.recipe), "model.weights=none", f"data.root={root}", "data.missing=skip",
        f"output={work / f'run{ranks}'}", *args.overrides, "--json", str(found), "--batch", str(args.batch),
        "--steps", str(args.steps), "--windows", str(args.windows), "--threads", str(threads),
        "--largest-mb", str(args.largest_mb), *(["--batches", *map(str, smaller)] if ranks == 1 else []),
    ]  # fmt: skip
    paths = [str(WORKER.parents[1]), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads)}
    printed: list[str] = []
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as world:
        assert world.stdout is not None
        for line in world.stdout:
            printed.append(line)
            if line.startswith(PROGRESS):
                _log(line.removeprefix(PROGRESS).rstrip())
    if world.returncode or not found.exists():
        sys.stderr.writelines(printed)
        raise RuntimeError(f"the world of {ranks} ranks failed with code {world.returncode}; its output is above")
    rows: list[Row] = json.loads(found.read_text())
    return rows


def _read(path: Path) -> list[Row]:
    try:
        rows: list[Row] = json.loads(path.read_text())
        known = all(row["kind"] in ("step", "all_reduce") for row in rows)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"--from {path}: can't be read as rows of this benchmark ({error})") from error
    if not known:
        raise ValueError(f"--from {path}: these rows are not of this benchmark")
    return rows


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _check(args: argparse.Namespace) -> None:
    """Refuse what argparse lets through."""
    for name in ("batch", "steps", "windows", "largest_mb", "node_gpus", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: has to be at least 1")
    for name in ("latency_us", "bandwidth_gbs", "node_latency_us", "node_bandwidth_gbs"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name.replace('_', '-')} {value:g}: has to be more than 0")
    if args.steps * args.windows < 2:
        raise ValueError("--steps 1 --windows 1: one step alone has no deviation; measure at least 2")
    if min(args.ranks) < 1 or 1 not in args.ranks:
        raise ValueError(f"--ranks {' '.join(map(str, args.ranks))}: 1 has to be among them, the others are held to it")
    if any(size < 1 for size in args.sizes or ()):
        raise ValueError("--sizes: every number of GPUs has to be at least 1")
    for one, other in (("bandwidth_gbs", "latency_us"), ("node_bandwidth_gbs", "node_latency_us")):
        if bool(getattr(args, one)) != bool(getattr(args, other)):
            raise ValueError(f"--{one.replace('_', '-')} and --{other.replace('_', '-')} go together: give both")
    if args.from_ and args.json:
        raise ValueError("--from measures nothing: leave --json away")
    if args.json is not None and not args.json.parent.is_dir():
        raise ValueError(f"--json {args.json}: the folder {args.json.parent} is not there")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recipe", type=Path, nargs="?", default=QUICK_RECIPE, help="default: quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="train.bucket_mb=5, for example")
    parser.add_argument("--root", type=Path, help="the data (default: DISTCXR_NIH_ROOT, or synthetic X-rays)")
    parser.add_argument("--quick", action="store_true", help="1 and 2 ranks, few steps")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    parser.add_argument("--from", type=Path, nargs="+", metavar="FILE", dest="from_", help="rows of earlier runs")
    size = parser.add_argument_group("what is measured")
    size.add_argument("--ranks", type=int, nargs="+", help="default 1 2 4, quick 1 2; GPUs of this node at most")
    size.add_argument("--batch", type=int, help=f"images of a rank (default {FULL['batch']}, quick {QUICK['batch']})")
    size.add_argument("--steps", type=int, help="of a window")
    size.add_argument("--windows", type=int, help="the median counts")
    size.add_argument("--largest-mb", type=int, help="largest all-reduce, in MiB")
    size.add_argument("--threads", type=int, help="of a rank on a CPU (default: all cores shared by the most ranks)")
    size.add_argument("--work", type=Path, metavar="DIR", help="for what is made on the way (default: a temporary one)")
    asked = parser.add_argument_group("what is predicted")
    asked.add_argument("--sizes", type=int, nargs="+", help="numbers of GPUs (default 8 to 1024)")
    asked.add_argument("--node-gpus", type=int, default=8, help="of a node (default %(default)s)")
    asked.add_argument("--latency-us", type=float, help="between nodes; with --bandwidth-gbs")
    asked.add_argument("--bandwidth-gbs", type=float, help="between nodes, GB/s, all cards of a node together")
    asked.add_argument("--node-latency-us", type=float, help="inside a node, in place of what was measured")
    asked.add_argument("--node-bandwidth-gbs", type=float, help="inside a node, in place of what was measured")
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # a killed run, too, removes what it made
    sys.exit(main())
