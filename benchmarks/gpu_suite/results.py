"""The results folder: few files, whole after every step, so that whatever ends the suite costs the running step alone.

summary.md  results.json  logs.txt.gz  trace.json.gz

While a call runs, `logs.txt` is what is added to `logs.txt.gz` at its end.
"""

from __future__ import annotations

import datetime
import gzip
import itertools
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_suite.summary import summary

MOST_FILES = 8
MOST_BYTES = 15 << 20
"""Of one file; a machine may send back 16 MiB of each."""
UNFINISHED = ("running", "stopped")
"""Statuses of a part that the next call runs again, from the first step that has not finished."""

Step = dict[str, Any]

_RAISED = re.compile(
    r"(?!.*(CalledProcessError|ChildFailedError))"  # a launcher's, about a process that has reported more
    r"(\d\d:\d\d:\d\d (\[rank \d+\] )?error: |error: |Fatal Python error"
    r"|([A-Za-z_]\w*\.)*[A-Za-z_]\w*(Error|Exception)\b)"
)


class Results:
    """`results.json` and what is beside it.

    Args:
        folder: made where it is not there; what an earlier call left is continued.
        machine: as in `Settings`.
        dry: whether sizes are tiny; one folder holds results of one kind.

    Raises:
        ValueError: the folder holds another card's results, or those of the other kind, or is damaged.
    """

    def __init__(self, folder: Path, machine: Mapping[str, Any], *, dry: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._file = folder / "results.json"
        self.content: dict[str, Any] = {"dry": dry, "machine": dict(machine), "started": _now(), "parts": {}}
        if self._file.exists():
            earlier = read_results(self._file)
            if (earlier["dry"], earlier["machine"]["card"]) != (dry, machine["card"]):
                kind = "a dry run" if earlier["dry"] else earlier["machine"]["card"]
                raise ValueError(f"{folder} holds results of {kind}: give another folder")
            self.content["parts"] = earlier["parts"]
            self.content["started"] = earlier["started"]

    @property
    def log(self) -> Path:
        return self.folder / "logs.txt"

    def finished(self, part: str) -> bool:
        """Whether a part has come to its end, well or not."""
        return self.content["parts"].get(part, {"status": "running"})["status"] not in UNFINISHED

    def begin(self, part: str, limit_s: float, *, anew: bool) -> None:
        """Begin a part, or continue one that was stopped; `anew` forgets its finished steps."""
        earlier = [] if anew else self.content["parts"].get(part, {}).get("steps", [])
        steps = [step for step in earlier if step["status"] not in (*UNFINISHED, "not reached")]
        self.content["parts"][part] = {"status": "running", "limit_s": limit_s, "seconds": 0.0, "steps": steps}
        self.save()

    def done(self, part: str, step: str) -> bool:
        """Whether a step of the part has finished."""
        return any(one["name"] == step for one in self.content["parts"][part]["steps"])

    def add(self, part: str, step: Step, seconds: float) -> None:
        """A step's result: `name`, `status`, `seconds`, `note`, `failure` (lines) and `rows`, what it measured."""
        self.content["parts"][part]["steps"].append(step)
        self.content["parts"][part]["seconds"] = round(seconds, 1)
        self.save()

    def end(self, part: str) -> str:
        """Set the part's status by its steps' and return it."""
        statuses = {step["status"] for step in self.content["parts"][part]["steps"]}
        ranked = ("not reached", "stopped", "failed", "passed")  # the worst counts
        status = next((one for one in ranked if one in statuses), "skipped").replace("not reached", "stopped")
        self.content["parts"][part]["status"] = status
        self.save()
        return status

    @property
    def failed(self) -> bool:
        return any(part["status"] not in ("passed", "skipped") for part in self.content["parts"].values())

    def save(self) -> None:
        """Write results.json and summary.md, each whole or not at all."""
        self.content["saved"] = _now()
        _write_whole(self._file, json.dumps(self.content, indent=1))
        _write_whole(self.folder / "summary.md", summary(self.content))

    def keep_trace(self, trace: Path) -> None:
        """Put a profiler's trace beside the results, compressed, where it is not too large for that."""
        kept = self.folder / "trace.json.gz"
        with trace.open("rb") as source:
            is_compressed = source.read(2) == b"\x1f\x8b"
            source.seek(0)
            with kept.open("wb") if is_compressed else gzip.open(kept, "wb") as target:
                shutil.copyfileobj(source, target)
        if kept.stat().st_size > MOST_BYTES:
            kept.unlink()
            raise ValueError(f"the trace takes more than {MOST_BYTES >> 20} MiB and was left behind")

    def close(self) -> None:
        """Compress the log of this call; gzip files may be joined end to end."""
        if self.log.exists():
            _add_compressed(self.folder / "logs.txt.gz", self.log.read_bytes())
            self.log.unlink()
        self.save()


def read_results(file: Path) -> dict[str, Any]:
    """A results.json.

    Raises:
        ValueError: it is not one.
    """
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if not (isinstance(content["dry"], bool) and "card" in content["machine"] and "saved" in content):
            raise ValueError("keys are missing")
        for part in content["parts"].values():
            if not all({"name", "status"} <= step.keys() for step in part["steps"]) or "status" not in part:
                raise ValueError("keys of a step are missing")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{file} is no results.json of the suite, or damaged ({error}): give another folder"
        ) from error
    return content


def merge(target: Path, folders: Sequence[Path]) -> Results:
    """Put several calls' results into one folder; of a part that several ran, the newest finished one counts.

    Raises:
        ValueError: they are of different cards.
    """
    read = sorted((read_results(folder / "results.json") for folder in folders), key=lambda one: str(one["saved"]))
    merged = Results(target, read[-1]["machine"], dry=read[-1]["dry"])
    if len(kinds := {(str(one["machine"]["card"]), one["dry"]) for one in read}) > 1:
        raise ValueError(f"results of different kinds can't be merged: {', '.join(sorted(card for card, _ in kinds))}")
    parts = merged.content["parts"]
    for one in read:
        for name, part in one["parts"].items():
            if name not in parts or part["status"] not in UNFINISHED or parts[name]["status"] in UNFINISHED:
                parts[name] = part
    for folder in folders:
        if (folder / "logs.txt.gz").exists():
            with gzip.open(folder / "logs.txt.gz") as file:
                _add_compressed(target / "logs.txt.gz", file.read())
        if (folder / "trace.json.gz").exists():
            shutil.copyfile(folder / "trace.json.gz", target / "trace.json.gz")
    merged.save()
    return merged


def read_rows(file: Path) -> list[dict[str, Any]]:
    """What a step wrote as JSON: a list of rows, or one; none where it wrote nothing whole."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return []
    return content if isinstance(content, list) else [content]


def failure_lines(output: str) -> list[str]:
    """What a person reads first of a command that failed: where it raised and what, or its last lines."""
    lines = [_shortened(line.rstrip()) for line in output.splitlines() if line.strip()]
    raised = [number for number, line in enumerate(lines) if _RAISED.match(line)]
    if not raised:
        return lines[-10:]
    frames = [number for number, line in enumerate(lines[: raised[-1]]) if line.startswith('  File "')]
    where = [line for number in frames[-1:] for line in lines[number : number + 2]]
    what = itertools.takewhile(lambda line: not line.startswith("Traceback"), lines[raised[-1] :])
    return [*where, *itertools.islice(what, 6)]


def _shortened(line: str) -> str:
    return line if len(line) <= 300 else f"{line[:150]} ... {line[-140:]}"


def _add_compressed(file: Path, content: bytes) -> None:
    """Append, and begin anew where the file would get too large."""
    member = gzip.compress(content)
    earlier = file.read_bytes() if file.exists() else b""
    if len(earlier) + len(member) > MOST_BYTES:
        earlier = b""
    _write_whole(file, earlier + member)


def _write_whole(file: Path, content: str | bytes) -> None:
    part = file.with_name(f".{file.name}.part")
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    part.replace(file)


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
