"""Writes synthetic X-rays as a ChestMNIST file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distcxr.data.labels import NIH14
from distcxr.data.phantom.plan import Xray


def write_chestmnist(file: Path, xrays: Sequence[Xray], images: Sequence[NDArray[np.uint8]]) -> None:
    """Write MedMNIST's six arrays, compressed; every tenth patient that is not of the test split is val.

    Args:
        images: uint8 [S, S], one for each X-ray.
    """
    split_of = ["test" if xray.in_test else "val" if xray.patient_id % 10 == 3 else "train" for xray in xrays]
    arrays: dict[str, NDArray[np.uint8]] = {}
    for split in ("train", "val", "test"):
        rows = [row for row, name in enumerate(split_of) if name == split]
        side = images[0].shape[0]
        arrays[f"{split}_images"] = np.array([images[row] for row in rows], dtype=np.uint8).reshape(-1, side, side)
        labels = [[int(name in xrays[row].findings) for name in NIH14] for row in rows]
        arrays[f"{split}_labels"] = np.array(labels, dtype=np.uint8).reshape(-1, len(NIH14))
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
