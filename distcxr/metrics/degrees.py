"""How many degrees of freedom a variance between patients has: the patients of the rarer class, less 1.

Nearly all of the variance of a figure of both classes comes from them.
"""

from __future__ import annotations

from distcxr.metrics.scored import Known, count_patients

MIN_PATIENTS = 10
"""Of either class; with fewer, no interval and no p-value: the variance itself is then too uncertain."""


def degrees_of_freedom(known: Known) -> tuple[int | None, str | None]:
    """Of a figure of both classes; or None and the reason, with fewer than `MIN_PATIENTS` of one of them."""
    if known.reason:
        return None, known.reason
    is_positive_M = known.targets_M == 1
    counts = [count_patients(known.patient_M[inside_M]) for inside_M in (is_positive_M, ~is_positive_M)]
    fewest = min(counts)
    if fewest >= MIN_PATIENTS:
        return fewest - 1, None
    name = ("positive", "negative")[counts.index(fewest)]
    plural = "patient" if fewest == 1 else "patients"
    return None, f"{fewest} {name} {plural}: nothing holds with fewer than {MIN_PATIENTS}"
