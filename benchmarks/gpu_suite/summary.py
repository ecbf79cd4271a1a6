"""What a person reads first: what passed, what failed and why, and the figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

_SAME_EVERYWHERE = (
    "date", "cpu", "cores", "memory_gb", "gpu", "busy_before", "versions", "command", "recipe", "device", "on_gpu",
    "torch", "kind",
)  # fmt: skip
"""Of a row: in the summary's head, or of no use in a table."""
_MOST_COLUMNS = 14


def summary(content: Mapping[str, Any]) -> str:
    """`summary.md` of a results.json."""
    machine = content["machine"]
    card = machine["card"] or "no GPU"
    sizes = "; tiny sizes, so figures mean nothing" if content["dry"] else ""
    lines = [
        f"# {card}{sizes}",
        "",
        f"{machine['gpus']} GPU(s), torch {machine['torch']}, Python {machine['python']}, "
        f"{content['started']} to {content.get('saved', '')}",
        "",
        "| part | status | seconds | limit | steps |",
        "|---|---|---|---|---|",
    ]
    for name, part in content["parts"].items():
        counts = {status: sum(step["status"] == status for step in part["steps"]) for status in _STATUSES}
        steps = ", ".join(f"{number} {status}" for status, number in counts.items() if number)
        lines.append(f"| {name} | {part['status']} | {part['seconds']:.0f} | {part['limit_s']:.0f} | {steps} |")
    lines += _section("What failed", content, ("failed", "stopped"))
    lines += _section("What was not run", content, ("skipped", "not reached"))
    lines += ["", "## Figures"]
    for name, part in content["parts"].items():
        for step in part["steps"]:
            if step.get("rows"):
                lines += ["", f"### {name}: {step['name']}", "", *_tables(step["rows"])]
    return "\n".join(lines) + "\n"


_STATUSES = ("passed", "failed", "stopped", "skipped", "not reached")


def _section(title: str, content: Mapping[str, Any], statuses: Sequence[str]) -> list[str]:
    lines = []
    for name, part in content["parts"].items():
        for step in part["steps"]:
            if step["status"] in statuses:
                note = f": {step['note']}" if step.get("note") else ""
                lines.append(f"- **{name}: {step['name']}** {step['status']}{note}")
                lines += [f"      {line}" for line in step.get("failure", [])]
    return ["", f"## {title}", "", *(lines or ["nothing"])]


def _tables(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table for each kind of row (`what`); rows of tests that did not pass come as a list."""
    if all("status" in row for row in rows):
        return _statuses(rows)
    lines: list[str] = []
    for what in dict.fromkeys(str(row.get("what", "")) for row in rows):
        group = [row for row in rows if str(row.get("what", "")) == what]
        lines += ["", *table(group, columns(group))] if lines else table(group, columns(group))
    for row in rows:
        lines += _tests(row.get("tests", []))
    return lines


def _statuses(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is there in one line, and a line for everything else that was looked for."""
    there = ", ".join(f"{row['name']} {row['version']}".strip() for row in rows if row["status"] == "there")
    others = [f"- {row['name']} {row['status']}: {row['note']}" for row in rows if row["status"] != "there"]
    return [f"there: {there}", "", *others]


def _tests(tests: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every test that failed with its words; those that were skipped by their reason."""
    lines: list[str] = []
    for test in tests:
        if test["outcome"] != "skipped":
            lines += ["", f"- {test['outcome']} {test['test']} ({test['seconds']:.1f} s)"]
            lines += [f"      {line}" for line in test["lines"]]
    reasons = Counter(" ".join(test["lines"]) for test in tests if test["outcome"] == "skipped")
    return [*lines, *(f"\n- {number} skipped: {reason}" for reason, number in reasons.items())]


def columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns of a table: what rows hold besides lists, and what is not the same for all of a machine's."""
    names = dict.fromkeys(
        name for row in rows for name, value in row.items()
        if not isinstance(value, (list, dict)) and name not in _SAME_EVERYWHERE
    )  # fmt: skip
    return [name for name in names if any(row.get(name) not in (None, "") for row in rows)][:_MOST_COLUMNS]


def table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Lines of a markdown table."""
    body = [f"| {' | '.join(cell(row.get(name)) for name in names)} |" for row in rows]
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|", *body]


def cell(value: object) -> str:
    """A figure with three digits that count, or whole from 100 on; text on one line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else str(value).replace("\n", " ").replace("|", "\\|")
