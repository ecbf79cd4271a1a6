"""Names of findings, and label strings to multi-hot rows.

Shapes: N samples, C findings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
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

_SYNONYMS = {
    "pleural effusion": "Effusion", "pulmonary edema": "Edema", "oedema": "Edema", "pulmonary oedema": "Edema",
    "pulmonary fibrosis": "Fibrosis", "infiltrate": "Infiltration", "infiltrates": "Infiltration",
    "hiatal hernia": "Hernia", "lung mass": "Mass", "pulmonary mass": "Mass", "lung nodule": "Nodule",
    "pulmonary nodule": "Nodule", "pulmonary emphysema": "Emphysema", "airspace opacity": "Lung Opacity",
    "no findings": NO_FINDING, "normal": NO_FINDING,
}  # fmt: skip
"""What means the same, neither more nor less: CheXpert's Lung Lesion, masses and nodules, is no synonym of either."""
_COMMON = {name.lower().replace("_", " "): name for name in (*CHEXPERT14, *NIH15)} | _SYNONYMS

_SETS = {"nih14": NIH14, "nih15": NIH15, "chexpert14": CHEXPERT14, "chexpert5": CHEXPERT5}


def common_name(name: str) -> str:
    """The name that data sets share for what one of them calls `name`: NIH's where NIH has the finding, or CheXpert's,
    or `name` itself. Case, `_` and `-` make no difference."""
    return _COMMON.get(" ".join(re.split(r"[\s_-]+", name.strip().lower())), name)


def resolve_findings(spec: str | Sequence[str], available: Sequence[str]) -> tuple[str, ...]:
    """The findings that `data.findings` asks for: the name of a set, `"all"`, or a list of names in its own order.
    Raises ValueError for a name that the label file lacks (with the nearest that it has, and the list), a repeated one,
    or none."""
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
    """Raise ValueError, naming the recipe's `key` or the line, for the first of `names` that is not `available`."""
    for name in names:
        if name not in available:
            raise ValueError(f"{key}: {_unknown(name, available)}")


def lost_findings(names: Sequence[str], before_L: NDArray[np.int64], after_L: NDArray[np.int64]) -> str:
    """Those of L findings that had images and have none any more, with how many, for messages; "" for none."""
    counts = zip(names, before_L, after_L, strict=True)
    return ", ".join(f"{name} ({before:,})" for name, before, after in counts if before and not after)


def encode(
    labels: Sequence[str], findings: Sequence[str], where: Callable[[int], str], hint: str = ""
) -> NDArray[np.uint8]:
    """Label strings such as `"Mass|Nodule"` as multi-hot rows, uint8 [N, C]. Only whole tokens match.

    Args:
        labels: N strings, tokens joined by `|`.
        findings: the C columns of the result, every token that may occur.
        where: names file and line of a label, for errors.
        hint: what to do about a name that is not in `findings`.

    Raises ValueError: a token that is not in `findings`, or "No Finding" next to a finding.
    """
    # A label file repeats few strings (836 of 112,120 in NIH's): each is parsed once.
    code_of: dict[str, int] = {}
    for row, label in enumerate(labels):
        if label not in code_of:
            if problem := _problem(label.split("|"), findings, hint):
                raise ValueError(f"{where(row)}: label {label!r}: {problem}")
            code_of[label] = len(code_of)
    distinct = [set(label.split("|")) for label in code_of]
    table_LC = np.array([[finding in tokens for finding in findings] for tokens in distinct], dtype=np.uint8)
    return table_LC.reshape(-1, len(findings))[[code_of[label] for label in labels]]


def _problem(tokens: list[str], known: Sequence[str], hint: str) -> str:
    for token in tokens:
        if token not in known:
            return _unknown(token, known) + (f". {hint}" if hint and token else "")
    if NO_FINDING in tokens and len(tokens) > 1:
        return f"{NO_FINDING!r} contradicts the findings beside it"
    return ""


def _unknown(name: str, valid: Sequence[str]) -> str:
    lower = {candidate.lower(): candidate for candidate in valid}
    nearest = get_close_matches(str(name).lower(), lower, n=1)
    hint = f", did you mean {lower[nearest[0]]!r}?" if nearest else ";"
    return f"unknown finding {name!r}{hint} Valid: {', '.join(valid)}"
