"""Where the network looks, at the end: the worst cases of a split as pictures, and heat maps beside NIH's boxes.

pictures/pictures.json   a list of {split, file, finding, kind, prob, labels, map, image, heat}; the last two are files
localisation_<split>.json

Rank 0 alone makes them. Shapes: N samples, C findings.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distcxr.data.read import nih_root
from distcxr.data.sources.nih_boxes import FILE_NAME, InputBoxes, place_boxes, read_boxes
from distcxr.engine.evaluate import Scores
from distcxr.engine.setup import Setup
from distcxr.explain.against_boxes import Localisation, localise
from distcxr.explain.gradcam import gradcam
from distcxr.explain.overlay import overlay
from distcxr.losses import binary_logits
from distcxr.metrics.calibration import probabilities
from distcxr.runfolder import filenames
from distcxr.runfolder.whole import write_json

logger = logging.getLogger(__name__)

_SIDE_PX = 256
_COLOURS = 256  # of a heat map's file: half the bytes, and no difference that the eye sees


class Case(NamedTuple):
    """A sample that the network is wrong about: its position among the N scored, and the finding's column."""

    kind: Literal["false_positive", "false_negative"]
    position: int
    column: int


def worst_cases(
    logits_NC: NDArray[np.float32],
    targets_NC: NDArray[np.uint8],
    mask_NC: NDArray[np.uint8],
    columns: Sequence[int],
    num: int,
) -> list[Case]:
    """Up to `num` false positives, then as many false negatives, the worst first; no sample twice in a kind.

    Findings take turns, so that a common one can't fill the list: each turn gives every finding its worst sample that
    is not there yet. In a turn the one furthest from its finding's mean comes first, in standard deviations of its
    logits.
    """
    kinds: tuple[tuple[Literal["false_positive", "false_negative"], int, int], ...] = (
        ("false_positive", 0, 1), ("false_negative", 1, -1),
    )  # fmt: skip
    cases: list[Case] = []
    for kind, target, sign in kinds:
        queues: dict[int, list[tuple[float, int]]] = {}  # (how wrong, position), the worst last
        for column in columns:
            logits_N = logits_NC[:, column].astype(np.float64)
            wrong_N = sign * (logits_N - logits_N.mean()) / max(float(logits_N.std()), 1e-12)
            positions = np.flatnonzero((targets_NC[:, column] == target) & (mask_NC[:, column] == 1))
            worst = positions[np.argsort(-wrong_N[positions], kind="stable")][:num]
            queues[column] = list(zip(wrong_N[worst].tolist(), worst.tolist(), strict=True))[::-1]
        taken: set[int] = set()
        while len(taken) < num and any(queues.values()):
            for column in sorted(queues, key=lambda column: -queues[column][-1][0] if queues[column] else 0.0):
                queue = queues[column]
                while queue and queue[-1][1] in taken:
                    queue.pop()
                if queue and len(taken) < num:
                    taken.add(queue[-1][1])
                    cases.append(Case(kind, queue.pop()[1], column))
    return cases


def write_pictures(setup: Setup, folder: Path, split: str, scores: Scores) -> None:
    """Draw `eval.pictures` cases of each kind into `folder`'s `pictures`, in place of those that were there.

    Raises:
        ValueError: a network that Grad-CAM does not know.
    """
    pictures = folder / filenames.PICTURES
    shutil.rmtree(pictures, ignore_errors=True)  # of other weights
    index, num = setup.index, setup.recipe.eval.pictures
    columns = [index.findings.index(name) for name in scores.report.macro_findings]
    explained = partial(binary_logits, setup.recipe.loss.name)
    if setup.recipe.loss.name == "cross_entropy" and len(index.findings) == 2:
        columns = columns[-1:]  # a false positive of one class is a false negative of the other
    targets_NC, mask_NC = index.targets_NC[scores.rows], index.mask_NC[scores.rows]
    cases = worst_cases(scores.logits_NC, targets_NC, mask_NC, columns, num)
    if not cases:
        return
    of_row: dict[int, list[int]] = {}
    for number, case in enumerate(cases):
        of_row.setdefault(int(scores.rows[case.position]), []).append(number)
    entries: dict[int, dict[str, Any]] = {}
    pictures.mkdir()
    for batch in setup.batches(np.array(sorted(of_row)), alone=True):
        on_device = batch.to(setup.runtime.device)
        images = setup.inputs(on_device)
        wanted = sorted({cases[number].column for row in batch.sample_id.tolist() for number in of_row[row]})
        heat = gradcam(setup.module, images, wanted, metadata=on_device.metadata, explained=explained, relative=True)
        for at, row in enumerate(batch.sample_id.tolist()):
            for number in of_row[row]:
                case = cases[number]
                image_HW = images[at, 0].cpu().numpy()
                heat_HW = heat[at, wanted.index(case.column)].cpu().numpy()
                name = f"{split}_{case.kind}_{number % num + 1:02d}"
                grey = Image.fromarray(overlay(image_HW, side_px=_SIDE_PX)).convert("L")
                grey.save(pictures / f"{name}.png", optimize=True)
                coloured = Image.fromarray(overlay(image_HW, heat_HW, side_px=_SIDE_PX))
                coloured.quantize(_COLOURS).save(pictures / f"{name}_heat.png", optimize=True)
                present = index.targets_NC[row].astype(bool) & index.mask_NC[row].astype(bool)
                entries[number] = {
                    "split": split,
                    "file": index.file_name(row),
                    "finding": index.findings[case.column],
                    "kind": case.kind,
                    "prob": float(probabilities(scores.logits_NC[case.position, case.column])),
                    "labels": [name for name, on in zip(index.findings, present, strict=True) if on],
                    "map": "relative",
                    "image": f"{name}.png",
                    "heat": f"{name}_heat.png",
                }
    write_json(pictures / filenames.PICTURES_LIST, [entries[number] for number in sorted(entries)])


def write_localisation(setup: Setup, folder: Path, split: str, scores: Scores) -> None:
    """Write `localisation_<split>.json` where `eval.localise` asks for it and the data have NIH's boxes.

    Raises:
        ValueError: a file of boxes that can't be read; a network that Grad-CAM does not know.
    """
    path = folder / filenames.localisation(split)
    path.unlink(missing_ok=True)  # of other weights
    if not setup.recipe.eval.localise:
        return
    index, recipe, root = setup.index, setup.recipe, nih_root(setup.recipe.data)
    if not (root / FILE_NAME).is_file():
        logger.info(f"heat maps are not compared with boxes: {root} has no {FILE_NAME}")
        return
    boxes = place_boxes(read_boxes(root), index, recipe.data.image_size, recipe.augment)
    rows = np.intersect1d(scores.rows, boxes.rows)
    if not len(rows):
        logger.info(f"heat maps are not compared with boxes: no image of {split} has one")
        return
    found = localise_rows(setup, rows, boxes)
    content = {"split": split, "num_images": len(rows)} | found.to_json()
    write_json(path, content)
    logger.info(f"heat maps and boxes compared on {len(rows):,} images of {split}: {path}")


def localise_rows(setup: Setup, rows: NDArray[np.int64], boxes: InputBoxes, **options: Any) -> Localisation:
    """`localise` for the index rows `rows`, all of them on this rank, with its further `options`."""
    return localise(
        setup.module, setup.transform, setup.batches(rows, alone=True), boxes, setup.index.findings,
        device=setup.runtime.device, explained=partial(binary_logits, setup.recipe.loss.name),
        patient_id=setup.index.patient_id, **options,
    )  # fmt: skip
