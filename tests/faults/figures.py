"""The table of BENCHMARKS.md's section "Faults", from what `campaign.py --json` wrote.

python tests/faults/figures.py FILE
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def table(cases: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row of each kind and number of ranks, then all of them."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for case in cases:
        groups[case["kind"], case["world_size"]].append(case)
    rows = ["| fault | ranks | cases | passed | median s |", "|---|---|---|---|---|"]
    for (kind, world_size), group in sorted(groups.items()):
        rows.append(_row(kind.replace("_", " "), str(world_size), group))
    return "\n".join([*rows, _row("all", "", cases)])


def _row(kind: str, world_size: str, cases: Sequence[dict[str, Any]]) -> str:
    passed, median_s = sum(not case["problems"] for case in cases), statistics.median(case["seconds"] for case in cases)
    return f"| {kind} | {world_size} | {len(cases)} | {passed} | {median_s:.1f} |"


if __name__ == "__main__":
    figures = json.loads(Path(sys.argv[1]).read_text())
    print(table(figures["cases"]))
    print(
        f"\n{figures['date']}, {figures['cores']} cores, seed {figures['seed']}, {figures['at_once']} at once, "
        f"{figures['total_s']:.0f} s, {figures['semaphores_left']} named semaphores left"
    )
