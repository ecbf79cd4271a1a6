"""The learning rate of every update, against formulas and at the ends."""

import math
from itertools import pairwise
from typing import Any

import pytest

from distcxr.schedule import lr_at

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
        ({"base_lr": 0.0}, "optim.lr"),
        ({"base_lr": float("nan")}, "optim.lr"),
        ({"min_lr": 1.0}, "min_lr"),
        ({"min_lr": -1e-6}, "min_lr"),
        ({"name": "step"}, "schedule.name=step"),
    ],
)
def test_nonsense_is_named(changes: dict[str, Any], named: str) -> None:
    settings: dict[str, Any] = {
        "step": 0, "name": "cosine", "base_lr": BASE, "warmup_steps": 2, "total_steps": 10,
    }  # fmt: skip
    with pytest.raises(ValueError, match=named):
        lr_at(**(settings | changes))
