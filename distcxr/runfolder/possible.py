"""Checks that the figures of a JSON file are possible: shares from 0 to 1, counts of 0 or more, ordered intervals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ROUNDING = 1e-9
_SHARES = frozenset(
    ("auroc", "auprc", "auroc_a", "auroc_b", "auroc_other", "brier", "ece", "delong", "recall", "precision",
     "specificity", "npv", "accuracy", "f1", "threshold_prob", "level", "p", "p_delong", "p_floor", "p_holm",
     "p_delong_holm", "p_adjusted", "alpha", "prob", "mean_prob", "frequency")
)  # fmt: skip
_COUNTS = frozenset(
    ("num", "num_positive", "num_samples", "num_patients", "num_positive_patients", "num_pairs_compared", "replicates",
     "step", "count", "ece_bins", "num_findings", "num_tested", "min_patients", "tp", "fp", "fn", "tn")
)  # fmt: skip


def check_possible(path: Path, content: Any) -> None:
    """Look through a parsed JSON file at any depth.

    Raises:
        ValueError: a share that is not null or between 0 and 1, a count that is not null or a whole number of 0 or
            more, an interval that is upside down, or more positives than labels; names file, key and value.
    """
    for keys, value in _entries(content, ()):
        key = next((name for name in reversed(keys) if not name.isdigit()), "")
        if key.removesuffix("_low").removesuffix("_high") in _SHARES:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (is_number and -_ROUNDING <= value <= 1 + _ROUNDING):
                raise ValueError(f"{path} is damaged: {'.'.join(keys)} is {value!r}, not null or between 0 and 1")
        elif key in _COUNTS:
            is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
            if value is not None and not is_count:
                raise ValueError(f"{path} is damaged: {'.'.join(keys)} is {value!r}, not null or a count")
    for keys, values in _objects(content, ()):
        for low, high in [(key, f"{key[:-4]}_high") for key in values if key.endswith("_low")]:
            _in_order(path, keys, values, low, high)
        _in_order(path, keys, values, "num_positive", "num")


def _in_order(path: Path, keys: tuple[str, ...], values: dict[str, Any], low: str, high: str) -> None:
    first, second = values.get(low), values.get(high)
    if isinstance(first, int | float) and isinstance(second, int | float) and first > second:
        where = ".".join((*keys, ""))
        raise ValueError(f"{path} is damaged: {where}{low} is {first!r}, more than {high}, {second!r}")


def _entries(content: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Everything but objects and lists, with the keys that lead there."""
    if isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _entries(value, (*keys, str(key)))
    elif keys:
        yield keys, content


def _objects(content: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    if isinstance(content, dict):
        yield keys, content
    if isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _objects(value, (*keys, str(key)))
