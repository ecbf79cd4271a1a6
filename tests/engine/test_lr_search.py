"""The learning-rate range test: a run's own updates, and what is read off their losses."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import tiny

from distcxr.cli import main
from distcxr.engine.lr_search import find_lr, has_diverged, rising, suggest
from distcxr.recipe import load_recipe


def test_updates_are_those_of_a_run(finished: Path) -> None:
    """Same images, augmentation, precision and weights: with a run's own rates the losses are its own."""
    recipe, rows = load_recipe(finished / "recipe.yaml"), tiny.rows(finished / "steps.csv")[:5]  # into the second epoch
    found = find_lr(recipe, tiny.runtime(recipe), [float(row["lr"]) for row in rows])
    assert found.losses == pytest.approx([float(row["loss"]) for row in rows], rel=1e-4) and not found.diverged


def test_the_verb_shows_and_writes_and_leaves_runs_alone(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def files() -> dict[Path, int]:  # the log's handler is still there, of the run that this process made
        return {path: path.stat().st_mtime_ns for path in finished.parent.rglob("*") if path.name != "log.txt"}

    before = files()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("distcxr.runtime.start_runtime", tiny.runtime)
    monkeypatch.setattr("distcxr.logs.start_logging", lambda console: None)  # it would take pytest's handlers
    words = ["find-lr", str(finished / "recipe.yaml"), "--from", "1e-5", "--to", "1e4", "--steps", "30"]
    monkeypatch.setattr("sys.argv", ["distcxr", *words, "--out", "lr.csv"])
    monkeypatch.setattr("distcxr.cli.building._LOG_EVERY_S", 0.0, raising=False)  # in a log: half a minute
    assert main() == 0
    shown, logged = capsys.readouterr()
    assert " updates 1/30  lr 1.00e-05  loss 0." in logged and " updates 2/30  " in logged and "  ETA 0:0" in logged
    assert "the loss diverged up to lr" in shown and "optim.lr=" in shown and "the recipe has 0.001" in shown
    rows = tiny.rows(tmp_path / "lr.csv")
    assert [float(row["lr"]) for row in rows] == pytest.approx(rising(1e-5, 1e4, 30)[: len(rows)]) and len(rows) < 30
    chart = (tmp_path / "lr.svg").read_text()
    assert ">learning rate<" in chart and ">1e-4<" in chart and "rings: falls fastest, " in chart
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lr.csv", "lr.svg"]
    assert files() == before


def test_suggestions_of_a_known_curve() -> None:
    """Flat, then down along a logistic curve with its middle at 1e-3, then up from 1e-1 on."""
    lrs = rising(1e-6, 1.0, 121)
    x = np.log10(lrs)
    losses = 0.7 - 0.5 / (1 + np.exp(-4 * (x + 3))) + np.maximum(0, x + 1) ** 2 / 4
    found = suggest(lrs, losses + np.random.default_rng(0).normal(0, 0.004, len(x)))
    assert found.steepest is not None and math.log10(found.steepest) == pytest.approx(-3, abs=0.3)
    assert found.tenth is not None and math.log10(found.tenth) == pytest.approx(-2, abs=0.5)
    assert not found.diverged
    single = losses.copy()
    single[90] = 0.05  # a batch without findings: no bound for the others
    assert suggest(lrs, single).smoothed[0] == pytest.approx(losses[0], rel=1e-3)
    risen = suggest(lrs, [*losses[:-2], 50.0, math.inf])  # what is cut does not reach back
    assert risen.diverged and risen.tenth == pytest.approx(found.tenth, rel=0.5) and max(risen.smoothed) < 1


def test_a_loss_that_never_falls_suggests_nothing() -> None:
    found = suggest(rising(1e-3, 1.0, 40), list(np.linspace(0.5, 1.5, 40)))
    assert found.steepest is None and found.tenth is None
    assert suggest([0.1], [math.nan]).steepest is None


def test_divergence_is_four_times_the_lowest_mean() -> None:
    losses = [0.7, 0.5, 0.3]
    assert not has_diverged([*losses, 3.0])  # a single high loss weighs a tenth or so
    assert has_diverged([*losses, *[3.0] * 12])
    assert has_diverged([*losses, math.nan])
    assert not has_diverged([0.3, *[0.01] * 30, *[0.1] * 30])  # where it began is not diverged
    assert not has_diverged([-0.1, -0.2, -0.1])  # a loss of one's own may be negative


@pytest.mark.parametrize("words", [("--from", "1", "--to", "0.1"), ("--out", "lr.png")])
def test_options_that_can_t_be(words: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["distcxr", "find-lr", "densenet121", *words])
    assert main() == 2
