"""`distcxr score --against`: two models on the same images, printed and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from distcxr.cli.scored_files import Joined
    from distcxr.metrics.bootstrap import PatientResamples
    from distcxr.metrics.foreign import ForeignScores
    from distcxr.metrics.operating import Operating
    from distcxr.metrics.paired_tests import PairedDifference
    from distcxr.metrics.scored import Scored

_ABOUT_P = (
    "p of a finding's AUROC: DeLong by patient; other p: patient resamples, at least {floor:.4f}. Holm: adjusted over "
    "the findings of the table. Differences of recall, specificity and precision at thresholds: --json FILE writes them"
)


def compare(
    against: Path,
    joined: Joined,
    resamples: PatientResamples,
    other: ForeignScores,
    at: NDArray[np.int64],
    log: list[str],
    findings: list[str],
    operating: tuple[Operating | None, Operating | None],
) -> dict[str, Any]:
    """Compare the scored model with another on the same images, print the differences, and return them for JSON.

    Thresholds of both are from validation or, without any, of both from the images scored; with those of one model
    alone, rates are not compared.
    """
    from distcxr.metrics.figures_json import comparison_json, paired_json
    from distcxr.metrics.operating import FROM_ITSELF, choose_operating
    from distcxr.metrics.paired_tests import compare_models
    from distcxr.metrics.summary import NO_FINDING
    from distcxr.tracking.terminal import table_text

    macro = [name for name in findings if name != NO_FINDING]
    this, that = joined.of(findings), joined.of(findings, other, at)
    own, others = operating
    chosen, chosen_on = None, None
    if own and others:
        chosen, chosen_on = (own, others), "val"
    elif not own and not others:
        chosen, chosen_on = (choose_operating(this), choose_operating(that)), FROM_ITSELF
    compared = compare_models(resamples, this, that, macro, chosen)
    reason = None if chosen else "only one of the two models has thresholds from validation"
    entry = {
        "operating_points_from": chosen_on,
        "operating_points_reason": reason,
        **comparison_json(compared, findings),
    }
    print(f"\nless {against}, the same resampled patients for both")
    for sentence in log:
        print(sentence)
    macro_name = f"macro of {len(compared.macro_findings)}"
    for title, found, average in (
        ("AUROC", compared.auroc, compared.macro_auroc),
        ("average precision", compared.auprc, compared.macro_auprc),
    ):
        rows: list[tuple[str, ...]] = [(title, "this", "other", "difference", "interval", "p", "Holm", "")]
        rows += [_row(*named, by_delong=title == "AUROC") for named in zip(findings, found, strict=True)]
        rows.append(_row(macro_name, average))
        print(f"{table_text(rows, width=100)}\n")
    if accuracies := _accuracies(resamples, this, joined, other, at, findings):
        entry["accuracy"] = paired_json("accuracy", accuracies)
        head = ("accuracy", "this", "other", "difference", "interval", "p", "Holm", "")
        print(f"{table_text([head, _row('likeliest class', accuracies)], width=100)}\n")
    print(_ABOUT_P.format(floor=2 / (resamples.num_replicates + 1)))
    if reason:
        print(f"Rates at thresholds are not compared: {reason}; see --against-calibrate-on")
    return entry


def _accuracies(
    resamples: PatientResamples, this: Scored, joined: Joined, other: ForeignScores, at: NDArray[np.int64],
    findings: list[str],
) -> PairedDifference | None:  # fmt: skip
    """Accuracy of both, where the findings exclude each other."""
    from distcxr.metrics.accuracy import accuracy_difference, is_exclusive, right_N
    from distcxr.metrics.foreign import columns_of

    own, theirs = columns_of(joined.scores, findings), columns_of(other, findings)
    labels = joined.targets_NC[:, own], joined.mask_NC[:, own]
    if not is_exclusive(*labels):
        return None
    a_N, b_N = (right_N(scores, *labels) for scores in (joined.scores_NC[:, own], other.scores_NC[at][:, theirs]))
    return None if a_N is None or b_N is None else accuracy_difference(resamples, this, a_N, b_N)


def _row(name: str, found: PairedDifference, by_delong: bool = False) -> tuple[str, ...]:
    from distcxr.metrics.p_values import p_text
    from distcxr.metrics.summary import area_text

    low, high = found.difference.low, found.difference.high
    difference = "-" if found.difference.value is None else f"{found.difference.value:+.4f}"
    interval = "-" if low is None else f"{low:+.4f} to {high:+.4f}"
    if by_delong:
        p_values = p_text(found.p_delong), p_text(found.p_delong_holm)
    else:
        at_floor = found.p is not None and found.p == found.p_floor
        p_values = p_text(found.p, found.p_floor), p_text(found.p_holm, found.p_holm if at_floor else None)
    reason = found.difference.reason or found.p_reason or ""
    return (name, area_text(found.a), area_text(found.b), difference, interval, *p_values, reason)
