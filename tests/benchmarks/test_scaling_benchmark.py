"""The scaling benchmark end to end with two ranks, and its refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "scaling.py"), *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "DISTCXR_NIH_ROOT"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_two_ranks_are_measured_taken_apart_and_predicted(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    small = ("data.image_size=32", "data.loader=torch", "data.num_workers=0")
    done = run("--quick", "--batch", 8, "--steps", 2, "--windows", 2, "--largest-mb", 1, "--json", file, *small)
    assert done.returncode == 0, done.stderr
    assert "batch 8, window 2 of 2: " in done.stderr and "batch 4, window 1 of 2: " in done.stderr
    rows = json.loads(file.read_text())
    steps = [row for row in rows if row["kind"] == "step"]
    worlds = [(row["ranks"], row["mode"], row["batch"]) for row in steps]
    assert worlds == [(1, "weak", 8), (1, "batch 2", 2), (1, "batch 4", 4), (2, "weak", 8), (2, "strong", 4)]
    for row in steps:
        parts = row["forward_s"] + row["backward_s"] + row["update_s"]
        assert 0 < parts < 1.5 * row["alone_s"] and row["data_s"] >= 0 and row["deviation_s"] >= 0
        shares = [share for share, _ in row["gradients"]]
        assert shares == sorted(shares) and 0 < shares[0] < shares[-1] <= 1
    reduced = [row["bytes"] for row in rows if row["kind"] == "all_reduce"]
    assert reduced == [2**10, 2**12, 2**14, 2**16, 2**18, 2**20]
    assert {row["backend"] for row in steps if row["ranks"] == 2} == {"gloo"}

    # The model fills its buckets from the order of the gradients as DDP has filled its own.
    sys.path.insert(0, str(BENCHMARKS))
    from scaling_bench.fit import fit

    model, _ = fit(rows)
    real = next(row["bucket_bytes"] for row in steps if row["ranks"] == 2)
    assert len(real) > 1 and [bucket.num_bytes for bucket in model.buckets(8, 25)] == real

    assert "means nothing for GPUs" in done.stdout and "Predicted, not measured" in done.stdout
    assert done.stdout.count("\n| 1,024 |") == 1 + 4 * 2  # weak scaling, and settings of four networks
    again = run("--from", file, "--sizes", 16, "--latency-us", 5, "--bandwidth-gbs", 50, "--node-gpus", 4)
    assert again.returncode == 0 and "| GPUs | 50 GB/s a node |" in again.stdout, again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ranks", 2, 4), "1 has to be among them"),
        (("--batch", 0), "--batch 0: has to be at least 1"),
        (("--latency-us", 5), "--bandwidth-gbs and --latency-us go together"),
        (("--bandwidth-gbs", -1, "--latency-us", 5), "--bandwidth-gbs -1: has to be more than 0"),
        (("--from", "nowhere.json"), "--from nowhere.json: can't be read"),
    ],
)
def test_a_wrong_question_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], message: str
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import scaling

    monkeypatch.setattr(sys, "argv", ["scaling.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        scaling.main()
    assert stop.value.code == 2 and message in capsys.readouterr().err
