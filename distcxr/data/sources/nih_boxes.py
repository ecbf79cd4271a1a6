"""NIH's hand-drawn boxes, `BBox_List_2017.csv`: 984 boxes on 880 images of eight findings, all of the official test.

Source: Wang et al., "ChestX-ray8", CVPR 2017. The file spells Infiltration `Infiltrate`, and its header takes the four
numbers of a box for one column with commas in its name.

Shapes: N boxes of the file, K boxes of one finding on one image. A box is (x0, y0, x1, y1), half-open: a point is in
it if x0 <= x < x1 and y0 <= y < y1, where pixel i covers i to i + 1.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from distcxr.data.augment import COLUMNS, identity_parameters
from distcxr.data.augment.geometry import center_crop, crop
from distcxr.data.index import MissingDataError, SampleIndex
from distcxr.data.labels import NIH14, check_findings
from distcxr.recipe.augmentation import Augment
from distcxr.tables import read_table

FILE_NAME = "BBox_List_2017.csv"
SOURCE_PX = 1024
"""Side of NIH's images in pixels, the unit of the boxes."""

_HEADER = ["Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"]
_SPELLINGS = {"Infiltrate": "Infiltration"}


@dataclass(frozen=True, eq=False)
class BoxList:
    """N boxes in the order of the file."""

    files: tuple[str, ...]  # N names of images, without a folder
    findings: tuple[str, ...]  # N names as `labels.NIH14` spells them
    corners: NDArray[np.float64]  # [N, 4], in pixels of the image of `SOURCE_PX`
    box_hash: str  # sha256 of the file's bytes, in hex

    def __len__(self) -> int:
        return len(self.files)


@dataclass(frozen=True, eq=False)
class InputBoxes:
    """The boxes of an index's images as the network sees them; counts are by finding."""

    corners: dict[tuple[int, int], NDArray[np.float64]]  # by (sample_id, finding's column): [K, 4] input pixels, K >= 1
    side: int  # of the network's input, in pixels
    num_boxes: Counter[str]  # in `corners`
    num_clipped: Counter[str]  # of these, boxes that the crop cut
    num_lost: Counter[str]  # boxes wholly outside the crop; they are not in `corners`
    num_absent: Counter[str]  # boxes on images that the index does not have, in all of the list
    unused: Counter[str]  # boxes of findings that are not among the index's

    @property
    def rows(self) -> NDArray[np.int64]:
        """Samples that have a box, int64, ascending."""
        return np.unique(np.array([sample_id for sample_id, _ in self.corners], dtype=np.int64))


def read_boxes(path: Path) -> BoxList:
    """Read NIH's file of boxes, `path`, or `FILE_NAME` in that folder.

    Raises:
        MissingDataError: the file does not exist.
        ValueError: another header, an unknown finding, a box that is not four numbers inside an image of `SOURCE_PX`,
            or the same box twice; names the file and the line.
    """
    path = path.expanduser()
    if path.is_dir():
        path /= FILE_NAME
    if not path.is_file():
        raise MissingDataError(
            f"{path} does not exist. {FILE_NAME} is part of ChestX-ray14: get it from "
            "https://nihcc.app.box.com/v/ChestXray-NIHCC and put it into the dataset's folder"
        )
    table = read_table(path, ragged=True)  # the header's three empty columns at the end have no cells in the rows
    header = _trimmed(table.header)
    if header != _HEADER:
        raise ValueError(f"{path}, line 1: columns {','.join(header)!r}; expected are {','.join(_HEADER)!r}")
    line_of: dict[tuple[str, str, tuple[float, ...]], int] = {}
    for line, cells in zip(table.lines.tolist(), zip(*table.columns.values(), strict=True), strict=True):
        if fields := _trimmed(cells):
            box = _parse(f"{path}, line {line}", fields)
            first = line_of.setdefault(box, line)
            if first != line:
                raise ValueError(f"{path}, line {line}: the same box as in line {first}; delete one")
    if not line_of:
        raise ValueError(f"{path} has a header and no boxes")
    files, findings, corners = zip(*line_of, strict=True)
    return BoxList(files, findings, np.array(corners), table.content_hash)


def place_boxes(boxes: BoxList, index: SampleIndex, image_size: int, spec: Augment) -> InputBoxes:
    """The boxes in pixels of the network's input: scaled with the image, then cropped as evaluation crops."""
    start, side = evaluation_window(image_size, spec)
    scaled = boxes.corners * (image_size / SOURCE_PX) - start
    clipped = scaled.clip(0, side)
    sample_of = {name: row for row, name in enumerate(index.file_names(range(len(index))))}
    column_of = {name: column for column, name in enumerate(index.findings)}
    found: dict[tuple[int, int], list[NDArray[np.float64]]] = {}
    counts: dict[str, Counter[str]] = {
        name: Counter() for name in ("num_boxes", "num_clipped", "num_lost", "num_absent", "unused")
    }
    for file, finding, wanted, kept in zip(boxes.files, boxes.findings, scaled, clipped, strict=True):
        if finding not in column_of:
            counts["unused"][finding] += 1
        elif file not in sample_of:
            counts["num_absent"][finding] += 1
        elif kept[0] >= kept[2] or kept[1] >= kept[3]:
            counts["num_lost"][finding] += 1
        else:
            found.setdefault((sample_of[file], column_of[finding]), []).append(kept)
            counts["num_boxes"][finding] += 1
            counts["num_clipped"][finding] += bool((wanted != kept).any())
    return InputBoxes({key: np.stack(corners) for key, corners in found.items()}, side, **counts)


def evaluation_window(image_size: int, spec: Augment) -> tuple[int, int]:
    """What evaluation leaves of a loaded image: (first pixel, side), the same on both axes."""
    # Columns that carry their own number go through the crops themselves, so this can't drift away from them.
    numbers = torch.arange(image_size, device="cpu").expand(1, 1, image_size, image_size)
    if spec.center_crop < 1:
        numbers = center_crop(numbers, round(image_size * spec.center_crop))
    if spec.crop is not None:
        at = identity_parameters(1)[:, COLUMNS.index("crop_x")]  # crop_y is the same
        numbers = crop(numbers, at, at, spec.crop)
    return int(numbers[0, 0, 0, 0]), numbers.shape[-1]


def _trimmed(cells: Sequence[str]) -> list[str]:
    """Cells without the empty ones at the end, of which NIH's header has three."""
    fields = list(cells)
    while fields and not fields[-1]:
        fields.pop()
    return fields


def _parse(where: str, fields: list[str]) -> tuple[str, str, tuple[float, ...]]:
    """File, finding and corners of one row; `where` names it in errors."""
    if len(fields) != len(_HEADER):
        raise ValueError(f"{where}: {len(fields)} fields; an image, a finding and x, y, w, h are expected")
    file, spelled, *texts = fields
    if not file or "/" in file or "\\" in file:
        raise ValueError(f"{where}: image {file!r} is not a plain file name such as 00000001_000.png")
    finding = _SPELLINGS.get(spelled, spelled)
    check_findings(where, [finding], NIH14)
    try:
        x, y, width, height = map(float, texts)
    except ValueError:
        raise ValueError(f"{where}: {', '.join(texts)} are not the four numbers x, y, w, h of a box") from None
    corners = (x, y, x + width, y + height)
    if not (all(map(math.isfinite, corners)) and width > 0 and height > 0):
        raise ValueError(f"{where}: x, y, w, h = {', '.join(texts)} is not a box: width and height have to be above 0")
    if x < 0 or y < 0 or max(corners) > SOURCE_PX:
        raise ValueError(
            f"{where}: x, y, w, h = {', '.join(texts)} reaches from ({x:g}, {y:g}) to ({corners[2]:g}, "
            f"{corners[3]:g}), out of the image of {SOURCE_PX} x {SOURCE_PX} pixels"
        )
    return file, finding, corners
