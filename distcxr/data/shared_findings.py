"""Findings of two data sets that are the same, by name, and labels of the one in the columns of the other.

Shapes: N samples, C findings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from distcxr.data.index import SampleIndex
from distcxr.data.labels import common_name


def shared_findings(ours: Sequence[str], theirs: Sequence[str]) -> dict[str, str]:
    """Those of `ours` that `theirs` has, with their name there, in our order.

    Case, spaces, `_` and `-` make no difference, nor do synonyms (`common_name`). An equal name comes first, and a
    finding that has several counterparts left is not shared: which of them is meant is not known.
    """
    found = {name: name for name in ours if name in theirs}
    ours_left, theirs_left = (
        [name for name in names if name not in found and name not in found.values()] for names in (ours, theirs)
    )
    for name in ours_left:
        same = [other for other in theirs_left if _key(other) == _key(name)]
        if len(same) == 1 and [_key(other) for other in ours_left].count(_key(name)) == 1:
            found[name] = same[0]
    return {name: found[name] for name in ours if name in found}


def with_columns(index: SampleIndex, findings: Sequence[str], named: Mapping[str, str]) -> SampleIndex:
    """The same samples with the C columns `findings`; those that `named` lacks are unknown of every sample.

    Args:
        named: a finding's name in the index, by its name among `findings`.
    """
    shape = len(index), len(findings)
    targets_NC, mask_NC = np.zeros(shape, dtype=np.uint8), np.zeros(shape, dtype=np.uint8)
    for column, name in enumerate(findings):
        if name in named:
            source = index.findings.index(named[name])
            targets_NC[:, column], mask_NC[:, column] = index.targets_NC[:, source], index.mask_NC[:, source]
    return replace(index, findings=tuple(findings), targets_NC=targets_NC, mask_NC=mask_NC)


def _key(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", common_name(name).strip().lower()))
