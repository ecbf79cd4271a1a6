"""The epoch benchmark end to end on small synthetic images, with a cache, and its refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = ("data.image_size=32", "data.num_workers=0")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/epoch.py", "recipes/quickstart.yaml", *SMALL, *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "DISTCXR_NIH_ROOT"}
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_epochs_are_timed_and_extrapolated(tmp_path: Path) -> None:
    file, loader = tmp_path / "row.json", "cache"
    # Of 400 images 6 batches of 48 train: the steps are of two epochs, the first two of each left out.
    done = run(f"data.loader={loader}", "train.global_batch_size=48", "--steps", 5, "--json", file)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(file.read_text())
    assert (row["loader"], row["batch"], row["steps"], row["phantom"]) == (loader, 48, 5, True)
    assert row["reader"] == "CacheReader"
    assert row["img_per_s"] > 0 and row["step_img_per_s"] > 0 and row["epoch_start_s"] > 0
    assert 0 <= row["starvation_pct"] < 100 and 0 < row["host_outside_pct"] < 100
    assert row["images_of_epoch"] == 77_766
    seconds = 10 * (77_766 / row["img_per_s"] + row["epoch_start_s"])
    assert row["minutes_10_epochs"] == pytest.approx(seconds / 60, abs=0.01)
    assert "synthetic ones of 32 px stand in for them" in done.stdout and f"| {loader} | 48 |" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--steps", "0"), "--steps 0: has to be at least 1"),
        (("--root", "absent"), "absent"),
        (("data.loader=ffcv",), "data.loader"),
    ],
)
def test_wrong_arguments_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], expected: str
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import epoch

    monkeypatch.setattr(sys, "argv", ["epoch.py", str(ROOT / "recipes" / "quickstart.yaml"), *SMALL, *arguments])
    with pytest.raises(SystemExit) as stop:
        epoch.main()
    assert stop.value.code == 2 and expected in capsys.readouterr().err
