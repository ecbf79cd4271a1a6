"""The learning rate of every update, against formulas and at the ends."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from distcxr.schedule import lr_at, reductions

BASE = 3e-4


def _all(total: int, **changes: Any) -> list[float]:
    settings: dict[str, Any] = {"name": "cosine", "base_lr": BASE, "warmup_steps": 0} | changes
    return [lr_at(step, total_steps=total, **settings) for step in range(total)]


def test_cosine_after_a_warm_up_written_out() -> None:
    rates = _all(9, warmup_steps=5, min_lr=1e-5)
    assert rates[:5] == pytest.approx([BASE * k / 5 for k in (1, 2, 3, 4, 5)], rel=1e-15)
    half = math.sqrt(0.5)  # the cosine at a quarter of the way is 1/sqrt(2)
    middle = (BASE + 1e-5) / 2
    falls = [middle + (BASE - 1e-5) / 2 * c for c in (half, 0.0, -half, -1.0)]
    assert rates[5:] == pytest.approx(falls, rel=1e-12)


def test_constant_is_constant() -> None:
    assert _all(6, name="constant") == [BASE] * 6
    assert _all(6, name="constant", warmup_steps=3)[2:] == [BASE] * 4


@pytest.mark.parametrize("warmup", [0, 1, 2, 30, 99, 100])
@pytest.mark.parametrize("name", ["constant", "cosine"])
def test_it_rises_to_the_peak_once_and_never_rises_again(name: str, warmup: int) -> None:
    rates = _all(100, name=name, warmup_steps=warmup, min_lr=1e-6 if name == "cosine" else 0.0)
    peak = max(warmup - 1, 0)
    assert max(rates) == rates[peak] == BASE
    assert all(a < b for a, b in pairwise(rates[: peak + 1]))
    assert all(a >= b for a, b in pairwise(rates[peak:]))
    assert min(rates) > 0


def test_the_ends_are_exact() -> None:
    assert _all(100, min_lr=1e-6)[-1] == 1e-6
    assert _all(100)[-1] == 0.0
    assert _all(100)[0] == BASE
    assert _all(100, warmup_steps=100)[-1] == BASE
    assert _all(2, min_lr=1e-6) == [BASE, 1e-6]
    assert _all(1) == [BASE], "a single update has to train something"


def test_a_step_depends_on_nothing_before_it() -> None:
    forwards = _all(50, warmup_steps=7)
    backwards = [
        lr_at(step, name="cosine", base_lr=BASE, warmup_steps=7, total_steps=50) for step in reversed(range(50))
    ]
    assert forwards == backwards[::-1]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"step": -1}, "step -1"),
        ({"step": 10}, "steps 0 to 9"),
        ({"total_steps": 0}, "0 steps"),
        ({"warmup_steps": 11}, "warmup is 11"),
        ({"warmup_steps": -1}, "warmup is -1"),
        ({"min_lr": 1.0}, "min_lr"),
        ({"min_lr": -1e-6}, "min_lr"),
        ({"name": "plateau", "min_lr": 1.0}, "min_lr"),
    ],
)
def test_nonsense_is_named(changes: dict[str, Any], named: str) -> None:
    settings: dict[str, Any] = {
        "step": 0, "name": "cosine", "base_lr": BASE, "warmup_steps": 2, "total_steps": 10,
    }  # fmt: skip
    with pytest.raises(ValueError, match=named):
        lr_at(**(settings | changes))


def _sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)


@pytest.mark.parametrize("every", [1, 3, 7, 100])
def test_step_is_pytorchs(every: int) -> None:
    optimizer = _sgd()
    theirs = torch.optim.lr_scheduler.StepLR(optimizer, every, gamma=0.1)
    expected = []
    for _ in range(30):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert _all(30, name="step", factor=0.1, factor_every=every) == pytest.approx(expected, rel=1e-12)


def test_step_falls_while_it_warms_up() -> None:
    rates = _all(6, name="step", warmup_steps=4, factor=0.5, factor_every=2)
    assert rates == pytest.approx([BASE * share for share in (1 / 4, 2 / 4, 3 / 4 / 2, 1 / 2, 1 / 4, 1 / 4)], rel=1e-12)


@pytest.mark.parametrize("patience", [0, 1, 3, 10])
def test_plateau_is_pytorchs(patience: int) -> None:
    """Of ReduceLROnPlateau with any gain counted as one; rounded scores, so that ties are among them."""
    scores: list[float | None] = np.random.default_rng(patience).normal(size=200).cumsum().round(1).tolist()
    optimizer = _sgd()
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=0.5, patience=patience, threshold=0, min_lr=1e-6, eps=0
    )
    for done in range(1, len(scores) + 1):
        score = scores[done - 1]
        assert score is not None
        theirs.step(score)
        ours = lr_at(0, name="plateau", base_lr=BASE, warmup_steps=0, total_steps=1, min_lr=1e-6, factor=0.5,
                     reductions=reductions(scores[:done], patience))  # fmt: skip
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12), done
    assert reductions(scores, patience) > 0


def test_an_undefined_validation_is_not_better() -> None:
    assert reductions([None, None, 0.5, None, 0.6, None, None], patience=1) == 2
    assert reductions([], patience=0) == 0
