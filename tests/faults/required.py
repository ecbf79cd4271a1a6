"""What is required of every case: an end with a reason, nothing left behind, the same command ends as usual."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

from faults.case import MARK, Case
from faults.harm import Codes, send

TRIES = 3
_ENDING_S = 6.0  # of workers that look every few seconds whether their rank is there
CAUSE = re.compile("error: |asked to stop|Ctrl-C")
REMEDY = re.compile(
    r"same command|resum|\b(free|raise|set|lower|remove|make|put|check|run|restart|start|delete|choose|build|restore|"
    r"add|use|see|try|give|allow|needs?|wait|end)\b",
    re.IGNORECASE,
)
"""What a reader can do: a verb of advice somewhere in the last lines."""


def _left_behind(case: Case) -> list[int]:
    """Processes of a case that are still there: of its sessions, or with its mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if state == "Z":
                continue
            if int(session) in case.sessions or f"{MARK}={case.name}\0".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def problems_after(case: Case, codes: Codes) -> list[str]:
    """What is wrong after the fault and after the command that follows it; an empty list is what is wanted."""
    text = case.log.read_text(errors="replace") if case.log.exists() else ""
    problems = ["it hung"] if None in codes else []
    problems += problems_of_message(text, codes)
    deadline = time.monotonic() + max(_ENDING_S, 2 * case.straight_s)
    while _left_behind(case) and time.monotonic() < deadline:
        time.sleep(0.1)
    if left := _left_behind(case):
        shown = [Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")[:80].decode() for pid in left[:3]]
        problems.append(f"{len(left)} processes were left behind: {shown}")
        for pid in left:
            send(pid, signal.SIGKILL)
    for attempt in range(1, TRIES + 1):
        again = case.start().wait(case.patience_s())
        if set(again) == {0} and not (case.output / "RESUME").exists():
            break
        if attempt == TRIES:
            return [*problems, f"the same command ends with {again}: {case.log.read_text()[-600:]}"]
    if different := case.differences():
        problems.append(f"after {attempt} more starts, other than undisturbed: {', '.join(different)}")
    parts = [path for path in case.output.rglob("*") if path.name.endswith((".part", ".tmp")) or ".part" in path.name]
    if parts:
        problems.append(f"left in the folder: {', '.join(path.name for path in parts)}")
    return problems


def problems_of_message(text: str, codes: Codes) -> list[str]:
    """Every end that was not a kill has cause and remedy in the last five lines, without tracebacks."""
    if not any(code is not None and code > 0 for code in codes):
        return []
    problems = []
    if "Traceback (most recent call last)" in text:
        problems.append("a traceback")
    last = [line for line in text.splitlines() if line.strip()][-5:]
    if not any(CAUSE.search(line) for line in last):
        problems.append(f"no reason in the last lines: {last}")
    if not any(REMEDY.search(line.partition("error: ")[2] or line) for line in last):
        problems.append(f"no remedy in the last lines: {last}")
    return problems
