"""The long form: `python tests/fuzz/run.py --inputs 1000000 --seed 1` runs every entry and saves what broke.

--entries png,kernels      some of them
--coverage                 guided by coverage through atheris, where that is installed
--replay FILE              one saved input, in this process, with its traceback
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("OMP_NUM_THREADS", "1")

_CHUNK = 2_000
"""Inputs of an entry before the next entry's turn: an end by hand then leaves figures for all of them."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="of all entries together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--entries", default="", help="names, separated by commas; all without it")
    parser.add_argument("--save", type=Path, default=ROOT / "build" / "fuzz", help="folder of inputs that broke")
    parser.add_argument("--replay", type=Path, help="a saved input: FOLDER/<entry>/<file>")
    parser.add_argument("--coverage", action="store_true", help="guided by coverage (needs atheris), one entry")
    asked = parser.parse_args()
    if asked.coverage:
        from fuzz.guided import run_guided

        return run_guided(asked.entries, asked.inputs, asked.seed, asked.save)

    from fuzz.entries import ENTRIES
    from fuzz.harness import Finding, Result, check, run_entry

    by_name = {entry.name: entry for entry in ENTRIES}
    if asked.replay:
        entry = by_name[asked.replay.parent.name]
        entry.seeds()
        print("refused" if check(entry, asked.replay.read_bytes()) else "read")
        return 0
    chosen = [by_name[name] for name in asked.entries.split(",") if name] or list(ENTRIES)
    whole = sum(entry.share for entry in chosen)
    inputs = {entry.name: -int(-asked.inputs * entry.share // whole) for entry in chosen}
    rounds = max(1, -(-max(inputs.values()) // _CHUNK))
    totals = {entry.name: Result() for entry in chosen}
    started = time.monotonic()
    seen: set[tuple[str, str]] = set()

    def save(finding: Finding) -> None:
        folder = asked.save / finding.entry
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{asked.seed}-{finding.number}"
        file.write_bytes(finding.data)
        last = finding.what.strip().splitlines()[-1][:300]
        where = [line.strip() for line in finding.what.splitlines() if "/distcxr/" in line][-1:]
        if (finding.entry, f"{last[:60]}{where}") not in seen:
            seen.add((finding.entry, f"{last[:60]}{where}"))
            file.with_suffix(".txt").write_text(finding.what, errors="replace")
            print(f"BROKEN {finding.entry} input {finding.number}: {last} {where} ({file})", flush=True)

    for turn in range(rounds):
        for entry in chosen:
            first, end = (inputs[entry.name] * at // rounds for at in (turn, turn + 1))
            found = run_entry(entry, asked.seed, range(first, end))
            total = totals[entry.name]
            total.inputs, total.refused = total.inputs + found.inputs, total.refused + found.refused
            total.seconds, total.slowest_s = total.seconds + found.seconds, max(total.slowest_s, found.slowest_s)
            total.peak_mb = max(total.peak_mb, found.peak_mb)
            total.findings += found.findings
            for finding in found.findings:
                save(finding)
        if turn == rounds - 1 or turn % 5 == 4:
            _show(totals, time.monotonic() - started)
    return 1 if any(total.findings for total in totals.values()) else 0


def _show(totals: dict[str, object], seconds: float) -> None:
    print(f"{'entry':<16}{'inputs':>9}{'refused':>9}{'broken':>8}{'per s':>8}{'slowest s':>11}{'peak MB':>9}")
    for name, total in totals.items():
        speed = total.inputs / max(total.seconds, 1e-9)  # type: ignore[attr-defined]
        print(
            f"{name:<16}{total.inputs:>9,}{total.refused:>9,}{len(total.findings):>8}{speed:>8,.0f}"  # type: ignore[attr-defined]
            f"{total.slowest_s:>11.2f}{total.peak_mb:>9.0f}"  # type: ignore[attr-defined]
        )
    print(f"{sum(t.inputs for t in totals.values()):,} inputs in {seconds:,.0f} s", flush=True)  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main())
