"""The GPU suite's frame: limits, continuing, collecting, crashes of tests. What it measures is not run."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from gpu_suite import __main__ as suite
from gpu_suite import training_runs
from gpu_suite.execute import Ended, execute
from gpu_suite.parts import Step, steps_of
from gpu_suite.results import MOST_FILES, failure_lines, merge, read_results
from gpu_suite.settings import LIMITS_S, PARTS, Settings, read_settings, slug

ROOT = Path(__file__).parents[2]
H100 = {"card": "NVIDIA H100 80GB HBM3", "gpus": 1, "torch": "2.11.0+cu130", "python": "3.12.3"}
NO_GPU = {**H100, "card": None, "gpus": 0}


def settings(folder: Path, parts: str, limit_s: float = 30, machine: Mapping[str, Any] = NO_GPU) -> Settings:
    return Settings(
        results=folder / "results", scratch=folder / "scratch", parts=tuple(parts.split()),
        limits_s=dict.fromkeys(PARTS, limit_s), dry=machine is NO_GPU, force=False, wheels=(), nih_root=None,
        machine=machine, environment=dict(os.environ),
    )  # fmt: skip


def python(name: str, code: str, **more: Any) -> Step:
    return Step(name, (sys.executable, "-c", code), **more)


Plan = Callable[..., None]


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Called with steps by part, it has the suite run these."""

    def install(**parts: list[Step]) -> None:
        monkeypatch.setattr(suite, "steps_of", lambda part, _: parts[part])

    return install


def parts_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_results(folder / "results" / "results.json")["parts"]
    return content


def running(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_a_stopped_part_keeps_what_it_had_and_the_next_call_continues_it(tmp_path: Path, plan: Plan) -> None:
    rows, pid, count = tmp_path / "rows.json", tmp_path / "pid", tmp_path / "count"
    counting = f"open({str(count)!r}, 'a').write('x'); print('once and no more')"
    # It ignores the request to end, and so does its child.
    slow = (
        "import json, os, signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"open({str(rows)!r}, 'w').write(json.dumps([{{'img_per_s': 12345.0}}]))\n"
        f"child = subprocess.Popen(['sleep', '60']); open({str(pid)!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    call = settings(tmp_path, "decode step", limit_s=4)
    first, last = python("first", counting), python("last", "print('reached')")
    quick = python("other part", "print(1)")
    plan(decode=[first, python("slow", slow, json=rows, seconds=1.5), last], step=[quick])
    started = time.monotonic()
    assert suite.run(call) == 1
    assert time.monotonic() - started < 20
    decode = parts_of(tmp_path)["decode"]
    assert [step["status"] for step in decode["steps"]] == ["passed", "stopped", "not reached"]
    assert decode["status"] == "stopped" and decode["steps"][1]["rows"] == [{"img_per_s": 12345.0}]
    assert parts_of(tmp_path)["step"]["status"] == "passed"  # one part's limit is not another's
    assert not running(int(pid.read_text()))
    summary = (tmp_path / "results" / "summary.md").read_text()
    assert "- **decode: slow** stopped" in summary and "12,345" in summary

    plan(decode=[first, python("slow", "print('quick now')"), last], step=[python("other part", "raise SystemExit(3)")])
    assert suite.run(call) == 0  # `step` had finished: its new command is not run
    assert {name: part["status"] for name, part in parts_of(tmp_path).items()} == {"decode": "passed", "step": "passed"}
    assert [step["name"] for step in parts_of(tmp_path)["decode"]["steps"]] == ["first", "slow", "last"]
    assert count.read_text() == "x"
    assert suite.run(replace(call, force=True)) == 1
    assert count.read_text() == "xx" and parts_of(tmp_path)["step"]["status"] == "failed"
    log = gzip.decompress((tmp_path / "results" / "logs.txt.gz").read_bytes()).decode()
    assert log.count("once and no more") == 4 and "quick now" in log  # command and output, twice


def test_failures_are_named_and_block_only_what_needs_them(tmp_path: Path, plan: Plan) -> None:
    trace = tmp_path / "trace.json"
    plan(
        preflight=[
            python("wrong", "def f(): raise ValueError('no such thing')\nf()"),
            python("needed", "import sys; sys.exit('21:07:00 error: data.root is empty')", needed=True),
            python("after", "print(1)"),
        ],
        tests=[
            Step("absent program", ("/nowhere/program",)),
            Step("left out", skip="no GPU"),
            python("traced", f"open({str(trace)!r}, 'w').write('[]')", trace=trace),
        ],
        ranks=[Step("left out", skip="no GPU")],
    )  # fmt: skip
    assert suite.run(settings(tmp_path, "preflight tests ranks")) == 1
    parts = parts_of(tmp_path)
    assert [step["status"] for step in parts["preflight"]["steps"]] == ["failed", "failed", "skipped"]
    assert parts["preflight"]["steps"][2]["note"] == "it needs needed"
    assert parts["preflight"]["steps"][1]["failure"] == ["21:07:00 error: data.root is empty"]
    assert [step["status"] for step in parts["tests"]["steps"]] == ["failed", "skipped", "passed"]
    assert parts["ranks"]["status"] == "skipped"
    summary = (tmp_path / "results" / "summary.md").read_text()
    assert "ValueError: no such thing" in summary and "/nowhere/program" in summary
    files = {file.name for file in (tmp_path / "results").iterdir()}
    assert files == {"summary.md", "results.json", "logs.txt.gz", "trace.json.gz"} and len(files) <= MOST_FILES


def test_what_a_person_reads_first_of_an_output() -> None:
    raised = 'Traceback (most recent call last):\n  File "a.py", line 3, in f\n    g()\ntorch.OutOfMemoryError: 80 GB\n'
    launcher = "subprocess.CalledProcessError: Command '['python', 'launch.py']' returned non-zero exit status 1.\n"
    assert failure_lines(raised + "Traceback (most recent call last):\n" + launcher) == [
        '  File "a.py", line 3, in f',
        "    g()",
        "torch.OutOfMemoryError: 80 GB",
    ]
    assert failure_lines("\n".join(map(str, range(30)))) == [str(number) for number in range(20, 30)]


def test_a_flood_of_output_is_shortened_in_the_middle(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    code = "print('begin'); print('x' * 5_000_000); print('end')"
    ended = execute([sys.executable, "-c", code], seconds=30, log=log)
    assert ended.code == 0 and ended.output.startswith("begin") and ended.output.endswith("end\n")
    assert log.read_text() == "before\n" + ended.output and "bytes left out" in ended.output
    assert log.stat().st_size < 1_100_000


def test_results_of_another_card_or_damaged_ones_are_refused(tmp_path: Path, plan: Plan) -> None:
    plan(tests=[python("one", "print(1)")])
    call = settings(tmp_path, "tests", machine=H100)
    assert suite.run(call) == 0
    for machine, dry in (({**H100, "card": "NVIDIA H200"}, False), (H100, True)):
        with pytest.raises(ValueError, match="holds results of NVIDIA H100 80GB HBM3: give another folder"):
            suite.run(replace(call, machine=machine, dry=dry))
    file = tmp_path / "results" / "results.json"
    for text in ("{", "[]", '{"dry": false}', file.read_text().replace('"status"', '"state"')):
        file.write_text(text)
        with pytest.raises(ValueError, match="or damaged"):
            suite.run(call)


def test_results_of_several_calls_become_one_folder(tmp_path: Path, plan: Plan) -> None:
    for name, code in (("a", "import time; time.sleep(9)"), ("b", "print('fine')")):
        plan(tests=[python("one", "print(1)")], decode=[python("two", code)])
        call = settings(tmp_path / name, "tests decode" if name == "a" else "decode", limit_s=1.5, machine=H100)
        assert suite.run(call) == (name == "a")
    merged = merge(tmp_path / "both", [tmp_path / "b" / "results", tmp_path / "a" / "results"])
    assert {name: part["status"] for name, part in merged.content["parts"].items()} == {
        "tests": "passed", "decode": "passed",
    }  # fmt: skip
    assert b"fine" in gzip.decompress((tmp_path / "both" / "logs.txt.gz").read_bytes())
    plan(tests=[python("one", "print(1)")])
    assert suite.run(settings(tmp_path / "c", "tests")) == 0
    with pytest.raises(ValueError, match="different kinds"):
        merge(tmp_path / "all", [tmp_path / name / "results" for name in "abc"])


def test_every_part_fits_the_plan_and_names_files_that_are_there(tmp_path: Path) -> None:
    assert sum(LIMITS_S[part] for part in ("preflight", "tests")) <= 7 * 60
    assert sum(LIMITS_S[part] for part in ("sanitize", "decode")) <= 8 * 60
    assert LIMITS_S["step"] <= 7 * 60 and LIMITS_S["runs"] <= 6 * 60
    for machine in (NO_GPU, H100):
        call = replace(settings(tmp_path, "", machine=machine), limits_s=LIMITS_S)
        for part in PARTS:
            steps = steps_of(part, call)
            names = [step.name for step in steps]
            assert len(set(names)) == len(names) > 0
            jsons = [step.json for step in steps if step.json]
            assert len(set(jsons)) == len(jsons)
            for step in steps:
                for word in step.command:
                    if word.startswith(("benchmarks/", "tests/", "recipes/")):
                        assert (ROOT / word).exists(), word
                    if word.startswith("gpu_suite."):
                        assert importlib.util.find_spec(word), word


TESTS = """
import os, time, pytest

def test_good(): pass
def test_bad(): assert 1 == 2, "other pixels"
def test_crash(): os.abort()
@pytest.mark.skip(reason="no DALI")
def test_left_out(): pass
def test_hang(): time.sleep(60)
@pytest.fixture
def fragile():
    yield
    raise RuntimeError("late")
def test_ends_badly(fragile): pass
def test_last(): pass
"""


def test_a_crash_or_a_hang_costs_one_test(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    file = tmp_path / "row.json"
    command = [sys.executable, "-m", "gpu_suite.run_tests", "--json", str(file), "--test-seconds", "3", "--"]
    environment = settings(tmp_path, "").variables()
    done = subprocess.run(
        [*command, "--rootdir", str(tmp_path), str(tmp_path)], capture_output=True, text=True, env=environment,
        cwd=tmp_path, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1 and "2 passed, 4 failed, 1 skipped, 3 sessions" in done.stdout, (
        done.stdout + done.stderr
    )
    (row,) = json.loads(file.read_text())
    assert row["note"] == "" and [row[name] for name in ("passed", "failed", "skipped")] == [2, 4, 1]
    lines = {test["test"].rpartition(":")[2]: " ".join(test["lines"]) for test in row["tests"]}
    assert "other pixels" in lines["test_bad"] and "late" in lines["test_ends_badly"]
    assert lines["test_crash"] == "the process died of SIGABRT"
    assert lines["test_hang"] == "the process was stopped after 3 s without an end"
    assert "no DALI" in lines["test_left_out"]


def steps_csv(folder: Path, losses: list[float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f"{step},0,{loss},1e-4,100.0,1.0,900.0" for step, loss in enumerate(losses, start=1)]
    header = "step,epoch,loss,lr,img_per_s,data_wait_pct,memory_mb"
    (folder / "steps.csv").write_text("\n".join([header, *rows]) + "\n")


@pytest.mark.parametrize(
    ("second", "resumed", "note"),
    [
        ([0.7, 0.6, 0.5], [0.7, 0.6, 0.5], ""),
        ([0.7, 0.6, 0.50001], [0.7, 0.6, 0.50002], ""),  # a GPU's order of summation
        ([0.7, 0.6, 0.5], [0.7, 0.6, 0.50002], "losses differ by 4e-05, those of undisturbed runs by 0"),
        ([0.7, 0.6, 0.5], [0.7, 0.5], "losses differ by inf, those of undisturbed runs by 0"),
    ],
)
def test_a_resumed_run_is_held_against_two_undisturbed_ones(
    second: list[float], resumed: list[float], note: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([[0.7, 0.6, 0.5], second, [0.7], resumed])

    def launch(recipe: str, overrides: list[str], output: Path, *, grace_s: float = 5, **_: Any) -> Ended:
        steps_csv(output, next(losses))
        return Ended(0 if grace_s else None, 1.0, "")

    monkeypatch.setattr(training_runs, "launch", launch)
    parser = type("Args", (), {"recipe": "r.yaml", "overrides": [], "output": tmp_path})
    rows = training_runs.cut(parser)  # type: ignore[arg-type]
    assert [row["what"] for row in rows] == ["undisturbed", "undisturbed", "killed", "resumed"]
    assert [row["note"] for row in rows] == ["", "", "", note]
    assert rows[3]["bit_equal"] == (resumed == [0.7, 0.6, 0.5])


def test_settings_are_checked_and_a_bare_start_needs_no_part(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="PARTS: decod unknown; known are preflight tests"):
        read_settings(None, {"PARTS": "tests decod"})
    with pytest.raises(ValueError, match="LIMIT_TESTS=soon: give seconds"):
        read_settings(None, {"LIMIT_TESTS": "soon"})
    with pytest.raises(ValueError, match="not a folder"):
        read_settings(None, {"WHEELS": str(tmp_path / "absent")})
    assert slug(H100["card"]) == "h100-80gb-hbm3" and slug(None) == "no-gpu"
    environment = os.environ | {"PYTHON": sys.executable, "PARTS": "", "SCRATCH": str(tmp_path / "scratch")}
    script = str(ROOT / "benchmarks" / "gpu_suite.sh")
    done = subprocess.run(
        [script, str(tmp_path / "out")], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0 and "no wheels" in done.stdout, done.stderr
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["results.json", "summary.md"]
    assert subprocess.run([script, "merge", "x"], capture_output=True, env=environment).returncode == 2
