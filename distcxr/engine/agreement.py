"""Does a written network agree with the run? The same images through both, and the largest differences.

    images ──┬──► `member_logits`, what `predict` and `test` do ──► logits, probabilities ──┐
             └──► decoded, resized ──► the file, run by its own runtime ───────────────────┴──► largest differences

Shapes: N images, S side of the loaded image, C findings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from distcxr.data.dataset import open_dataset
from distcxr.data.index import SampleIndex
from distcxr.data.metadata import metadata_of
from distcxr.data.pixels.decode import decode_grey
from distcxr.data.pixels.image_bytes import read_file
from distcxr.data.pixels.resize import resize_grey
from distcxr.data.sources.image_files import ImageFiles
from distcxr.engine.evaluate import Outputs, average
from distcxr.engine.inference import Member, member_logits, open_member
from distcxr.engine.portable import IMAGE, METADATA, temperatures_of
from distcxr.engine.validated import Validated
from distcxr.models.serialized import Runner
from distcxr.recipe import Recipe

TOLERANCE, RELATIVE = 1e-3, 1e-4
"""Largest difference of a logit, and its share of the largest logit where that is more: 24 bits are relative. Of a
probability, what that can make of it: a quarter, over the temperature."""

NUM_IMAGES = 16
_CPU = torch.device("cpu")
_ROUNDING = 1e-6  # of a probability near 1 in float32


@dataclass(frozen=True)
class CheckImages:
    """Images to compare on; row i of the index is file i.

    Attributes:
        source: which ones, in words that may be published.
        reason: why they are synthetic; None of the run's own.
    """

    files: list[str]
    index: SampleIndex
    source: str
    reason: str | None = None


@contextmanager
def check_images(recipe: Recipe, findings: tuple[str, ...]) -> Iterator[CheckImages]:
    """Some of the run's test images, validation's where it has none; synthetic ones where no image file is there."""
    found = _of_the_run(recipe)
    if isinstance(found, CheckImages):
        yield found
    else:
        with TemporaryDirectory() as folder:
            yield _synthetic(Path(folder), recipe.data.image_size, findings, reason=found)


def _of_the_run(recipe: Recipe) -> CheckImages | str:
    """Images, or why there are none."""
    try:
        dataset = open_dataset(recipe)
    except (ValueError, OSError) as error:
        return str(error).splitlines()[0]
    split = "test" if len(dataset.splits.test) else "val"
    rows = dataset.splits.rows(split)
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(NUM_IMAGES, len(rows))).astype(np.int64))]
    files = dataset.index.files(rows)
    there = [position for position, file in enumerate(files) if Path(file).is_file()]
    if not there:
        return f"{dataset.index.root} holds no image file of the {split} split"
    return CheckImages([files[one] for one in there], dataset.index.take(rows[there]), f"of the run's {split} split")


def _synthetic(folder: Path, size: int, findings: tuple[str, ...], *, reason: str) -> CheckImages:
    """Smooth grey shapes with noise; every second one is of a patient of known age, sex and view."""
    rng, images = np.random.default_rng(0), ImageFiles()
    x, y = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size))
    for number in range(NUM_IMAGES):
        a, b, c, d = rng.uniform(0, 6, 4)
        grey = 120 + 80 * np.sin(a * x + b) * np.cos(c * y + d) + rng.normal(0, 12, (size, size))
        file = folder / f"{number:02d}.png"
        Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(file)
        images.add(file.name, file, {"age": "54", "sex": "F", "view": "PA"} if number % 2 else None)
    return CheckImages(images.files, images.index(findings), "synthetic", reason)


def compare(
    members: Sequence[Member], known: Validated, run: Runner, images: CheckImages, precisions: Sequence[str | None]
) -> dict[str, Any]:
    """The largest differences between a written network and the run in float32, as JSON has them.

    Beside them: how far the run's own precision is from its float32 (null where that is the same or not to be had
    here), and how far Pillow's resizing moves the file's probabilities (null where no image had to be resized).

    Args:
        members: on the CPU, in float32.
        run: the file's outputs by its inputs.
        precisions: of each run; None takes its recipe's.

    Raises:
        ValueError: a difference is above the tolerance, or no image can be read.
    """
    outputs, recipe = _mean(members, images), members[0].recipe
    if not len(outputs.rows):
        raise ValueError(f"nothing to compare with: none of {len(images.files)} images can be read")
    logits_NC = outputs.values_NK
    probs_NC = _calibrated(known, logits_NC)
    greys = [decode_grey(read_file(images.files[row])[0]) for row in outputs.rows.tolist()]
    size = recipe.data.image_size
    inputs = {IMAGE: np.stack([resize_grey(grey_HW, size) for grey_HW in greys])[:, None]}
    if names := recipe.model.head.metadata:
        inputs[METADATA] = metadata_of(images.index, outputs.rows, names).numpy()
    theirs_probs_NC, theirs_logits_NC = _in_two_sizes(run, inputs)
    differences = {
        "logit": _largest(theirs_logits_NC, logits_NC),
        "probability": _largest(theirs_probs_NC, probs_NC),
    }
    allowed = max(TOLERANCE, RELATIVE * float(np.abs(logits_NC).max()))
    allowed_C = allowed / 4 / np.array(temperatures_of(known)) + _ROUNDING
    if not (differences["logit"] <= allowed and (np.abs(theirs_probs_NC - probs_NC) <= allowed_C).all()):
        raise ValueError(
            f"the written network differs from the run on {len(greys)} images by up to {differences['logit']:.2g} in a "
            f"logit and {differences['probability']:.2g} in a probability, and {allowed:.2g} is allowed in a logit: "
            "nothing was written. Another format may hold it (--format torch-export, safetensors)"
        )
    return {
        "images": len(greys), "source": images.source, "tolerance_logit": allowed, "largest_difference": differences,
        "own_precision": _own_precision(members, precisions, known, images, logits_NC),
        "pillow_resize": _with_pillow(run, inputs, greys, theirs_probs_NC),
    }  # fmt: skip


def _calibrated(known: Validated, logits_NC: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.stack([known.calibrated(logits_NC[:, at], at) for at in range(len(known.findings))], axis=1)


def _in_two_sizes(run: Runner, inputs: dict[str, NDArray[Any]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Outputs of one image alone, then of the others together: any N has to work."""
    num = len(inputs[IMAGE])
    parts = [slice(0, 1), slice(1, num)] if num > 1 else [slice(0, 1)]
    done = [run({name: np.ascontiguousarray(values[part]) for name, values in inputs.items()}) for part in parts]
    probs_NC, logits_NC = (np.concatenate(one) for one in zip(*done, strict=True))
    return probs_NC, logits_NC


def _mean(members: Sequence[Member], images: CheckImages) -> Outputs:
    each = [
        member_logits(member, images.index, images.files, [_CPU], member.batch_size, lambda _: None)[0]
        for member in members
    ]
    return average(each, members[0].recipe.loss.name)


def _own_precision(
    members: Sequence[Member],
    precisions: Sequence[str | None],
    known: Validated,
    images: CheckImages,
    logits_NC: NDArray[np.float32],
) -> dict[str, Any] | None:
    own = [
        open_member(member.checkpoint, _CPU, member.recipe.eval.tta, precision)
        for member, precision in zip(members, precisions, strict=True)
    ]
    names = dict.fromkeys(member.recipe.train.precision for member in own)
    if list(names) == ["no"]:
        return None
    outputs = _mean(own, images)
    probs_NC, theirs_NC = _calibrated(known, logits_NC), _calibrated(known, outputs.values_NK)
    return {
        "precision": ", ".join(names), "logit": _largest(outputs.values_NK, logits_NC),
        "probability": _largest(theirs_NC, probs_NC),
    }  # fmt: skip


def _with_pillow(
    run: Runner, inputs: dict[str, NDArray[Any]], greys: list[NDArray[np.uint8]], probs_NC: NDArray[np.float32]
) -> float | None:
    size = inputs[IMAGE].shape[-1]
    if all(grey_HW.shape == (size, size) for grey_HW in greys):
        return None
    resized = [np.asarray(Image.fromarray(grey).resize((size, size), Image.Resampling.BILINEAR)) for grey in greys]
    return _largest(_in_two_sizes(run, inputs | {IMAGE: np.stack(resized)[:, None]})[0], probs_NC)


def _largest(some_NC: NDArray[Any], others_NC: NDArray[Any]) -> float:
    return float(np.abs(some_NC - others_NC).max())
