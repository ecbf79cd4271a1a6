"""Image files that can't be read: finding them all before training, and leaving them out of it by a list.

distcxr check RECIPE ──► quarantine.csv (path, reason) ──► data.quarantine=quarantine.csv ──► splits without them
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distcxr.data.index import SampleIndex
from distcxr.data.pixels.decode import load_kernels
from distcxr.data.pixels.image_bytes import Locate, Source, UnreadableImage
from distcxr.data.pixels.own_reader import ReadGrey, decode_file
from distcxr.runfolder.whole import write_whole
from distcxr.tables import read_table

_PATH, _REASON = "path", "reason"
_CHUNK = 16


def read_quarantine(path: Path, index: SampleIndex) -> dict[str, str]:
    """Reason by path, below the dataset's root, of the images that a quarantine file names.

    Raises:
        ValueError: a file that can't be read, or a line with an image that the dataset does not have.
    """
    table = read_table(path, verbatim=True)
    named = table.cells(_PATH, "data.quarantine")
    known = set(index.path.tolist())
    for row, name in enumerate(named):
        if os.fsencode(name) not in known:
            raise ValueError(
                f"data.quarantine: {table.where(row)}: {name!r} is not an image of this dataset. Paths are relative to "
                "data.root; without data.quarantine `distcxr check RECIPE` writes the list anew"
            )
    return dict(zip(named, table.cells(_REASON, "data.quarantine"), strict=True))


def write_quarantine(path: Path, reasons: Mapping[str, str]) -> None:
    """Write the images, by their paths below the dataset's root, with the reason of each."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_PATH, _REASON])
    writer.writerows(reasons.items())
    write_whole(path, text.getvalue(), errors="surrogateescape")


def find_unreadable(
    index: SampleIndex, locate: Locate, rows: NDArray[np.int64], num_threads: int, report: Callable[[int], None],
    read_grey: ReadGrey = decode_file,
) -> dict[str, str]:  # fmt: skip
    """Read and decode the images of `rows`, as a reader would.

    Args:
        locate: `index.files`, or `Pack.parts`.
        rows: int64 [N].
        report: called with the number of images done.
        read_grey: who decodes.

    Returns:
        Reason by path below the dataset's root, in the order of the rows.
    """
    load_kernels()
    reasons: dict[str, str] = {}

    def reasons_of(part: NDArray[np.int64]) -> list[str]:
        return [_reason(source, read_grey) for source in locate(part)]

    parts = np.array_split(rows, max(1, -(-len(rows) // _CHUNK)))
    with ThreadPoolExecutor(num_threads) as threads:
        done = 0
        for part, found in zip(parts, threads.map(reasons_of, parts), strict=True):
            names = map(os.fsdecode, index.path[part].tolist())
            reasons |= {name: reason for name, reason in zip(names, found, strict=True) if reason}
            done += len(part)
            report(done)
    return reasons


def _reason(source: Source, read_grey: ReadGrey) -> str:
    """Why an image can't be read, or an empty string."""
    try:
        read_grey(source)
    except UnreadableImage as error:
        return str(error)
    return ""
