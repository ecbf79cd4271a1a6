"""What a figure can be: a page must not print an AUROC of 7.3 that somebody's slip put into a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ROUNDING = 1e-9
_SHARES = frozenset(
    ("auroc", "auprc", "auroc_a", "auroc_b", "auroc_other", "brier", "ece", "delong", "recall", "precision",
     "specificity", "npv", "accuracy", "f1", "threshold_prob", "level", "p", "p_delong", "prob", "mean_prob",
     "frequency")
)  # fmt: skip
_COUNTS = frozenset(
    ("num", "num_positive", "num_samples", "num_patients", "num_pairs_compared", "replicates", "step", "count",
     "ece_bins", "tp", "fp", "fn", "tn")
)  # fmt: skip


def check_possible(path: Path, content: Any) -> None:
    """Look through a parsed JSON file at any depth.

    Raises:
        ValueError: a share that is not null or between 0 and 1, a count that is not null or a whole number of 0 or
            more, an interval that is upside down, or more positives than labels; names file, key and value.
    """
    for place, value in _entries(content, ()):
        key = next(name for name in reversed(place) if not name.isdigit())
        if key.removesuffix("_low").removesuffix("_high") in _SHARES:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (is_number and -_ROUNDING <= value <= 1 + _ROUNDING):
                raise ValueError(f"{path} is damaged: {'.'.join(place)} is {value!r}, not null or between 0 and 1")
        elif key in _COUNTS:
            is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
            if value is not None and not is_count:
                raise ValueError(f"{path} is damaged: {'.'.join(place)} is {value!r}, not null or a count")
    for place, held in _objects(content, ()):
        for low, high in [(key, f"{key[:-4]}_high") for key in held if key.endswith("_low")]:
            _in_order(path, place, held, low, high)
        _in_order(path, place, held, "num_positive", "num")


def _in_order(path: Path, place: tuple[str, ...], held: dict[str, Any], low: str, high: str) -> None:
    first, second = held.get(low), held.get(high)
    if isinstance(first, int | float) and isinstance(second, int | float) and first > second:
        where = ".".join((*place, ""))
        raise ValueError(f"{path} is damaged: {where}{low} is {first!r}, more than {high}, {second!r}")


def _entries(content: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Everything but objects and lists, with the keys that lead there."""
    if isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _entries(value, (*place, str(key)))
    elif place:
        yield place, content


def _objects(content: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    if isinstance(content, dict):
        yield place, content
    if isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _objects(value, (*place, str(key)))
