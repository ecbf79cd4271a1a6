"""p-values of several tests at once: the chance of any false alarm among them stays at the level."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted by Holm's step-down method, in the order given; None stays None and counts for nothing.

    Valid however the tests depend on each other. Sture Holm, Scandinavian Journal of Statistics 6 (1979), 65-70.
    """
    tested = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(tested):
        highest = max(highest, min(1.0, p * (len(tested) - rank)))
        adjusted[place] = highest
    return adjusted


def p_text(p: float | None, floor: float | None = None) -> str:
    """For a table: never 0, and marked where the resamples could not have shown less; a dash without one."""
    if p is None:
        return "-"
    if floor is not None and p <= floor:
        return f"<= {p:.4f}"
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"
