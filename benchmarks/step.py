"""Measures our training step and others' loops side by side, on the same images in the device's memory.

    python benchmarks/step.py                                      five networks; without a GPU, most of an hour
    python benchmarks/step.py --models densenet121 --precisions bf16 --check --json step.json
    python benchmarks/step.py --models densenet121 --batches 128 --loops ours timm --ours eager,compile,graphs
    python benchmarks/step.py --models densenet121 --batches 16 --loops ours --profile trace.json

All loops train the same network from random weights for 14 findings, whole optimiser updates, each in a process of its
own. They take turns, window by window; medians count, and ratios are of windows of the same round. timm and Lightning
are installed in pinned versions into environments that this makes once, beside this interpreter's torch; later runs
need no network.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from loader_bench.images import host_facts
from step_bench.conduct import measure
from step_bench.environments import DEFAULT, Python, Unavailable, python_for
from step_bench.flops import flop_per_image
from step_bench.job import Case, Job
from step_bench.loops import LOOPS, MODES
from step_bench.table import LEGEND, Row, checked, markdown, missing_row, profile_table, to_rows

MODELS = ("densenet121", "resnet50", "efficientnet_b4", "convnext_base", "vit_b_16")
BATCHES, PRECISIONS = (16, 4), ("bf16", "no")
SPARE_PHANTOMS, PHANTOM_SIZE = 400, 64  # beside those that ours takes its augmentation from; their pixels are not used


def main() -> int:
    """Measure every case and compare ours with the others; the exit status."""
    parser = _parser()
    args = parser.parse_args()
    try:
        _check(args)
    except ValueError as error:
        parser.error(str(error))
    return run(args)


def run(args: argparse.Namespace) -> int:
    """One call of the command; its exit status."""
    import torch

    from distcxr.data.readers.budget import thread_budget
    from distcxr.device import device_name

    device = "cuda" if torch.cuda.is_available() else "cpu"
    facts: Row = {
        "device": device_name(torch.device(device)), "on_gpu": device == "cuda", "threads": thread_budget(1),
        "torch": torch.__version__, "busy_before": host_facts()["busy_before"],
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/step.py", *sys.argv[1:]]),
    }  # fmt: skip
    cases = [Case(model, precision, batch, args.image_size)
             for model in args.models for precision in args.precisions for batch in args.batches]  # fmt: skip
    print(
        f"{facts['device']}, {facts['threads']} threads, torch {facts['torch']}, {args.image_size} px, median of "
        f"{args.windows} windows; before, other programs kept {facts['busy_before']:.0%} of the cores busy\n"
    )
    deadline_s = time.monotonic() + args.seconds if args.seconds else float("inf")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="distcxr-step-") as place:
        work = Path(place)
        pythons, missing = _interpreters(args)
        if "ours" in args.loops:
            _draw_phantoms(work / "phantom", 2 * max(args.batches) + SPARE_PHANTOMS)
        for number, case in enumerate(cases):
            begun_s = time.monotonic()
            lacking = missing
            found: list[Row] = []
            if begun_s < deadline_s:
                own_deadline_s = begun_s + (deadline_s - begun_s) / (len(cases) - number)
                found = _measure_case(args, case, number, pythons, facts, work, own_deadline_s)
            else:
                lacking = dict.fromkeys(args.loops, f"not reached in {args.seconds:g} s")
            found += [missing_row(case, loop, reason, facts) for loop, reason in lacking.items()]
            rows += found
            print(f"## {case}\n\n{markdown(found)}\n", flush=True)
            if args.json:  # now: whatever ends this costs the later cases alone
                args.json.write_text(json.dumps(rows, indent=1, allow_nan=False))
    print(LEGEND)
    print("\n".join(f"{name}: {LOOPS[name].what}." for name in args.loops))
    if not args.check:
        return 0
    table, all_hold = checked(rows, device == "cuda")
    print(f"\n{table}")
    return int(not all_hold)


def _measure_case(
    args: argparse.Namespace, case: Case, number: int, pythons: dict[str, Python], facts: Row, work: Path,
    deadline_s: float,
) -> list[Row]:  # fmt: skip
    entries = [(loop, mode, pythons[loop])
               for loop in pythons for mode in (args.ours if loop == "ours" else ("eager",))]  # fmt: skip
    entries.append(("ceiling", "eager", Python(sys.executable)))

    def job(loop: str, mode: str) -> Job:
        return Job(
            loop=loop, mode=mode, model=case.model, precision=case.precision, batch=case.batch,
            image_size=case.image_size, device="cuda" if facts["on_gpu"] else "cpu", threads=facts["threads"],
            data=str(work / "phantom"), output=str(work / f"run{number}-{loop}-{mode}"),
        )  # fmt: skip

    measured = measure(
        case, entries, job, work=work, steps=args.steps, windows=args.windows, deadline_s=deadline_s,
        trace=partial(_trace_file, args.profile, case, first=number == 0 and entries[0][:2]) if args.profile else None,
        log=_log,
    )  # fmt: skip
    if args.profile:
        for one in measured:
            if one.traced:
                print(profile_table(one.name, one.traced["table"], facts["on_gpu"]) + "\n")
    return to_rows(case, measured, flop_per_image(case.model, case.image_size), facts)


def _trace_file(wanted: Path, case: Case, name: str, *, first: Any) -> Path:
    """The file that was asked for, for the first loop of the first case; beside it, one for each other."""
    if first and name == (first[0] if first[1] == "eager" else " ".join(first)):
        return wanted
    stem, dot, suffix = wanted.name.partition(".")
    own = f"{stem}-{case.model}-{case.precision}-{case.batch}-{name.replace(' ', '-')}"
    return wanted.with_name(f"{own}{dot}{suffix}")


def _interpreters(args: argparse.Namespace) -> tuple[dict[str, Python], dict[str, str]]:
    """The interpreter of each loop that can run here, and why the others can't."""
    pythons, missing = {}, {}
    for name in args.loops:
        try:
            pythons[name] = python_for(LOOPS[name], args.environments)
        except Unavailable as error:
            missing[name] = f"{LOOPS[name].pins[0]} can't be installed: {error}"
            _log(f"{name} is left out: {missing[name]}")
        else:
            if pythons[name].note:
                _log(f"{name}: {pythons[name].note}")
    return pythons, missing


def _draw_phantoms(folder: Path, num: int) -> None:
    from distcxr.phantom.writing import write_phantom

    write_phantom(folder, images=num, size=PHANTOM_SIZE)


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _check(args: argparse.Namespace) -> None:
    """Refuse what argparse lets through."""
    import torch

    for name in ("batches", "image_size", "steps", "windows"):
        values = getattr(args, name)
        least = 2 if name == "batches" else 1  # BatchNorm's statistics of one image's last map would be its values
        if values is not None and min(values if isinstance(values, list) else [values]) < least:
            raise ValueError(f"--{name.replace('_', '-')}: has to be at least {least}")
    if args.seconds is not None and not args.seconds > 0:
        raise ValueError(f"--seconds {args.seconds:g}: has to be more than 0")
    unknown = [mode for mode in args.ours if mode not in MODES]
    if unknown or not args.ours:
        raise ValueError(f"--ours {','.join(args.ours)}: give some of {', '.join(MODES)}, with commas between them")
    if not torch.cuda.is_available():
        if "fp16" in args.precisions:
            raise ValueError("--precisions fp16 needs a GPU")
        if "graphs" in args.ours:
            raise ValueError("--ours graphs needs a GPU")
    for file in (args.json, args.profile):
        if file is not None and (file.is_dir() or not file.parent.is_dir()):
            raise ValueError(f"{file}: give a file in a folder that is there")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME", help="of torchvision")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES), metavar="N", help="default: 16 4")
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=("bf16", "fp16", "no"))
    parser.add_argument("--loops", nargs="+", default=list(LOOPS), choices=list(LOOPS), metavar="NAME",
                        help=f"of: {', '.join(LOOPS)}")  # fmt: skip
    parser.add_argument("--ours", type=lambda text: text.split(","), default=["eager"], metavar="MODES",
                        help=f"ways to run ours, with commas: {', '.join(MODES)} (default: eager)")  # fmt: skip
    parser.add_argument("--image-size", type=int, default=224, metavar="PX", help="default %(default)s")
    parser.add_argument("--steps", type=int, help="of a window (default: a few seconds of them)")
    parser.add_argument("--windows", type=int, default=5, help="default %(default)s")
    parser.add_argument("--seconds", type=float, help="begin nothing later than this; what is missing is named")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="also write a trace and print what takes the time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a bar is missed or not measured")
    parser.add_argument("--environments", type=Path, default=DEFAULT, metavar="DIR",
                        help=f"where others' loops have their packages (default {DEFAULT})")  # fmt: skip
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # a run that is stopped, too, ends its workers
    sys.exit(main())
