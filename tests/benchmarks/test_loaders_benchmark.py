"""The loader benchmark end to end on tiny files, and what it makes of a result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distcxr.phantom.writing import write_phantom

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
COLUMNS = (
    "loader source image_size threads ranks img_per_s core_ms rss_mb first_batch_s working_set_mb ratio_to_seed "
    "ratio_to_memcpy page_cache date cpu cores gpu versions command note"
)
LOADERS = ("seed", "png", "pack", "cache", "png decode", "pack decode", "inflate", "memcpy")
Row = dict[str, Any]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Row], str, bytes]:
    """One real run: rows, output, the picture."""
    folder = tmp_path_factory.mktemp("loaders")
    write_phantom(folder / "data", images=16, size=64, workers=1)
    command = [
        sys.executable, str(BENCHMARKS / "loaders.py"), str(BENCHMARKS.parent / "recipes" / "quickstart.yaml"),
        "data.image_size=32", "--quick", "--root", str(folder / "data"), "--loaders", *LOADERS, "--files", "16",
        "--batch", "4", "--windows", "3", "--working-set-mb", "2", "--need", "5",
        "--json", str(folder / "rows.json"), "--plot", str(folder / "plot.png"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "rows.json").read_text()), done.stdout, (folder / "plot.png").read_bytes()


def test_a_quick_run_fills_every_column_with_sane_figures(measured: tuple[list[Row], str, bytes]) -> None:
    rows, output, plot = measured
    assert [(row["loader"], row["threads"]) for row in rows if row["threads"] > 1] in ([], [("png", 2)])
    assert [row["loader"] for row in rows if row["threads"] == 1] == list(LOADERS)
    for row in rows:
        assert set(COLUMNS.split()) <= row.keys()
        assert row["note"] == ""
        assert row["image_size"] == (64 if row["loader"] in ("png decode", "pack decode", "inflate") else 32)
        assert row["img_per_s"] > 10 and 0 < row["core_ms"] < 1000 and 5 < row["rss_mb"] < 5000
        low, high = row["img_per_s_range"]
        assert low <= row["img_per_s"] <= high
        limit = row["loader"] in ("inflate", "memcpy")
        assert (row["first_batch_s"] is None) if limit else (0 < row["first_batch_s"] < 60)
    assert plot.startswith(b"\x89PNG") and len(plot) > 5000
    assert output.startswith("Will 1 GPU starve with")
    assert output.count("\n| seed | png | 32 | 1 | 1 | warm | ") == 1


def test_ratios_are_those_of_the_speeds(measured: tuple[list[Row], str, bytes]) -> None:
    rows = measured[0]
    one = {row["loader"]: row for row in rows if row["threads"] == 1}
    assert one["seed"]["ratio_to_seed"] == one["memcpy"]["ratio_to_memcpy"] == 1
    for row in one.values():
        assert row["ratio_to_seed"] == pytest.approx(row["img_per_s"] / one["seed"]["img_per_s"], rel=2e-3)
        assert row["ratio_to_memcpy"] == pytest.approx(row["img_per_s"] / one["memcpy"]["img_per_s"], rel=2e-3)
    assert one["memcpy"]["img_per_s"] > one["png"]["img_per_s"] > one["seed"]["img_per_s"]
    assert one["cache"]["working_set_mb"] == one["memcpy"]["working_set_mb"] == pytest.approx(2 * 2**20 / 1e6, abs=0.1)


def test_the_work_of_other_processes_counts(measured: tuple[list[Row], str, bytes]) -> None:
    """The seed decodes in a worker: one core's time, not nothing, and not more than the clock's twice over."""
    seed = next(row for row in measured[0] if row["loader"] == "seed")
    assert seed["core_ms"] > 300 / seed["img_per_s"]


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """A result as it could be: seed 60 img/s, PNG 300, cache 150,000, memcpy 200,000, on one core."""
    facts = {
        "source": "png", "image_size": 224, "threads": 1, "ranks": 1, "page_cache": "warm", "rss_mb": 350.0,
        "base_mb": 250.0, "first_batch_s": 1.0, "working_set_mb": 4295.0, "ratio_to_seed": None,
        "ratio_to_memcpy": None, "note": "", "cpu": "one", "cores": 4, "gpu": None, "date": "2026-01-01",
    }  # fmt: skip

    def row(loader: str, speed: float, **more: Any) -> Row:
        return facts | {"loader": loader, "img_per_s": speed, "core_ms": 1000 / speed} | more

    rows = [
        row("seed", 60.0), row("png", 300.0), row("png", 590.0, threads=2, core_ms=3.4), row("torch", 250.0),
        row("dali", 200.0), row("cache", 150e3, source="cache"), row("memcpy", 200e3, source="memory"),
        row("torchvision decode", 100.0, image_size=1024), row("dali decode", 100.0, image_size=1024),
        row("png decode", 330.0, image_size=1024), row("pil decode", 100.0, image_size=1024),
        row("pack decode", 220.0, image_size=1024, source="pack"), row("pack build", 60.0, image_size=1024),
    ]  # fmt: skip
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows))
    return file


@pytest.fixture
def loaders(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Call the command in this process: exit status and output."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import loaders as module

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["loaders.py", *map(str, arguments)])
        try:
            status = module.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return call


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--need", 400, "--cores", 4], "No: data.loader=torch gives 2.5 times what they need"),
        (["--need", 400, "--cores", 4, "--gpus", 4], "Yes, with PNGs: 4 cores decode 62% of what they need"),
        (["--need", 3000], "build the decoded cache once (`distcxr cache "),
        (["--need", 3000], "and set data.loader=cache: it gives 50 times the need"),
        (["--need", 1e6], "and data.cache.resident=device"),
        ([], "Unknown before the need is known"),
        ([], "unknown: give it as --need"),
        (["--cores", 8], "| torch | 250 | ~2,000 | 5 |"),
    ],
)
def test_the_advice_follows_from_need_and_speed(
    loaders: Callable[..., tuple[int, str]], result: Path, arguments: list[object], expected: str
) -> None:
    status, output = loaders("--from", result, *arguments)
    assert status == 0
    assert expected in output


def test_a_result_is_compared_with_another_row_by_row(
    loaders: Callable[..., tuple[int, str]], result: Path, tmp_path: Path
) -> None:
    rows = json.loads(result.read_text())
    for row in rows:
        row["img_per_s"] /= 2
        row["core_ms"] *= 4
    rows[0]["cpu"] = "another"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(rows[:-1]))
    _, output = loaders("--from", result, "--against", other)
    assert "| seed | png | 224 | 1 | 1 | warm | 30 | 60 | 2 | 66.7 | 16.7 | 4 |" in output
    assert "median speed ratio of 12 cases: 2.00" in output
    assert "1 cases are only in this run, 0 only in the other" in output
    assert "not the same machine: cpu was another, is one" in output


def test_check_fails_when_one_promise_is_not_kept(loaders: Callable[..., tuple[int, str]], result: Path) -> None:
    status, output = loaders("--from", result, "--check")
    assert (status, output.count("| holds |")) == (0, 10)
    rows = json.loads(result.read_text())
    rows[5]["rss_mb"] = 551.0
    result.write_text(json.dumps(rows))
    status, output = loaders("--from", result, "--check")
    assert status == 1
    assert "| cache: memory beyond the map and Python with torch, MB | ≤ 300 | 301.00 | FAILS |" in output
    del rows[5]
    result.write_text(json.dumps(rows))
    assert loaders("--from", result, "--check")[0] == 1  # what was not measured is not kept
    assert loaders("--from", result)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--need", "0"], "--need 0: give the img/s"),
        (["--windows", "0"], "--windows 0: has to be at least 1"),
        (["--threads", "1", "0"], "--threads: every value has to be at least 1"),
        (["--loaders", "ffcv"], "invalid choice: 'ffcv'"),
        (["--from", "absent.json"], "absent.json can't be read: No such file"),
        (["--from", __file__], "is not JSON"),
        (["--against", os.devnull, "--quick"], "is not JSON"),
        (["--from", "absent.json", "--quick"], "leave --quick away"),
        (["--json", "absent/rows.json"], "the folder absent is not there"),
        (["--json", "/"], "/ is a folder: give the name of a file"),
        (["--plot", "/"], "/ is a folder: give the name of a file"),
        (["--work", "/dev/null/work"], "--work /dev/null/work can't be made"),
        (["--check", "--loaders", "png"], "leave --loaders away"),
        (["--root", "absent"], "absent holds 0 PNGs"),
        (["absent.yaml"], "absent.yaml"),
        (["data.image_sise=3"], "image_sise"),
    ],
)
def test_bad_arguments_are_refused_in_plain_words(
    loaders: Callable[..., tuple[int, str]], arguments: list[str], expected: str
) -> None:
    status, output = loaders(*arguments)
    assert status == 2
    assert expected in output


def test_a_case_that_breaks_leaves_the_others_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from loader_bench.cases import Case, Task
    from loader_bench.measure import measure

    write_phantom(tmp_path / "data", images=8, size=32, workers=1)
    files = tuple(map(str, sorted((tmp_path / "data" / "images").glob("*.png"))))

    def tasks(case: Case) -> list[Task]:
        seen = files if case.image_size == 16 else ("absent.png",) * 4
        return [Task(case.loader, case.image_size, 1, rank, case.ranks, seen, 4, None, 8, None) for rank in range(2)]

    heard: list[str] = []
    started = time.monotonic()
    cases = [Case("png", 16, 1, 2), Case("png", 24, 1, 2)]
    good, bad = measure(cases, tasks, num_windows=2, drop=lambda _: [], log=heard.append)
    assert time.monotonic() - started < 120
    assert good.failed is None and [len(parts) for parts in good.windows] == [2, 2]
    assert [part.images for part in good.windows[0]] == [32, 32]  # whole rounds of 8 files, at least 32 images
    assert bad.windows == [] and bad.failed is not None and "can't be read: No such file" in bad.failed
    assert heard == [f"png, 24 px, threads 1, ranks 2: left out: {bad.failed}"]


def test_dropped_pages_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from loader_bench.measure import drop_pages, resident_pages

    file = tmp_path / "bytes"
    file.write_bytes(os.urandom(1 << 20))
    file.read_bytes()
    with file.open("rb") as stream:
        resident, pages = resident_pages(stream.fileno())
    assert (resident, pages) == (256, 256)
    assert 0 <= drop_pages([str(file)]) <= 1  # 1 where the folder is in memory itself
