"""The command line of `benchmarks/gpu_suite.sh`, which has the manual."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gpu_suite.execute import end_on_signal, execute, how_ended
from gpu_suite.parts import Step, steps_of
from gpu_suite.results import Results, failure_lines, merge, read_rows
from gpu_suite.settings import ROOT, Settings, read_settings
from gpu_suite.wheels import prepare, take

_USAGE = "usage: gpu_suite.sh [RESULTS] | prepare DIR | images DIR [--images N] | merge RESULTS FROM..."
_MOST_PRINTED = 6000
"""Characters of the summary that are printed: who started the command elsewhere may see only the end of its output."""


def main(arguments: Sequence[str]) -> int:
    """Do what the first argument names; 2 is a mistake of whoever started it."""
    try:
        match list(arguments):
            case ["prepare", folder]:
                architecture = os.environ.get("ARCH", "90")
                prepare(Path(folder).absolute(), architecture=None if architecture == "all" else int(architecture))
            case ["images", folder, *more]:
                command = [sys.executable, "-m", "gpu_suite.xrays", str(Path(folder).absolute()), *more]
                return subprocess.run(command).returncode
            case ["merge", target, *folders] if folders:
                merged = merge(Path(target).absolute(), [Path(folder) for folder in folders])
                print(f"{merged.folder}: {', '.join(merged.content['parts'])}")
            case [] | [_] if not any(one.startswith("-") for one in arguments):
                end_on_signal()
                return run(read_settings(Path(arguments[0]) if arguments else None, os.environ))
            case _:
                print(_USAGE, file=sys.stderr)
                return 2
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(settings: Settings) -> int:
    """All parts asked for that have not finished; 1 where anything failed or was stopped."""
    settings.work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    site, line = take(settings.wheels, settings.scratch)
    print(f"{settings.machine['card'] or 'no GPU'}{', tiny sizes' if settings.dry else ''}; {line}", flush=True)
    settings = replace(settings, site=site)
    results = Results(settings.results, settings.machine, dry=settings.dry)
    try:
        for part in settings.parts:
            if results.finished(part) and not settings.force:
                print(f"== {part}: finished before; FORCE=1 runs it again", flush=True)
            else:
                run_part(part, settings, results)
    finally:
        results.close()
    text = (settings.results / "summary.md").read_text()
    print(text if len(text) <= _MOST_PRINTED else text[:_MOST_PRINTED] + "\n[...]")
    print(f"{settings.results}, {time.monotonic() - started:.0f} s")
    return int(results.failed)


def run_part(part: str, settings: Settings, results: Results) -> None:
    """The part's steps that have not finished, until its time is up."""
    limit_s = settings.limits_s[part]
    print(f"== {part}, at most {limit_s:.0f} s", flush=True)
    results.begin(part, limit_s, anew=settings.force)
    started, blocked = time.monotonic(), ""
    for step in steps_of(part, settings):
        left_s = limit_s - (time.monotonic() - started)
        if results.done(part, step.name):
            continue
        if step.skip or blocked:
            result = {"name": step.name, "status": "skipped", "seconds": 0.0, "note": step.skip or blocked}
        elif left_s < 1:
            note = f"the part's {limit_s:.0f} s were up"
            result = {"name": step.name, "status": "not reached", "seconds": 0.0, "note": note}
        else:
            result = run_step(step, settings, results, min(step.seconds, left_s))
        if step.needed and result["status"] in ("failed", "stopped"):
            blocked = f"it needs {step.name}"
        results.add(part, result, time.monotonic() - started)
        print(f"   {result['status']:11} {result['seconds']:6.1f} s  {step.name}  {result['note']}", flush=True)
    results.end(part)


def run_step(step: Step, settings: Settings, results: Results, seconds: float) -> dict[str, object]:
    """A step's result, as `Results.add` keeps it."""
    if step.json:
        step.json.unlink(missing_ok=True)
    with results.log.open("a") as log:
        log.write(f"\n===== {step.name}\n$ {' '.join(step.command)}\n")
    ended = execute(
        step.command, seconds=seconds, log=results.log, cwd=ROOT,
        environment={**settings.variables(), **step.environment},
    )  # fmt: skip
    status = "stopped" if ended.code is None else "failed" if ended.code else "passed"
    note = f"stopped after {seconds:.0f} s" if ended.code is None else how_ended(ended.code)
    if step.trace and step.trace.exists():
        try:
            results.keep_trace(step.trace)
        except ValueError as error:
            note = f"{note}; {error}".lstrip("; ")
        step.trace.unlink()
    rows = read_rows(step.json) if step.json else []
    result = {"name": step.name, "status": status, "seconds": round(ended.seconds, 1), "note": note, "rows": rows}
    if status != "passed":
        result["failure"] = failure_lines(ended.output)
    return result


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
