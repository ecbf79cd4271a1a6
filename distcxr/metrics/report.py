"""The quick report of one split, made at every validation: areas per finding and their macro average.

Shape suffixes: N samples, C findings. An undefined area is None with the reason, never NaN and never 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from distcxr.metrics.ranking import known, rank_positives
from distcxr.runfolder import whole

NO_FINDING = "No Finding"


@dataclass(frozen=True)
class FindingScore:
    """One finding over the samples whose label is known."""

    auroc: float | None
    auprc: float | None
    num_positive: int
    num: int
    """Known labels, positive or negative."""
    reason: str | None
    """Why the areas are None; None where they are numbers."""


class UnreadableFile(NamedTuple):
    """A file that could not be scored and was left out."""

    file: str
    reason: str


@dataclass(frozen=True)
class Report:
    """What a model scores on one split."""

    split: str
    findings: dict[str, FindingScore]
    macro_auroc: float | None
    macro_findings: tuple[str, ...]
    """Exactly the findings averaged in `macro_auroc`."""
    macro_reason: str | None
    unreadable: tuple[UnreadableFile, ...]
    num_samples: int

    def to_json(self) -> dict[str, Any]:
        """Plain Python types, None where a number is undefined."""
        return {
            "split": self.split,
            "num_samples": self.num_samples,
            "macro": {
                "auroc": self.macro_auroc,
                "findings": list(self.macro_findings),
                "reason": self.macro_reason,
            },
            "findings": {name: asdict(score) for name, score in self.findings.items()},
            "unreadable": [entry._asdict() for entry in self.unreadable],
        }

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

    def table(self) -> str:
        """Aligned plain text for a terminal: a row per finding, then the macro average."""
        rows = [
            (name, f"{score.num_positive}/{score.num}", _cell(score.auroc), _cell(score.auprc), score.reason)
            for name, score in self.findings.items()
        ]
        macro = f"macro of {len(self.macro_findings)}"
        rows.append((macro, "", _cell(self.macro_auroc), "", self.macro_reason))
        name_width = max(len(self.split), *(len(row[0]) for row in rows))
        count_width = max(len("positives"), *(len(row[1]) for row in rows))
        lines = [f"{self.split:<{name_width}}  {'positives':>{count_width}}   auroc   auprc"]
        for name, count, area, precision, reason in rows:
            line = f"{name:<{name_width}}  {count:>{count_width}}  {area:>6}  {precision:>6}  {reason or ''}"
            lines.append(line.rstrip())
        return "\n".join(lines)


def build_report(
    split: str,
    findings: Sequence[str],
    logits_NC: NDArray[np.float32],
    targets_NC: NDArray[np.uint8],
    mask_NC: NDArray[np.uint8],
    macro_findings: Sequence[str] | None = None,
    unreadable: Iterable[tuple[str, str]] = (),
) -> Report:
    """Score every finding over its known labels (mask 1) and average the AUROC over the named ones.

    Args: raw float32 logits, uint8 targets (0 or 1 where the mask is 1) and mask, all `[N, C]`; the findings
    to average, by default all but "No Finding" (the complement of the others, not one more of them); (file,
    reason) of each file left out.
    A named finding with a class absent is left out of the average; one with logits that are not finite leaves
    the average undefined, because it would be defined had the model not diverged.
    Raises ValueError for shapes that differ, names that repeat, and a macro finding that is not among the
    findings.
    """
    check_shapes(findings, logits_NC, targets_NC, mask_NC)
    if macro_findings is None:
        macro_findings = [name for name in findings if name != NO_FINDING]
    strangers = [name for name in macro_findings if name not in findings]
    if strangers:
        raise ValueError(f"macro findings {strangers} are not scored; scored are {list(findings)}")
    if len(set(macro_findings)) < len(macro_findings):
        raise ValueError(f"macro findings repeat a name: {list(macro_findings)}")

    scores: dict[str, FindingScore] = {}
    diverged: list[str] = []
    for column, name in enumerate(findings):
        scores_N, targets_N = known(logits_NC[:, column], targets_NC[:, column], mask_NC[:, column])
        num_bad = len(scores_N) - int(np.count_nonzero(np.isfinite(scores_N)))
        if num_bad:
            diverged.append(name)
        scores[name] = _score(scores_N, targets_N, num_bad)

    named = [(name, scores[name].auroc) for name in macro_findings]
    areas = {name: area for name, area in named if area is not None}
    macro_reason = None
    if not_finite := [name for name in macro_findings if name in diverged]:
        macro_reason = f"logits are not finite: {', '.join(not_finite)}"
    elif not macro_findings:
        macro_reason = "no findings are named for the average"
    elif not areas:
        macro_reason = f"undefined for all {len(macro_findings)} named findings"
    averaged = () if macro_reason else tuple(areas)
    return Report(
        split=split,
        findings=scores,
        macro_auroc=None if macro_reason else math.fsum(areas.values()) / len(areas),
        macro_findings=averaged,
        macro_reason=macro_reason,
        unreadable=tuple(UnreadableFile(*entry) for entry in unreadable),
        num_samples=len(logits_NC),
    )


class HasJson(Protocol):
    """A `Report`, or the `FullReport` around one."""

    def to_json(self) -> dict[str, Any]:
        """Plain Python types, None where a number is undefined."""


def write_json(report: HasJson, path: Path | str, **entries: Any) -> None:
    """Write the report as strict JSON, whole or not at all; `entries` (step, loss) join its top level.

    An entry that is a float and not finite is written as null.
    """
    content = report.to_json()
    assert all(content.get(key) is None for key in entries), "an entry would replace a part of the report"
    content |= {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in entries.items()
    }
    whole.write_json(Path(path), content, indent=2)


def _score(scores_N: NDArray[np.float32], targets_N: NDArray[np.uint8], num_bad: int) -> FindingScore:
    num, num_positive = len(targets_N), int(np.count_nonzero(targets_N))
    if num == 0:
        reason = "no known labels"
    elif num_bad:
        reason = f"{num_bad} of {num} logits are not finite"
    elif num_positive in (0, num):
        reason = f"no {'negatives' if num_positive else 'positives'} among {num} known labels"
    else:
        ranks = rank_positives(scores_N, targets_N)
        return FindingScore(ranks.auroc(), ranks.auprc(), num_positive, num, None)
    return FindingScore(None, None, num_positive, num, reason)


def check_shapes(
    findings: Sequence[str],
    logits_NC: NDArray[np.float32],
    targets_NC: NDArray[np.uint8],
    mask_NC: NDArray[np.uint8],
) -> None:
    """Raise ValueError for names that repeat, and for arrays that are not `[N, C]` with float32 logits."""
    if len(set(findings)) < len(findings):
        raise ValueError(f"findings repeat a name: {list(findings)}")
    shapes = {"logits": logits_NC.shape, "targets": targets_NC.shape, "mask": mask_NC.shape}
    if any(shape != (len(logits_NC), len(findings)) for shape in shapes.values()):
        raise ValueError(f"all must be [N, C] with C = {len(findings)} findings: {shapes}")
    if logits_NC.dtype != np.float32:
        raise ValueError(f"logits must be float32, got {logits_NC.dtype}")


def _cell(area: float | None) -> str:
    return "-" if area is None else f"{area:.4f}"
