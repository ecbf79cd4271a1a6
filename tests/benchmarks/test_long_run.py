"""What `benchmarks/long_run.py` calls growth, on made-up samples, and what it reads of a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from long_run import Held, Sample, compare, take


def samples(growing: str, by: float) -> list[Sample]:
    found = []
    for number in range(100):
        held = {"rss_kb": 900_000, "pss_kb": 600_000, "anon_kb": 300_000, "files": 16, "threads": 9, "shared": 15}
        held[growing] += int(by * number)
        found.append(Sample(100 * number, float(number), 0.5 * number, 15, {"rank 0": Held(**held)}))
    return found


@pytest.mark.parametrize(
    ("growing", "by", "grown"),
    [
        ("rss_kb", 200, True),  # 1.5 % of it
        ("rss_kb", 50, False),
        ("anon_kb", 100, True),
        ("pss_kb", 5000, False),  # other programs move it
        ("files", 0.05, True),
        ("threads", 0.05, True),
        ("shared", 0.05, True),
    ],
)
def test_what_grows_is_named(growing: str, by: float, grown: bool) -> None:
    lines, problems = compare(samples(growing, by))
    assert [problem.split()[:3] for problem in problems] == ([["rank", "0:", growing]] if grown else [])
    assert "CPU time of a step: 5.00 → 5.00 ms" in lines


def test_a_process_is_read(tmp_path: Path) -> None:
    code = f"import os; kept, file = os.urandom(8 << 20), open({str(tmp_path / 'file')!r}, 'w'); print(); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        sample, _ = take(process.pid, 1, 1.0)
        process.kill()
    (held,) = sample.processes.values()
    assert held.files == 4 and held.threads == 1 and held.shared == 0
    assert 8 << 10 < held.anon_kb < held.rss_kb < 40 << 10
