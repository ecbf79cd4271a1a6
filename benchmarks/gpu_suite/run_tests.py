"""Runs pytest, and again after a crash, a hang or a lost GPU context, without the tests that have been run.

    python -m gpu_suite.run_tests --json FILE [--seconds N] -- -m gpu tests/gpu

A CUDA kernel at fault takes the process along: without this, the first one would be all that a run finds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gpu_suite.execute import end_on_signal, execute, how_ended
from gpu_suite.pytest_lines import LOST

MOST_SESSIONS = 20
_FINISHED = (0, 1, 5)  # pytest's exit status where all tests were run: passed, failed, none left


def main() -> int:
    """Run the tests; 0 where none failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="counts, and every test that did not pass")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of all of it")
    parser.add_argument("--test-seconds", type=float, default=100, help="of one test (default %(default)s)")
    parser.add_argument("arguments", nargs="+", help="of pytest")
    args = parser.parse_args()
    end_on_signal()
    with tempfile.TemporaryDirectory() as place:
        row = run(args, Path(place))
    print(f"{row['passed']} passed, {row['failed']} failed, {row['skipped']} skipped, {row['sessions']} sessions")
    return int(row["failed"] > 0 or bool(row["note"]))


def run(args: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Sessions until every test was run or the time is up; the row of them all."""
    lines, done = place / "lines", place / "done"
    lines.touch()
    environment = os.environ | {"GPU_SUITE_LINES": str(lines), "GPU_SUITE_DONE": str(done)}
    command = [sys.executable, "-m", "pytest", "-p", "gpu_suite.pytest_lines", "-p", "no:cacheprovider", "-q"]
    command += ["--tb=short", "-o", "faulthandler_timeout=60", "--continue-on-collection-errors", *args.arguments]
    deadline = time.monotonic() + args.seconds
    for session in range(1, MOST_SESSIONS + 1):
        done.write_text("\n".join(outcomes(lines)))
        left, watch = deadline - time.monotonic(), Watch(lines, args, session)
        ended = execute(command, seconds=left, log=place / "log", environment=environment, stop_when=watch)
        print(ended.output, flush=True)
        if ended.code in _FINISHED:
            return report(lines, args.json, session)
        if time.monotonic() > deadline:
            return report(lines, args.json, session, "stopped: the time was up")
        why = _reason(ended.code, args.test_seconds)
        if not end_started(lines, why):
            return report(lines, args.json, session, f"pytest {why} outside a test")
    return report(lines, args.json, MOST_SESSIONS, f"given up after {MOST_SESSIONS} sessions")


class Watch:
    """Called again and again: reports what is known so far, and whether a test takes longer than it may."""

    def __init__(self, lines: Path, args: argparse.Namespace, session: int) -> None:
        self._lines, self._args, self._session, self._size = lines, args, session, -1
        self._changed = time.monotonic()

    def __call__(self) -> bool:
        if (size := self._lines.stat().st_size) != self._size:
            self._size, self._changed = size, time.monotonic()
            report(self._lines, self._args.json, self._session, "not finished")
        return time.monotonic() - self._changed > self._args.test_seconds


def outcomes(lines: Path) -> dict[str, dict[str, Any]]:
    """The last line of every test; a failure in its fixtures' end is not forgotten for a success before it."""
    last: dict[str, dict[str, Any]] = {}
    for line in lines.read_text().splitlines():
        entry = json.loads(line)
        if last.get(entry["test"], entry)["outcome"] != "failed":
            last[entry["test"]] = entry
    return last


def end_started(lines: Path, why: str) -> bool:
    """Count the test that had begun as failed, and every one after a lost context stays to be run; False where none
    had begun."""
    started = [entry for entry in outcomes(lines).values() if entry["outcome"] == "started"]
    with lines.open("a") as file:
        for entry in started:
            file.write(json.dumps(entry | {"outcome": "failed", "lines": [f"the process {why}"]}) + "\n")
    return bool(started) or why == how_ended(LOST)


def report(lines: Path, file: Path, sessions: int, note: str = "") -> dict[str, Any]:
    """Write the row and return it; its note has what else went wrong."""
    entries = list(outcomes(lines).values())
    row = {
        outcome: sum(entry["outcome"] == outcome for entry in entries) for outcome in ("passed", "failed", "skipped")
    }
    named = [entry for entry in entries if entry["outcome"] != "passed"]
    content = {**row, "sessions": sessions, "note": note, "tests": sorted(named, key=lambda one: one["outcome"])}
    part = file.with_suffix(".part")
    part.write_text(json.dumps([content], indent=1))
    part.replace(file)
    return content


def _reason(code: int | None, test_seconds: float) -> str:
    if code is None:
        return f"was stopped after {test_seconds:g} s without an end"
    return how_ended(code)


if __name__ == "__main__":
    sys.exit(main())
