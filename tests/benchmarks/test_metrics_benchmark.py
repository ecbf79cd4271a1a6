"""The metrics benchmark end to end on a few hundred samples, and what it makes of the figures."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = ("--samples", "400", "--patients", "60", "--large", "900", "--replicates", "40", "--windows", "1")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "metrics.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    file = tmp_path_factory.mktemp("metrics") / "metrics.json"
    done = run(*SMALL, "--json", file)
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text()), done.stdout


def test_every_way_is_measured_and_ratios_are_to_the_first(measured: tuple[dict[str, Any], str]) -> None:
    rows = measured[0]["rows"]
    has_torchmetrics = importlib.util.find_spec("torchmetrics") is not None
    for samples in (400, 900):
        ways = {row["way"]: row for row in rows if (row["figure"], row["samples"]) == ("AUROC", samples)}
        assert set(ways) == {"scikit-learn loop", "distcxr", "torchmetrics"}
        assert (ways["torchmetrics"]["wall_s"] is not None) == has_torchmetrics
        assert ("pip install torchmetrics" in ways["torchmetrics"]["note"]) != has_torchmetrics
        assert ways["scikit-learn loop"]["ratio"] == 1
        expected = ways["scikit-learn loop"]["wall_s"] / ways["distcxr"]["wall_s"]
        assert ways["distcxr"]["ratio"] == pytest.approx(expected, rel=0.5)  # of medians, not their median
    loops = [row for row in rows if row["figure"] == "AUROC, 40 replicates"]
    assert [row["note"] for row in loops] == ["from 4 replicates"] * 2 + [""]
    assert loops[0]["wall_s"] > loops[1]["wall_s"] > loops[2]["wall_s"] > 0
    alone = {row["figure"]: row["wall_s"] for row in rows if row["way"] == "distcxr"}
    assert len(alone) == 12 and alone["all of these"] > alone["two models compared"]


def test_what_was_measured_is_held_against_every_promise(measured: tuple[dict[str, Any], str]) -> None:
    content, output = measured
    claims = {claim["what"]: claim for claim in content["claims"]}
    assert len(claims) == 8
    assert claims["difference from scikit-learn"]["measured"] <= 1e-12
    assert claims["gathered logits and ids, MB"]["measured"] == pytest.approx(400 * (14 * 4 + 8) / 1e6)
    assert 50 < claims["memory at 900, MB"]["measured"] < 1500
    for claim in claims.values():
        above = claim["measured"] >= claim["bar"]
        assert claim["holds"] == (above if claim["sign"] == "≥" else not above)
    assert output.count("| holds |") + output.count("| FAILS |") == 8


def test_a_broken_promise_fails_the_check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("metrics_benchmark", BENCHMARKS / "metrics.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows = [
        module.Row("AUROC", "distcxr", 25_596, 0.1, 0.1, 6.0),
        module.Row("AUROC", "distcxr", 1_000_000, 1.0, 1.0, 5.0),
        module.Row("AUROC, 1000 replicates", "distcxr (and more)", 25_596, 1.5, 1.5, 100.0),
        module.Row("all of these", "distcxr", 25_596, 30.0, 30.0),
    ]
    facts = {
        "memory_mb": 1500.0, "gather_mb": 2.0, "largest_gap_to_sklearn": 0.0,
        "cpu": "one", "cores": 2, "python": "3", "numpy": "2", "date": "2026-01-01",
    }  # fmt: skip
    monkeypatch.setattr(module, "measure", lambda args: (rows, facts))
    monkeypatch.setattr(sys, "argv", ["metrics.py", "--check"])
    assert module.main() == 0
    assert capsys.readouterr().out.count("| holds |") == 8
    rows[0].ratio = 5.9
    facts["memory_mb"] = None
    assert module.main() == 1
    output = capsys.readouterr().out
    assert "| AUROC of 25,596, times scikit-learn's speed | ≥ 6 | 5.9 | FAILS |" in output
    assert "| memory at 1,000,000, MB | ≤ 1500 |  | not measured |" in output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--check", "--quick"], "leave --quick away"),
        (["--patients", "1"], "have to be at least"),
        (["--samples", "5", "--patients", "6"], "have to be at least"),
        (["--json", "absent/metrics.json"], "the folder absent is not there"),
    ],
)
def test_bad_arguments_are_refused(arguments: list[str], expected: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert expected in done.stderr
