"""Real training jobs with one fault each, at a random moment; the same command then has to end as if nothing was.

    python tests/faults/campaign.py --cases 200 --seed 0 --json faults.json

Each case has a seed of its own, printed with it; `--cases 1 --seed SEED` and the same kinds and worlds run it again.
What is required of every case is in `required.py`, the faults are in `kinds.py`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from faults.case import Case, Place
from faults.figures import table
from faults.kinds import KINDS
from faults.preparing import prepare
from faults.required import problems_after

WORLDS = (1, 2, 4)


def run_case(place: Place, seed: int, kinds: Sequence[str], worlds: Sequence[int]) -> tuple[Case, list[str], float]:
    """The case of a seed: kind and world follow from it alone."""
    chosen = random.Random(seed)
    kind, world_size = kinds[seed % len(kinds)], chosen.choice(list(worlds))
    folder = place.folder / f"case-{seed}"
    folder.mkdir()
    case = Case(place, kind, world_size, chosen, folder, f"{os.getpid()}-{seed}")
    started_s = time.monotonic()
    try:
        problems = problems_after(case, KINDS[kind](case))
    finally:
        subprocess.run(["umount", str(case.output)], stderr=subprocess.DEVNULL, check=False)
    if not problems:
        shutil.rmtree(folder)
    return case, problems, time.monotonic() - started_s


def figures_of_case(place: Place, seed: int, kinds: Sequence[str], worlds: Sequence[int]) -> dict[str, Any]:
    """The same, for a process of its own: a harness that fails is a problem of that case, not the campaign's end."""
    try:
        case, problems, seconds = run_case(place, seed, kinds, worlds)
    except Exception as error:
        kind, world_size = kinds[seed % len(kinds)], random.Random(seed).choice(list(worlds))
        problems = [f"the campaign itself: {type(error).__name__}: {error}"]
        return {"seed": seed, "kind": kind, "world_size": world_size, "seconds": 0.0, "problems": problems}
    return {
        "seed": seed, "kind": case.kind, "world_size": case.world_size, "seconds": round(seconds, 1),
        "problems": problems,
    }  # fmt: skip


def _semaphores() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("sem.*")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the first case; the next ones follow")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--worlds", nargs="+", type=int, default=list(WORLDS))
    parser.add_argument("--at-once", type=int, default=2, help="cases that run at the same time")
    parser.add_argument("--json", type=Path, help="write the figures to this file after every case")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="distcxr-faults-"))
    place = prepare(folder, args.worlds)
    times = ", ".join(f"{what}: {seconds:.1f} s" for what, seconds in place.straight_s.items())
    print(f"{folder}: undisturbed, by ranks and store: {times}, launch: {place.launch_s:.1f} s", flush=True)
    semaphores, started_s, cases = _semaphores(), time.monotonic(), []
    figures: dict[str, Any] = {
        "seed": args.seed, "asked": args.cases, "worlds": args.worlds, "at_once": args.at_once, "cases": cases,
        "cores": len(os.sched_getaffinity(0)), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    # processes, not threads: two threads that ask a fork server's child for its exit code get one between them
    with ProcessPoolExecutor(args.at_once, multiprocessing.get_context("spawn")) as pool:
        seeds = range(args.seed, args.seed + args.cases)
        for done in as_completed([pool.submit(figures_of_case, place, one, args.kinds, args.worlds) for one in seeds]):
            case = done.result()
            cases.append(case)
            shown = "; ".join(case["problems"]) if case["problems"] else "whole"
            print(
                f"seed {case['seed']}: {case['kind']}, {case['world_size']} ranks, {case['seconds']:.1f} s: {shown}",
                flush=True,
            )
            figures["semaphores_left"] = len(_semaphores() - semaphores)
            figures["total_s"] = round(time.monotonic() - started_s, 1)
            if args.json:
                args.json.write_text(json.dumps(figures, indent=1) + "\n")
    failed = [case for case in cases if case["problems"]]
    print(table(cases))
    print(f"{figures['semaphores_left']} named semaphores are left in /dev/shm")
    print(f"{len(cases) - len(failed)} of {len(cases)} cases whole, {figures['total_s']:.0f} s")
    if not failed:
        shutil.rmtree(folder)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
