"""Age, sex and view as numbers that a network can take beside the image.

| name | columns |
|---|---|
| `age` | age in hundreds of years, cut to 0 to 1.2; 1 if the age is known |
| `sex` | 1 for M; 1 for F |
| `view` | 1 for PA; 1 for AP; 1 for LATERAL |
| `lateral` | 1 if the lateral view beside the image is there (`data.lateral`) |

What is unknown is 0 in all columns of its name, and nothing known is: a newborn has the second column of `age`. So a
missing value is an input of its own, and no image has to be left out for it.

Shapes: B samples, M columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distcxr.data.index import SampleIndex

_VALUES = {"sex": ("M", "F"), "view": ("PA", "AP", "LATERAL")}
_OLDEST_YEARS = 120
_WIDTH = {"age": 2, "lateral": 1} | {name: len(values) for name, values in _VALUES.items()}


def metadata_width(names: Sequence[str]) -> int:
    """Columns M that `metadata_of` makes of these names; 0 for none."""
    return sum(_WIDTH[name] for name in names)


def metadata_columns(names: Sequence[str]) -> list[str]:
    """What each of the M columns is, in words, for whoever fills them without `metadata_of`."""
    words = {"age": [f"age in years / 100, cut to {_OLDEST_YEARS / 100:g}", "1 if the age is known"]}
    words |= {name: [f"1 if {name} is {value}" for value in values] for name, values in _VALUES.items()}
    return [column for name in names for column in words[name]]


def metadata_of(index: SampleIndex, rows: NDArray[np.int64], names: Sequence[str]) -> Tensor:
    """The metadata of the samples `rows`: float32 [B, M], laid out as in the table, in the order of `names`."""
    metadata_BM = np.zeros((len(rows), metadata_width(names)), dtype=np.float32)
    start = 0
    for name in names:
        if name == "age":
            known = np.isfinite(index.age[rows])
            metadata_BM[known, start] = np.clip(index.age[rows][known], 0, _OLDEST_YEARS) / 100
            metadata_BM[:, start + 1] = known
        elif name == "lateral":
            metadata_BM[:, start] = index.lateral is not None and index.lateral[rows] >= 0
        else:
            found = getattr(index, name)[rows]
            for offset, value in enumerate(_VALUES[name]):
                metadata_BM[:, start + offset] = found == value
        start += _WIDTH[name]
    return torch.from_numpy(metadata_BM)


def check_metadata(index: SampleIndex, rows: NDArray[np.int64], names: Sequence[str]) -> None:
    """Raise ValueError for names that are unknown for all of the training images `rows`: nothing could be learnt."""
    empty = [name for name in names if not metadata_of(index, rows, [name]).any()]
    if empty:
        raise ValueError(
            f"model.head.metadata asks for {' and '.join(empty)}, which no training image has: name the column that "
            f"holds it (for data.dataset: csv, data.columns.{empty[0]}), or leave {empty[0]} out of model.head.metadata"
        )
