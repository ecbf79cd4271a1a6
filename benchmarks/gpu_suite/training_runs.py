"""Training runs through launch.py, as a user starts them, and what their run folders then hold.

    python -m gpu_suite.training_runs train RECIPE [key=value ...] --output FOLDER --json FILE
    python -m gpu_suite.training_runs cut RECIPE [key=value ...] --output FOLDER --json FILE

`cut` kills a run with SIGKILL, starts it again and compares it with two that nobody disturbed. What those two differ by
is what a GPU's order of summation does; a resumed run may differ by no more.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_suite.execute import GRACE_S, Ended, end_on_signal, execute

CUT_STEPS, CUT_AFTER, CUT_EVERY = 24, 9, 4
"""Updates of a run that is killed, after how many it is, and how often it saves."""
_EXACT = ("train.precision=no", "train.tf32=false")
_NOISE = 10.0
"""How many times the difference of two undisturbed runs a resumed one may differ by, where they are not equal."""

Row = dict[str, Any]


def main() -> int:
    """Run, write the rows, and end with 1 where a run failed or resumed elsewhere."""
    args = arguments(__doc__ or "", {"train": train, "cut": cut})
    rows = args.work(args)
    args.json.write_text(json.dumps(rows, indent=1))
    for row in rows:
        print(row)
    return int(any(row.get("note") for row in rows))


def arguments(doc: str, verbs: Mapping[str, Any]) -> argparse.Namespace:
    """The command line of this module and of `ranks`; `work` is what the verb stands for."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("verb", choices=verbs)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--output", type=Path, required=True, help="emptied before a run")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--like", type=Path, help="a run on the same pixels, to compare losses with")
    parser.add_argument("--library", type=Path, help="a libnccl.so.2 to load in place of torch's")
    args = parser.parse_intermixed_args()
    args.work = verbs[args.verb]
    end_on_signal()
    return args


def train(args: argparse.Namespace) -> list[Row]:
    """One run from its start to its end."""
    ended = launch(args.recipe, args.overrides, args.output)
    row = {"what": "train", **figures(args.output, ended)}
    if args.like:
        row["differs_by"] = finite(difference(args.like, args.output))
    return [row]


def cut(args: argparse.Namespace) -> list[Row]:
    """Two undisturbed runs, one that is killed, and the same one resumed."""
    more = [
        *args.overrides, *_EXACT, f"train.max_steps={CUT_STEPS}", f"checkpoint.every={CUT_EVERY}st",
        "eval.splits=[val]", "eval.every=4ep",
    ]  # fmt: skip
    first, second, killed = (args.output / name for name in ("first", "second", "killed"))
    rows = []
    for folder in (first, second):
        rows.append({"what": "undisturbed", **figures(folder, launch(args.recipe, more, folder))})
    noise = difference(first, second)

    def is_time() -> bool:
        return len(losses(killed)) >= CUT_AFTER and any((killed / "checkpoints").glob("last-*/checkpoint.json"))

    ended = launch(args.recipe, more, killed, stop_when=is_time, grace_s=0)
    lived = len(losses(killed))
    rows.append({"what": "killed", "steps": lived, "seconds": round(ended.seconds, 1), "note": ""})
    if ended.code is not None or lived >= CUT_STEPS:
        rows[-1]["note"] = f"it ended by itself (status {ended.code}) after {lived} steps, before it could be killed"
    again = launch(args.recipe, more, killed, anew=False)
    found = difference(first, killed)
    row = {"what": "resumed", **figures(killed, again), "undisturbed_differ_by": finite(noise)}
    row |= {"differs_by": finite(found), "bit_equal": found == 0}
    if not row["note"] and not found <= _NOISE * noise:
        row["note"] = f"losses differ by {found:.3g}, those of undisturbed runs by {noise:.3g}"
    return [*rows, row]


def launch(
    recipe: str, overrides: Sequence[str], output: Path, *, ranks: int = 1, anew: bool = True,
    environment: Mapping[str, str] | None = None, stop_when: Any = lambda: False, grace_s: float = GRACE_S,
) -> Ended:  # fmt: skip
    """Start launch.py with a launcher and wait for it; its output is printed.

    Args:
        anew: empty the run folder first.
        environment: variables to add.
        stop_when, grace_s: of `execute`.
    """
    if anew:
        shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    if ranks == 1:
        launcher = ["accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
        launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    else:
        launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    command = [sys.executable, "-m", *launcher, "launch.py", recipe, *overrides, f"output={output}"]
    print("$", " ".join(command), flush=True)
    ended = execute(
        command, seconds=float("inf"), log=output / "launch.log", environment={**os.environ, **(environment or {})},
        stop_when=stop_when, grace_s=grace_s,
    )  # fmt: skip
    print(ended.output, flush=True)
    return ended


def figures(folder: Path, ended: Ended) -> Row:
    """A run's figures from its folder; `note` has what went wrong."""
    rows = step_rows(folder)
    values = [float(row["loss"]) for row in rows]
    row: Row = {
        "run": folder.name, "steps": len(rows), "seconds": round(ended.seconds, 1),
        "loss_first": values[0] if values else None, "loss_last": values[-1] if values else None,
        "note": "" if ended.code == 0 else f"launch.py ended with status {ended.code}",
    }  # fmt: skip
    if len(rows) > 1:  # the first holds the start
        row["img_per_s"] = statistics.median(float(one["img_per_s"]) for one in rows[1:])
        row["data_wait_pct"] = statistics.median(float(one["data_wait_pct"]) for one in rows[1:])
        row["memory_mb"] = max(float(one["memory_mb"]) for one in rows)
    if not row["note"] and not (values and all(map(math.isfinite, values))):
        row["note"] = "a loss is not finite, or there is none"
    return row


def step_rows(folder: Path) -> list[dict[str, str]]:
    """Whole rows of a run's steps.csv."""
    try:
        rows = list(csv.DictReader((folder / "steps.csv").read_text().splitlines()))
    except OSError:
        return []
    return [row for row in rows if all(row.values())]


def losses(folder: Path) -> dict[int, float]:
    """Loss by step."""
    return {int(row["step"]): float(row["loss"]) for row in step_rows(folder)}


def difference(one: Path, other: Path) -> float:
    """The largest difference of two runs' losses at a step, relative to the first's; infinite if steps are missing."""
    first, second = losses(one), losses(other)
    if first.keys() != second.keys() or not first:
        return float("inf")
    return max(abs(first[step] - second[step]) / max(abs(first[step]), 1e-12) for step in first)


def finite(value: float) -> float | None:
    """What JSON can hold."""
    return value if math.isfinite(value) else None


if __name__ == "__main__":
    sys.exit(main())
