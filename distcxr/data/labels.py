"""Names of findings, and label strings to multi-hot rows.

Shapes: N samples, C findings.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray

NO_FINDING = "No Finding"

NIH14: tuple[str, ...] = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip
"""The 14 findings of ChestX-ray14, in the order of Wang et al., CVPR 2017."""

NIH15: tuple[str, ...] = (*NIH14, NO_FINDING)
"""The 14 findings and "No Finding": every token that NIH's label file may hold."""

CHEXPERT14: tuple[str, ...] = (
    NO_FINDING, "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
"""The 14 observations of CheXpert and MIMIC-CXR-JPG, in the order of Irvin et al., AAAI 2019."""

CHEXPERT5: tuple[str, ...] = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
"""The five that CheXpert's competition scores."""

_SETS = {"nih14": NIH14, "nih15": NIH15, "chexpert14": CHEXPERT14, "chexpert5": CHEXPERT5}


def resolve_findings(spec: str | Sequence[str], available: Sequence[str]) -> tuple[str, ...]:
    """The findings that `data.findings` asks for: the name of a set, `"all"`, or a list of names in its own order.

    Args:
        spec: the recipe's `data.findings`.
        available: what the label file has.

    Raises ValueError for a name that the label file lacks (with the nearest that it has, and the list), a repeated
    one, or none.
    """
    if isinstance(spec, str):
        if spec == "all":
            return tuple(sorted(available))
        if spec not in _SETS:
            if spec in available:
                raise ValueError(f"data.findings is the single name {spec!r}: write it as a list, [{spec}]")
            raise ValueError(f"data.findings: {_unknown(spec, (*_SETS, 'all', *available))} (names go in a list)")
        absent = [name for name in _SETS[spec] if name not in available]
        if absent:
            raise ValueError(
                f"data.findings is {spec}, but the label file lacks {', '.join(absent)}. It has "
                f"{', '.join(available)}: take data.findings=all, or list some of them"
            )
        return _SETS[spec]
    names = tuple(spec)
    if not names:
        raise ValueError(f"data.findings is an empty list: name at least one of {', '.join(available)}")
    check_findings("data.findings", names, available)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"data.findings names {', '.join(repeated)} more than once")
    return names


def check_findings(key: str, names: Sequence[str], available: Sequence[str]) -> None:
    """Raise ValueError, naming the recipe's `key`, for the first of `names` that the label file lacks."""
    for name in names:
        if name not in available:
            raise ValueError(f"{key}: {_unknown(name, available)}")


def encode(
    labels: Sequence[str],
    findings: Sequence[str],
    *,
    known: Sequence[str] = NIH15,
    source: str = "labels",
    lines: Sequence[int] | NDArray[np.int64] | None = None,
) -> NDArray[np.uint8]:
    """Label strings such as `"Mass|Nodule"` as multi-hot rows. Only whole tokens match.

    Args:
        labels: N strings, tokens joined by `|`.
        findings: the C columns of the result; tokens of `known` outside it set nothing.
        known: every token that the label file may hold.
        source: name of the label file, for errors.
        lines: line number of each label in that file, for errors; without it, rows count from 0.

    Returns:
        uint8 [N, C], 0 or 1.

    Raises:
        ValueError: a token that is not in `known`, or "No Finding" next to a finding; names file and line.
    """
    # A label file repeats few strings (836 of 112,120 in NIH's): each is parsed once.
    code_of: dict[str, int] = {}
    rows: list[list[int]] = []
    codes = np.empty(len(labels), dtype=np.intp)
    for position, label in enumerate(labels):
        code = code_of.get(label)
        if code is None:
            tokens = label.split("|")
            problem = _problem(tokens, known)
            if problem:
                where = f"row {position}" if lines is None else f"line {lines[position]}"
                raise ValueError(f"{source}, {where}: label {label!r}: {problem}")
            code = code_of[label] = len(rows)
            rows.append([int(finding in tokens) for finding in findings])
        codes[position] = code
    table_LC = np.array(rows, dtype=np.uint8).reshape(len(rows), len(findings))  # L distinct label strings
    return table_LC[codes]


def _problem(tokens: list[str], known: Sequence[str]) -> str:
    for token in tokens:
        if token not in known:
            return _unknown(token, known)
    if NO_FINDING in tokens and len(tokens) > 1:
        return f"{NO_FINDING!r} contradicts the findings beside it"
    return ""


def _unknown(name: str, valid: Sequence[str]) -> str:
    lower = {candidate.lower(): candidate for candidate in valid}
    nearest = get_close_matches(str(name).lower(), lower, n=1)
    hint = f", did you mean {lower[nearest[0]]!r}?" if nearest else ";"
    return f"unknown finding {name!r}{hint} Valid: {', '.join(valid)}"
