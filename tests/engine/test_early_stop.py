"""When a stage no longer helps."""

from __future__ import annotations

import pytest

from distcxr.engine.stages import stops_early


def steps_until(scores: list[float | None], **rule: float | int | None) -> int | None:
    """Validations after which training ends; None if it continues."""
    settings = {"patience": 3, "min_delta": 0.0} | rule
    return next((done for done in range(len(scores) + 1) if stops_early(scores[:done], **settings)), None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scores", "rule", "expected"),
    [
        ([0.1, 0.2, 0.2, 0.19, 0.2], {}, 5),
        ([0.1, 0.2, 0.2, 0.21, 0.2, 0.2], {}, None),
        ([0.1, 0.1], {"patience": 1}, 2),
        ([0.5, 0.51, 0.52, 0.53], {"min_delta": 0.02}, None),
        ([0.5, 0.51, 0.52, 0.52], {"min_delta": 0.02}, 4),
        ([None, None, None], {}, 3),
        ([None, 0.5, None, None], {}, None),
        ([0.5] * 50, {"patience": None}, None),
        ([-0.7, -0.6, -0.5], {"patience": 1}, None),
    ],
)
def test_it_ends_after_patience(
    scores: list[float | None], rule: dict[str, float | None], expected: int | None
) -> None:
    assert steps_until(scores, **rule) == expected
