"""The step benchmark end to end on a small network, and what it makes of figures; nothing is installed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = ("--models", "resnet18", "--image-size", "32", "--batches", "2", "--precisions", "bf16", "--steps", "2")


@pytest.fixture(autouse=True)
def _benchmarks_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.slow
def test_three_loops_are_measured_and_compared(tmp_path: Path) -> None:
    rows_file, trace = tmp_path / "rows.json", tmp_path / "trace.json"
    command = [
        sys.executable, str(BENCHMARKS / "step.py"), *SMALL, "--windows", "2", "--loops", "ours", "minimal", "fp32",
        "--json", str(rows_file), "--profile", str(trace), "--check",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr  # a bar of DenseNet-121 that was not measured is missed
    assert done.stdout.count("| not measured | MISSED |") == 6
    rows = json.loads(rows_file.read_text())
    assert [row["loop"] for row in rows] == ["ours", "minimal", "fp32"]
    for row in rows:
        assert (row["note"], row["steps"], row["windows"], row["batch"]) == ("", 2, 2, 2)
        assert row["img_per_s"] == pytest.approx(2000 / row["ms"], rel=1e-3)
        assert row["ms_range"][0] <= row["ms"] <= row["ms_range"][1]
        assert row["memory_mb"] > 0 and row["cpu_ms"] > 0
        assert row["tflops"] == pytest.approx(row["gflop_per_img"] * row["img_per_s"] / 1e3, rel=2e-3)
        assert row["launches"] is None and row["copies"] is None and row["busy_pct"] is None  # of a GPU
    assert [row["share_of_ceiling"] is None for row in rows] == [False, False, True]  # fp32 has another ceiling
    ours = rows[0]
    assert ours["to_minimal"] > 0 and ours["to_fp32"] > 0 and ours["mode"] == "eager"
    assert 0 < ours["host_outside_pct"] < 100
    for file, name in ((trace, "ours"), (tmp_path / "trace-resnet18-bf16-2-fp32.json", "fp32")):
        assert len(json.loads(file.read_text())["traceEvents"]) > 100
        assert f"| {name}: operator | ms a step | share | calls |" in done.stdout
    assert "| ours | " in done.stdout.split("| speed, times that of | minimal | fp32 |")[1]


def measured(loop: str, ms: list[float], mode: str = "eager", **more: Any) -> Any:
    from step_bench.conduct import Measured

    return Measured(loop, mode, ms=ms, cpu_ms=ms, steps=2, **more)


def rows_of(batch: int, ours_ms: list[float], **peers_ms: list[float]) -> list[dict[str, Any]]:
    from step_bench.job import Case
    from step_bench.table import to_rows

    entries = [measured("ours", ours_ms), *(measured(name, ms) for name, ms in peers_ms.items())]
    return to_rows(Case("densenet121", "bf16", batch, 224), entries, 17e9, {"device": "one"})


def test_ratios_are_of_windows_of_the_same_round() -> None:
    from step_bench.table import ratio

    # The second round was slow for both. Of medians, 20 and 30, the ratio would be 1.5.
    assert ratio([10.0, 100.0, 20.0], [20.0, 200.0, 30.0]) == 2.0
    rows = rows_of(16, [10.0, 100.0, 20.0], timm=[20.0, 200.0, 30.0])
    assert rows[0]["to_timm"] == 2.0 and "to_ours" not in rows[1]
    assert rows[0]["ms"] == 20.0 and rows[0]["img_per_s"] == 800.0


def test_flops_are_held_to_the_measured_ceiling() -> None:
    from step_bench.job import Case
    from step_bench.table import to_rows

    entries = [measured(name, [100.0]) for name in ("minimal", "fp32")]
    entries.append(measured("ceiling", [10.0], facts={"flop": 2e10}))  # 2e12 a second
    for precision, expected in (("bf16", None), ("no", 0.08)):
        minimal, fp32 = to_rows(Case("net", precision, 16, 224), entries, 1e9, {})
        assert minimal["tflops"] == 0.16 and minimal["share_of_ceiling"] == 0.08 and minimal["ceiling_tflops"] == 2.0
        assert fp32["share_of_ceiling"] == expected


def test_bars_hold_when_all_are_measured_and_reached() -> None:
    from step_bench.table import checked

    fast = {"minimal": [10.0], "fp32": [20.0], "timm": [11.5], "lightning": [11.5]}
    rows = rows_of(16, [10.0], **fast) + rows_of(4, [10.0], **fast)
    table, holds = checked(rows, on_gpu=False)
    assert holds and table.count("holds") == 6
    assert "| fp32 | 16 | 2 | 2.000 | holds |" in table and "| timm | 4 | 1.15 | 1.150 | holds |" in table
    assert not checked(rows, on_gpu=True)[1]  # its bars are others
    for slower in ({"minimal": [9.9]}, {"fp32": [19.9]}, {"timm": [9.9]}, {"lightning": [9.9]}):
        assert not checked(rows_of(16, [10.0], **fast | slower) + rows_of(4, [10.0], **fast), on_gpu=False)[1]
    for slower in ({"timm": [11.4]}, {"lightning": [11.4]}):
        assert not checked(rows_of(16, [10.0], **fast) + rows_of(4, [10.0], **fast | slower), on_gpu=False)[1]
    del fast["timm"]
    table, holds = checked(rows_of(16, [10.0], **fast) + rows_of(4, [10.0], **fast), on_gpu=False)
    assert not holds and table.count("not measured | MISSED") == 2


def test_a_loop_that_was_not_measured_is_named_with_its_reason() -> None:
    from step_bench.job import Case
    from step_bench.table import markdown, missing_row

    rows = rows_of(16, [10.0], timm=[20.0])
    rows.append(missing_row(Case("densenet121", "bf16", 16, 224), "lightning", "pip has no network", {"device": "one"}))
    assert rows[-1]["img_per_s"] is None and rows[-1].keys() >= {"model", "batch", "note", "device"}
    text = markdown(rows)
    assert "lightning: not measured: pip has no network" in text
    assert "| speed, times that of | timm |\n|---|---|\n| ours | 2.00 |" in text


def test_the_profiler_s_figures_are_a_step_s() -> None:
    from types import SimpleNamespace

    from step_bench.profiling import TOP, busy_share, top_table

    averages = [SimpleNamespace(key=f"op{n}", self_cpu_time_total=1e3 * n, count=4) for n in range(TOP + 3)]
    table = top_table(averages, 2, on_gpu=False)
    assert table[0] == (f"op{TOP + 2}", (TOP + 2) / 2, 2.0) and len(table) == TOP + 1
    assert table[-1] == ("2 others", 1.5, 4.0)  # op1 and op2; op0 took no time
    assert busy_share([(0.0, 10.0), (2.0, 4.0), (20.0, 30.0), (25.0, 40.0)]) == 0.75


@pytest.mark.parametrize(("model", "gmacs"), [("resnet18", 1.814), ("efficientnet_b0", 0.386)])
def test_an_image_s_operations_are_counted(model: str, gmacs: float) -> None:
    """Against torchvision's own figures of the forward pass; the second has convolutions with groups."""
    from step_bench.flops import flop_per_image

    assert flop_per_image(model, 224) == pytest.approx(3 * 2 * gmacs * 1e9, rel=0.01)


SPEAKER = """#!{python}
import json, os, sys, time
read, write = (os.fdopen(int(fd), mode) for fd, mode in zip(sys.argv[3:], "rw"))
def send(message):
    write.write(json.dumps(message) + "\\n"); write.flush()
job = json.loads(read.readline())
send({{"threads": job["threads"], "on_gpu": False, "parameters": {parameters}}})
windows = 0
for line in read:
    command = json.loads(line)
    with open({log!r}, "a") as file:
        file.write(f"{{job['loop']}} {{command['do']}} {{command['warm']}} {{command['steps']}}\\n")
    windows += command["do"] == "window"
    if windows > {lives}:
        print("out of luck", file=sys.stderr)
        sys.exit(3)
    send({{"ms": {ms}, "cpu_ms": 1.0, "memory_mb": 5.0, "outside_ms": 2.0, "table": []}})
"""


@pytest.fixture
def conducted(tmp_path: Path) -> Callable[..., tuple[list[Any], list[str], list[str]]]:
    """Measure loops that answer at once, as given: results, what each was asked in order, messages."""
    from step_bench.conduct import measure
    from step_bench.environments import Python
    from step_bench.job import Case, Job

    commands = tmp_path / "log"

    def run(*loops: tuple[str, dict[str, Any]], **more: Any) -> tuple[list[Any], list[str], list[str]]:
        entries = []
        for name, behaviour in loops:
            file = tmp_path / name
            values = {"parameters": 7, "lives": 100, "ms": 10.0} | behaviour
            file.write_text(SPEAKER.format(python=sys.executable, log=str(commands), **values))
            file.chmod(0o755)
            entries.append((name, "eager", Python(str(file))))

        def job(loop: str, mode: str) -> Job:
            return Job(loop, mode, "net", "bf16", 4, 32, "cpu", 1, "", "")

        logged: list[str] = []
        settings = {"steps": None, "windows": 2, "deadline_s": float("inf"), "trace": None} | more
        results = measure(Case("net", "bf16", 4, 32), entries, job, work=tmp_path, log=logged.append, **settings)
        return results, commands.read_text().splitlines(), logged

    return run


def test_loops_take_turns_and_a_drift_cancels(conducted: Callable[..., Any]) -> None:
    results, asked, logged = conducted(("ours", {"ms": 100.0}), ("timm", {"ms": 500.0}))
    assert asked == [
        "ours window 3 1", "timm window 3 1",  # warm-up: how long is a step?
        "ours window 1 15", "timm window 1 3",  # windows of 1.5 s
        "timm window 1 3", "ours window 1 15",
        "ours parts 1 15",
    ]  # fmt: skip
    assert [one.ms for one in results] == [[100.0, 100.0], [500.0, 500.0]]
    assert results[0].outside_ms == 2.0 and results[1].outside_ms is None and logged == []
    assert conducted(("ours", {}), steps=4)[1][-2:] == ["ours window 1 4", "ours parts 1 4"]


def test_a_loop_that_dies_leaves_the_others_alone(conducted: Callable[..., Any]) -> None:
    results, asked, logged = conducted(("ours", {}), ("timm", {"lives": 1}), ("ceiling", {}), windows=3)
    assert [len(one.ms) for one in results] == [3, 0, 3]
    assert results[1].failed == "its process ended with status 3: out of luck"
    assert logged == ["net, 32 px, batch 4, bf16: timm left out: its process ended with status 3: out of luck"]
    assert sum(line.startswith("timm") for line in asked) == 2


def test_no_window_begins_after_the_time_is_up(conducted: Callable[..., Any]) -> None:
    results, _, logged = conducted(("ours", {}), windows=9, deadline_s=time.monotonic() - 1)
    assert len(results[0].ms) == 1 and "1 of 9 windows" in logged[0]


def test_different_networks_are_not_compared(conducted: Callable[..., Any]) -> None:
    with pytest.raises(RuntimeError, match=r"differ in their parameters.*'timm': 8"):
        conducted(("ours", {}), ("timm", {"parameters": 8}))


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one wheel, all that pip can find."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / "standin-1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("standin.py", "__version__ = '1.2'\n")
        about = "standin-1.2.dist-info"
        wheel.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: standin\nVersion: 1.2\nRequires-Dist: absent\n"
        )
        wheel.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{about}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_an_environment_is_made_once_over_this_interpreter_s_packages(wheels: Path, tmp_path: Path) -> None:
    from step_bench.environments import python_for
    from step_bench.loops import Loop

    loop = Loop("none", "none", "standin", ("standin==1.2",))
    python = python_for(loop, tmp_path / "environments")
    probe = "import standin, numpy; print(standin.__version__, standin.__file__, numpy.__file__)"
    version, where, numpy_file = subprocess.check_output([python.path, "-c", probe], text=True).split()
    import numpy

    assert (version, numpy_file, python.note) == ("1.2", numpy.__file__, "")
    assert Path(where).is_relative_to(tmp_path / "environments")
    next(wheels.iterdir()).unlink()
    assert python_for(loop, tmp_path / "environments") == python  # pip would fail now
    assert len(list((tmp_path / "environments").iterdir())) == 1


def test_what_pip_can_t_install_is_missing_or_this_interpreter_s(wheels: Path, tmp_path: Path) -> None:
    from step_bench.environments import Unavailable, python_for
    from step_bench.loops import Loop

    with pytest.raises(Unavailable, match="No matching distribution found for standin==9"):
        python_for(Loop("none", "none", "standin", ("standin==9",)), tmp_path / "environments")
    python = python_for(Loop("none", "none", "numpy", ("numpy==9",)), tmp_path / "environments")
    assert python.path == sys.executable and "numpy==9 can't be installed: ERROR: No matching" in python.note
    assert list((tmp_path / "environments").iterdir()) == []


def test_environments_differ_by_pins_and_by_what_lies_below() -> None:
    from step_bench.environments import name_of

    names = {name_of(pins, sites) for pins in (("a==1",), ("a==1", "b==1"), ("a==2",)) for sites in (["x"], ["y"])}
    assert len(names) == 6 and all(name.startswith(("a-1-", "a-2-")) for name in names)


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Call the command in this process: exit status, and all its output."""
    import step as module

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["step.py", *map(str, arguments)])
        try:
            status = module.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return call


def test_what_the_time_does_not_reach_is_named(step: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    arguments = ("--models", "resnet18", "--precisions", "bf16", "--loops", "minimal", "fp32")
    status, output = step(*arguments, "--seconds", "1e-9", "--json", file)
    assert status == 0 and output.count("minimal: not measured: not reached in 1e-09 s") == 2
    assert [(row["batch"], row["loop"], row["ms"]) for row in json.loads(file.read_text())] == [
        (16, "minimal", None), (16, "fp32", None), (4, "minimal", None), (4, "fp32", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--steps", 0), "--steps: has to be at least 1"),
        (("--batches", 16, 1), "--batches: has to be at least 2"),
        (("--seconds", 0), "--seconds 0: has to be more than 0"),
        (("--ours", "eager,fast"), "--ours eager,fast: give some of eager, compile, graphs, autotune, deterministic"),
        (("--loops", "keras"), "invalid choice: 'keras'"),
        (("--json", "/"), "give a file in a folder that is there"),
        (("--profile", "absent/trace.json"), "give a file in a folder that is there"),
    ],
)
def test_wrong_arguments_are_refused(
    step: Callable[..., tuple[int, str]], arguments: tuple[object, ...], expected: str
) -> None:
    status, output = step(*arguments)
    assert status == 2 and expected in output
