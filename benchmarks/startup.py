"""Measures how long `distcxr train` takes to its first step, by the lines that it writes on the way.

    python benchmarks/startup.py recipes/quickstart.yaml data.root=data/phantom
    python benchmarks/startup.py recipes/densenet121.yaml data.root=/data/nih data.loader=cache --repeat 3

Starts the command anew each time, with `train.max_steps=1`, in a new run folder, and ends it once `steps.csv` has its
first row. Medians of wall-clock and CPU seconds, those of all its processes, from the command to the end of each phase.
The first start is left out: it fills the page cache. Other programs on the cores move wall-clock times, hardly CPU
seconds; --tree starts another copy of distcxr in turns with this one, to compare them under the same load.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from long_run import tree

from distcxr.runfolder.history import newest_step

ROOT = Path(__file__).parents[1]
PHASES = {
    "imports, recipe, labels": "run folder ",
    "reader chosen": "loader ",
    "network, optimiser": "warm-up: ",
    "warm-up": " parameters train ",
}
"""What ends a phase: words of a line of the log. The first step ends the last."""
FIRST_STEP = "first step"
_POLL_S, _LONGEST_S = 0.01, 300.0

Row = dict[str, Any]


class Moment(NamedTuple):
    """Seconds since the command."""

    wall_s: float
    cpu_s: float


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--processes", type=int, help="ranks (default: distcxr train's own)")
    parser.add_argument("--repeat", type=int, default=5, help="starts that count (default %(default)s)")
    parser.add_argument("--tree", type=Path, action="append", default=[], help="another copy of the repository")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every start")
    args = parser.parse_intermixed_args()
    rows: list[Row] = []
    for number in range(args.repeat + 1):
        for place in (ROOT, *args.tree):
            with tempfile.TemporaryDirectory(prefix="distcxr-startup-") as folder:
                try:
                    found = start(place, args, Path(folder))
                except RuntimeError as error:
                    print(f"error: {error}", file=sys.stderr)
                    return 1
            if number:
                rows.append({"tree": str(place)} | {phase: list(moment) for phase, moment in found.items()})
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    print(f"{args.recipe}, median of {args.repeat} starts, seconds since the command; load {os.getloadavg()[0]:.1f}\n")
    for place in (ROOT, *args.tree):
        print(f"{place}\n\n| until | wall clock | CPU |\n|---|---|---|")
        own = [row for row in rows if row["tree"] == str(place)]
        for phase in (*PHASES, FIRST_STEP):
            moments = [row[phase] for row in own if phase in row]
            if moments:
                wall_s, cpu_s = (statistics.median(values) for values in zip(*moments, strict=True))
                print(f"| {phase} | {wall_s:.1f} | {cpu_s:.1f} |")
        print()
    return 0


def start(place: Path, args: argparse.Namespace, folder: Path) -> dict[str, Moment]:
    """Start the training of the copy at `place` once; the end of each phase.

    Raises:
        RuntimeError: it ended, or took minutes, without a first step.
    """
    output = folder / "run"
    command = [
        sys.executable, "-m", "distcxr.cli", "train", args.recipe, *args.overrides, "train.max_steps=1",
        "eval.splits=[]", f"output={output}", *(["--processes", str(args.processes)] if args.processes else []),
    ]  # fmt: skip
    found: dict[str, Moment] = {}
    lines: list[str] = []
    environment = os.environ | {"PYTHONPATH": str(place), "PYTHONSAFEPATH": "1"}
    began_s = time.monotonic()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as training:

        def now() -> Moment:
            return Moment(time.monotonic() - began_s, sum(cpu_s(pid) for pid, _ in tree(training.pid)))

        def read() -> None:
            assert training.stderr is not None
            for line in training.stderr:
                lines.append(line)
                for phase, words in PHASES.items():
                    if words in line:
                        found.setdefault(phase, now())

        reading = threading.Thread(target=read)
        reading.start()
        try:
            while newest_step(output) is None:
                if training.poll() is not None or time.monotonic() - began_s > _LONGEST_S:
                    raise RuntimeError(f"no first step: {''.join(lines)[-2000:]}")
                time.sleep(_POLL_S)
            found[FIRST_STEP] = now()
        finally:
            training.terminate()
            reading.join()
    return found


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and of its children that have ended."""
    try:
        fields = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
