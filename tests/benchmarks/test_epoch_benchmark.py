"""The epoch benchmark end to end on small synthetic images, with a cache, and its refusals."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import tiny

ROOT = Path(__file__).parents[2]
SMALL = ("data.image_size=32", "data.num_workers=0")


@pytest.fixture
def epoch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """The benchmark, in this process, with its arguments set."""
    monkeypatch.delenv("DISTCXR_NIH_ROOT", raising=False)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import epoch as module

    def given(*arguments: object) -> ModuleType:
        monkeypatch.setattr(
            sys, "argv", ["epoch.py", str(ROOT / "recipes" / "quickstart.yaml"), *SMALL, *map(str, arguments)]
        )
        monkeypatch.setattr(module, "start_runtime", tiny.runtime)
        return module

    return given


@pytest.mark.slow
def test_epochs_are_timed_and_extrapolated(
    epoch: Callable[..., ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, loader = tmp_path / "row.json", "cache"
    # Of 400 images 6 batches of 48 train: the steps are of two epochs, the first two of each left out.
    epoch(f"data.loader={loader}", "train.global_batch_size=48", "--steps", 5, "--json", file).main()
    printed = capsys.readouterr().out
    (row,) = json.loads(file.read_text())
    assert (row["loader"], row["batch"], row["steps"], row["phantom"]) == (loader, 48, 5, True)
    assert row["reader"] == "CacheReader"
    assert row["img_per_s"] > 0 and row["step_img_per_s"] > 0 and row["epoch_start_s"] > 0
    assert 0 <= row["starvation_pct"] < 100 and 0 < row["host_outside_pct"] < 100
    assert row["images_of_epoch"] == 77_766
    seconds = 10 * (77_766 / row["img_per_s"] + row["epoch_start_s"])
    assert row["minutes_10_epochs"] == pytest.approx(seconds / 60, abs=0.01)
    assert "synthetic ones of 32 px stand in for them" in printed and f"| {loader} | 48 |" in printed


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--steps", "0"), "--steps 0: has to be at least 1"),
        (("--root", "absent"), "absent"),
        (("data.loader=ffcv",), "data.loader"),
    ],
)
def test_wrong_arguments_are_refused(
    epoch: Callable[..., ModuleType],
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    expected: str,
) -> None:
    with pytest.raises(SystemExit) as stop:
        epoch(*arguments).main()
    assert stop.value.code == 2 and expected in capsys.readouterr().err
