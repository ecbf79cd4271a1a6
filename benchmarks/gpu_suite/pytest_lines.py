"""A pytest plug-in: the outcome of every test as a line of JSON, at once, so that a crash or a hang costs one test.

GPU_SUITE_LINES names the file; tests in the file GPU_SUITE_DONE, one name a line, are left out. A test that leaves
the GPU's context unusable ends the session with LOST, because everything after it would fail with it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

LOST = 86
"""Exit status of a session that lost its GPU context."""
_MOST_LINES = 6


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    done = set(Path(os.environ["GPU_SUITE_DONE"]).read_text().splitlines())
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
    items[:] = [item for item in items if item.nodeid not in done]


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.outcome != "passed":  # a file that can't be imported, or that skips itself
        _write(report.nodeid, report.outcome, 0.0, _reason(report))


def pytest_runtest_logstart(nodeid: str) -> None:
    _write(nodeid, "started", 0.0, [])


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        _write(report.nodeid, report.outcome, report.duration, _reason(report))
    if report.outcome == "failed" and (lost := _lost_context()):
        pytest.exit(f"after {report.nodeid} the GPU's context is lost: {lost}", returncode=LOST)


def _lost_context() -> str:
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return ""
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""


def _reason(report: pytest.CollectReport | pytest.TestReport) -> list[str]:
    """A skip's reason, or what was raised; without the rest, which is in the log."""
    if report.outcome == "passed":
        return []
    if isinstance(report.longrepr, tuple):
        return [str(report.longrepr[2])]
    lines = report.longreprtext.splitlines()
    raised = [line[1:].strip() for line in lines if line.startswith("E  ")]
    return [line[:300] for line in (raised or lines[-_MOST_LINES:])[:_MOST_LINES]]


def _write(test: str, outcome: str, seconds: float, lines: list[str]) -> None:
    with Path(os.environ["GPU_SUITE_LINES"]).open("a") as file:
        file.write(json.dumps({"test": test, "outcome": outcome, "seconds": round(seconds, 2), "lines": lines}) + "\n")
