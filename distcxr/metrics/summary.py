"""The summary of one split, made at every validation: areas per finding and their macro average.

An undefined area is None with the reason, never NaN and never 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from distcxr.metrics.estimate import average
from distcxr.metrics.scored import Known, Scored, scores_of

NO_FINDING = "No Finding"


@dataclass(frozen=True)
class FindingScore:
    """One finding over the samples with a known label."""

    auroc: float | None
    auprc: float | None
    num_positive: int
    num: int
    """Known labels, positive or negative."""
    reason: str | None
    """Why the areas are None; None where they are numbers."""
    num_positive_patients: int


class UnreadableFile(NamedTuple):
    """A file that could not be scored and was left out."""

    file: str
    reason: str


@dataclass(frozen=True)
class Summary:
    """What a model scores on one split."""

    split: str
    findings: dict[str, FindingScore]
    macro_auroc: float | None
    macro_findings: tuple[str, ...]
    """Exactly the findings averaged in `macro_auroc`."""
    macro_reason: str | None
    unreadable: tuple[UnreadableFile, ...]
    num_samples: int

    def scalars(self) -> dict[str, float]:
        """TensorBoard tags `split/metric/finding` to values; what is undefined is left out."""
        tags: dict[str, float] = {}
        for name, score in self.findings.items():
            if score.auroc is not None and score.auprc is not None:
                tags[f"{self.split}/auroc/{name}"] = score.auroc
                tags[f"{self.split}/auprc/{name}"] = score.auprc
        if self.macro_auroc is not None:
            tags[f"{self.split}/auroc/macro"] = self.macro_auroc
        return tags

    def table_rows(self) -> list[tuple[str, ...]]:
        """Titles, a row per finding, then the macro average; the last column has the reasons."""
        rows: list[tuple[str, ...]] = [(self.split, "positives", "auroc", "auprc", "")]
        for name, score in self.findings.items():
            counts = f"{score.num_positive}/{score.num}"
            rows.append((name, counts, area_text(score.auroc), area_text(score.auprc), score.reason or ""))
        macro = f"macro of {len(self.macro_findings)}"
        return [*rows, (macro, "", area_text(self.macro_auroc), "", self.macro_reason or "")]


def summarise(
    split: str, scored: Scored, macro_findings: Sequence[str] | None = None, unreadable: Iterable[tuple[str, str]] = ()
) -> Summary:
    """Score every finding over its known labels and average the AUROC over the named ones.

    Args: the findings to average, by default all but "No Finding" (the complement of the others, not one more of
    them); (file, reason) of each file left out.
    A named finding with a class absent is left out of the average; one with scores that are not finite leaves the
    average undefined, because it would be defined had the model not diverged.
    Raises ValueError for macro findings that are not scored or repeat.
    """
    if macro_findings is None:
        macro_findings = [name for name in scored.findings if name != NO_FINDING]
    scores = {known.name: _score(known) for known in scored.known}
    named = [scored.known[column] for column in scored.columns(macro_findings)]
    macro, macro_reason = average([scores[known.name].auroc for known in named])
    if not_finite := [known.name for known in named if known.num_not_finite]:
        macro, macro_reason = None, f"{scores_of(scored.scale)} are not finite: {', '.join(not_finite)}"
    return Summary(
        split=split,
        findings=scores,
        macro_auroc=macro,
        macro_findings=() if macro_reason else tuple(known.name for known in named if known.ranks),
        macro_reason=macro_reason,
        unreadable=tuple(UnreadableFile(*entry) for entry in unreadable),
        num_samples=len(scored),
    )


def _score(known: Known) -> FindingScore:
    ranks = known.ranks
    auroc, auprc = (ranks.auroc(), ranks.auprc()) if ranks else (None, None)
    return FindingScore(auroc, auprc, known.num_positive, known.num, known.reason, known.num_positive_patients)


def area_text(area: float | None) -> str:
    """For a table on the terminal; a dash where it is undefined."""
    return "-" if area is None else f"{area:.4f}"
