"""A network's heat maps compared with NIH's boxes, batch by batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distcxr.data.batch import Batch
from distcxr.data.sources.nih_boxes import InputBoxes
from distcxr.explain.gradcam import gradcam
from distcxr.explain.localisation import (
    INTERVALS,
    IOU_THRESHOLD,
    FindingLocalisation,
    MapScore,
    score_map,
    summarise,
)
from distcxr.explain.overlay import overlay

Map = Literal["relative", "plain"]
METHODS: dict[Map, str] = {"relative": "Grad-CAM less its mean", "plain": "Grad-CAM"}
"""Which map: evidence above the image's own average, or above 0 as published (`gradcam`'s `relative`)."""


class ScoredMap(NamedTuple):
    """One finding on one image; kept, so that a caller can resample patients or gather ranks (then `summarise`)."""

    sample_id: int
    patient: int
    column: int
    score: MapScore


class Picture(NamedTuple):
    """uint8 [P, P, 3]: the network's input with heat map and boxes."""

    sample_id: int
    finding: str
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class Localisation:
    """What `localise` found, and with which settings; `maps` are what the figures of `findings` are means of.

    `unreadable` are (sample_id, reason) of images with a box and a file that can't be read; they are left out.
    """

    findings: dict[str, FindingLocalisation]
    maps: tuple[ScoredMap, ...]
    pictures: tuple[Picture, ...]
    unreadable: tuple[tuple[int, str], ...]
    boxes: InputBoxes
    threshold: float
    tolerance_px: float
    map: Map

    def to_json(self) -> dict[str, Any]:
        """Plain Python types; the counts of boxes are those of the list, whichever images were looked at."""
        counted = ("num_boxes", "num_clipped", "num_lost", "num_absent")
        return {
            "method": METHODS[self.map],
            "map": self.map,
            "intervals": INTERVALS,
            "iou_threshold": self.threshold,
            "tolerance_px": self.tolerance_px,
            "input_px": self.boxes.side,
            "num_unreadable": len(self.unreadable),
            "findings": {
                name: asdict(found) | {count: getattr(self.boxes, count)[name] for count in counted}
                for name, found in self.findings.items()
            },
        }


def localise(
    module: nn.Module,
    transform: Callable[[Tensor, Tensor], Tensor],
    batches: Iterable[Batch],
    boxes: InputBoxes,
    findings: Sequence[str],
    *,
    device: torch.device,
    explained: Callable[[Tensor], Tensor] | None = None,
    layer: str | None = None,
    map: Map = "relative",
    patient_id: NDArray[np.int64] | None = None,
    threshold: float = IOU_THRESHOLD,
    tolerance_px: float = 0.0,
    pictures: int = 0,
) -> Localisation:
    """Score the heat map of every finding that has a box on an image.

    Args:
        module: the bare network, on `device`; left as it was.
        transform: pixels and parameters to the network's input, a `DeviceTransform`.
        batches: with the identity's parameters (`augment.identity_parameters`); images without a box cost nothing
            but their reading, so best of the boxes' rows alone.
        boxes: from `nih_boxes.place_boxes`, for this index and this transform.
        findings: names of the logits' columns.
        explained, layer: as for `gradcam`.
        map: `METHODS` names them.
        patient_id: [N] of the index, for intervals; without it each image counts as a patient of its own.
        pictures: how many to draw of each finding: its first ones.

    Raises ValueError: as `gradcam` and `score_map`; boxes for another size of input.
    """
    columns_of: dict[int, list[int]] = {}
    for sample_id, column in boxes.corners:
        columns_of.setdefault(sample_id, []).append(column)
    maps: list[ScoredMap] = []
    drawn: list[Picture] = []
    num_drawn: Counter[int] = Counter()
    unreadable: list[tuple[int, str]] = []
    for batch in batches:
        bad = [entry for entry in batch.unreadable if entry[0] in columns_of]
        unreadable += bad
        skipped = {sample_id for sample_id, _ in bad}
        ids = batch.sample_id.tolist()
        positions = [position for position, one in enumerate(ids) if one in columns_of and one not in skipped]
        if not positions:
            continue
        columns = sorted({column for position in positions for column in columns_of[ids[position]]})
        with torch.no_grad():
            images = transform(batch.pixels[positions].to(device), batch.augment[positions].to(device))
        if images.shape[-1] != boxes.side:
            raise ValueError(f"the boxes are for an input of {boxes.side} pixels, this one has {images.shape[-1]}")
        metadata = batch.metadata[positions].to(device)
        heat = gradcam(
            module, images, columns, metadata=metadata, explained=explained, layer=layer, relative=map == "relative"
        )
        for row, position in enumerate(positions):
            for column in sorted(columns_of[ids[position]]):
                heat_HW = heat[row, columns.index(column)].cpu().numpy()
                corners = boxes.corners[ids[position], column]
                score = score_map(heat_HW, corners, threshold=threshold, tolerance_px=tolerance_px)
                patient = ids[position] if patient_id is None else int(patient_id[ids[position]])
                maps.append(ScoredMap(ids[position], patient, column, score))
                if num_drawn[column] < pictures:
                    num_drawn[column] += 1
                    pixels = overlay(images[row, 0].cpu().numpy(), heat_HW, corners)
                    drawn.append(Picture(ids[position], findings[column], pixels))
    figures = summarise([(one.column, one.patient, one.score) for one in maps], findings)
    return Localisation(figures, tuple(maps), tuple(drawn), tuple(unreadable), boxes, threshold, tolerance_px, map)
