"""`Predictor`: what a trained run makes of images, in the terms of its validation. `distcxr.load` makes one.

Shapes: N images, C findings, H, W of an image, T side of the network's input.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from distcxr.data.augment import identity_parameters
from distcxr.data.pixels.resize import resize_grey
from distcxr.data.sources.image_files import ImageFiles, find_images
from distcxr.engine.checkpoint import Checkpoint
from distcxr.engine.evaluate import average
from distcxr.engine.inference import Member, devices_of, heat_of_image, member_heat, member_logits, open_member
from distcxr.engine.prediction_table import prediction_table
from distcxr.engine.validated import Validated, opened_together
from distcxr.explain.overlay import overlay

if TYPE_CHECKING:
    import pandas as pd

RULE = "youden"
NOT_CLINICAL = "Research software, not a medical device: not for clinical use."
_PICTURE_PX = (256, 1024)
"""Shortest and longest of a picture's longer side."""

ImagePath = str | os.PathLike[str]


@dataclass(frozen=True)
class Explanation:
    """Where in an image the evidence for a finding is.

    Attributes:
        file: as it was named.
        heat: Grad-CAM, float32 [H, W] of the image, 0 to 1: evidence above the image's own average.
        picture: the heat over the image.
    """

    file: str
    finding: str
    heat: NDArray[np.float32]
    picture: Image.Image


class Predictor:
    """One or several runs' networks, with what their validation chose.

    Attributes:
        findings: names, in the order of the logits.
        problems: sentences about what is not known, such as thresholds that a run does not have.
    """

    def __init__(self, members: Sequence[Member], known: Validated, devices: Sequence[torch.device]) -> None:
        self.findings = known.findings
        self.problems = known.problems
        self._members, self._known, self._devices = list(members), known, list(devices)

    def __repr__(self) -> str:
        runs = ", ".join(str(member.checkpoint.path) for member in self._members)
        return f"Predictor({runs}; {len(self.findings)} findings; {', '.join(map(str, self._devices))})"

    @property
    def models(self) -> list[nn.Module]:
        """The bare networks of all runs, on the first device: float32 [B, in_chans, T, T] to logits [B, C]."""
        return [member.on(self._devices[0]) for member in self._members]

    @property
    def model(self) -> nn.Module:
        """The bare network of the first run, see `models`."""
        return self.models[0]

    @property
    def rules(self) -> tuple[str, ...]:
        """Names of the rules by which validation chose thresholds; none where the run has no thresholds."""
        return self._known.rules

    @property
    def thresholds(self) -> pd.DataFrame:
        """Calibrated probabilities from which on a finding is called positive: a row per finding, a column per rule.

        NaN where validation could not choose one, for want of positives for example.
        """
        import pandas as pd

        columns = {rule: [self._known.threshold(rule, at) for at in range(len(self.findings))] for rule in self.rules}
        return pd.DataFrame(columns, index=pd.Index(self.findings, name="finding"), dtype="float64")

    @property
    def checkpoints(self) -> list[dict[str, Any]]:
        """Path and step of every checkpoint."""
        return [{"checkpoint": str(one.path), "step": one.step} for one in self.opened]

    @property
    def opened(self) -> list[Checkpoint]:
        """The checkpoints themselves."""
        return [one.checkpoint for one in self._members]

    def transform(self, image: ImagePath | NDArray[np.uint8]) -> Tensor:
        """An image file, or grey pixels uint8 [H, W], as the first run's network takes it: float32 [in_chans, T, T].

        Raises:
            UnreadableImage: a ValueError; the file can't be read.
        """
        member = self._members[0]
        grey_HW = image if isinstance(image, np.ndarray) else member.read_grey(os.fspath(image))
        square = torch.from_numpy(resize_grey(grey_HW, member.recipe.data.image_size).copy())[None, None]
        device = self._devices[0]
        inputs: Tensor = member.transform(square.to(device), identity_parameters(1).to(device))
        return inputs[0]

    def predict(
        self,
        paths: ImagePath | Iterable[ImagePath],
        *,
        rule: str = RULE,
        batch: int | None = None,
        column: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> pd.DataFrame:
        """Score images: a row for each image and finding, in the order given.

        Args:
            paths: image files (PNG, JPEG, DICOM), folders, and CSV tables with a column of paths; or one of these.
            rule: which of `rules` decides.
            batch: images of a batch; by default as many as testing the run takes.
            column: of CSV tables; by default the one called `path`, `file`, `image` or the like.
            progress: called with the images done and all of them.

        Returns:
            Columns `file`; `finding`; `probability`, calibrated where validation found a temperature; `positive`,
            whether it reaches the threshold; `threshold`, on the same scale; `above_negatives` and `above_positives`,
            the share of validation's negatives and positives with a lower score; `logit`, float32, as in
            `predictions_test.csv`; and `note`, what is unusual of the image. What is not known is missing. A file that
            can't be read has a `note` and nothing else.

        Raises:
            ValueError: another rule, a folder without images, or a table that can't be read.
        """
        self._check_rule(rule)
        return self.predict_found(find_images(_listed(paths), column), rule=rule, batch=batch, progress=progress)

    def predict_found(
        self,
        images: ImageFiles,
        *,
        rule: str = RULE,
        batch: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> pd.DataFrame:
        """`predict` for images that were found already."""
        self._check_rule(rule)
        if not len(images):
            raise ValueError("no image to predict")
        index = images.index(self.findings)
        done, total, lock = 0, len(images) * len(self._members), threading.Lock()

        def tick(num: int) -> None:
            nonlocal done
            with lock:
                if progress is not None:
                    progress(done // len(self._members), len(images))
                done += num

        outputs, remarks = [], dict[int, list[str]]()
        for member in self._members:
            found, texts = member_logits(member, index, images.files, self._devices, batch or member.batch_size, tick)
            outputs.append(found)
            remarks = texts | remarks
        if progress is not None:
            progress(total // len(self._members), len(images))
        mean = average(outputs, self._members[0].recipe.loss.name)
        taken = {name for member in self._members for name in member.recipe.metadata}
        for row in range(len(images)) if taken else ():
            if unknown := sorted(name for name in taken if name == "lateral" or not images.about[name][row]):
                remarks.setdefault(row, []).append(f"{', '.join(unknown)} unknown, which the network takes beside it")
        return prediction_table(images, self._known, rule, mean, remarks)

    def explain(
        self, paths: ImagePath | Iterable[ImagePath], findings: Sequence[str] | None = None, *, rule: str = RULE
    ) -> Iterator[Explanation]:
        """Heat maps, one by one: of the plain image, of several runs the mean.

        Args:
            paths: as for `predict`; files that can't be read are passed over.
            findings: to explain; by default those that `predict` calls positive, or the likeliest where none is.

        Raises:
            ValueError: a finding that the run does not have, or a network that Grad-CAM does not know.
        """
        if strangers := [name for name in findings or () if name not in self.findings]:
            raise ValueError(f"no finding {', '.join(strangers)} here; there are {', '.join(self.findings)}")
        images = find_images(_listed(paths))
        if findings is None:
            wanted = self.called(self.predict_found(images, rule=rule))
        else:
            wanted = [[self.findings.index(name) for name in dict.fromkeys(findings)]] * len(images)
        return (found for _, found in self.heat_maps(images, wanted))

    def called(self, table: pd.DataFrame) -> list[list[int]]:
        """For each image of `predict`'s table the columns called positive, or the likeliest; none of a bad file."""
        shape = (-1, len(self.findings))
        positive_NC = table["positive"].fillna(False).to_numpy(dtype=bool).reshape(shape)
        prob_NC = table["probability"].to_numpy().reshape(shape)
        likeliest = [[] if np.isnan(prob_C).all() else [int(np.nanargmax(prob_C))] for prob_C in prob_NC]
        return [np.flatnonzero(row_C).tolist() or most for row_C, most in zip(positive_NC, likeliest, strict=True)]

    def heat_maps(self, images: ImageFiles, wanted: Sequence[Sequence[int]]) -> Iterator[tuple[int, Explanation]]:
        """`explain` for images that were found already, of each the columns that are wanted; with the image's row."""
        index, device = images.index(self.findings), self._devices[0]
        maps = [member_heat(member, index, images.files, wanted, device) for member in self._members]
        for found in zip(*maps, strict=True):
            row = found[0][0]
            grey_HW = self._members[0].read_grey(images.files[row])
            for column in wanted[row]:
                heat_HW = sum(heat_of_image(by_column[column], *grey_HW.shape) for _, by_column in found)
                assert isinstance(heat_HW, np.ndarray)
                heat_HW = heat_HW / max(float(heat_HW.max()), 1e-12)
                side_px = min(max(max(grey_HW.shape), _PICTURE_PX[0]), _PICTURE_PX[1])
                picture = Image.fromarray(overlay(grey_HW, heat_HW, side_px=side_px))
                yield row, Explanation(images.names[row], self.findings[column], heat_HW, picture)

    def validation(self) -> dict[str, dict[str, int]]:
        """By finding, how many negatives and positives of validation its scores are compared with."""
        return {
            name: {word: len(self._known.scores(at, target)) for target, word in enumerate(("negatives", "positives"))}
            for at, name in enumerate(self.findings)
        }

    def calibrated(self, finding: str, logits_N: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Probabilities of a finding's logits, calibrated where validation found a temperature."""
        return self._known.calibrated(logits_N, self.findings.index(finding))

    def validation_scores(self, finding: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Calibrated probabilities of validation's negatives and positives, each ascending; none where not known."""
        at = self.findings.index(finding)
        negatives, positives = (self.calibrated(finding, self._known.scores(at, target)) for target in (0, 1))
        return negatives, positives

    def _check_rule(self, rule: str) -> None:
        if self.rules and rule not in self.rules:
            raise ValueError(f"no threshold rule {rule!r} here; there are {', '.join(self.rules)}")


def open_runs(runs: Sequence[ImagePath], device: str | None = None) -> Predictor:
    """`distcxr.load`, silent about what is not known: that is in `Predictor.problems`."""
    if not runs:
        raise ValueError("name a run folder, for example runs/densenet121/TIME")
    devices = devices_of(device)
    checkpoints, known, together = opened_together([Path(run).expanduser() for run in runs])
    members = [
        open_member(checkpoint, devices[0], one.tta, one.precision)
        for checkpoint, one in zip(checkpoints, known, strict=True)
    ]
    lacking = [
        f"{member.checkpoint.path} was trained with train.precision={wanted}, which {devices[0]} does not have: it is "
        "computed in float32, and the last digits differ"
        for member, one in zip(members, known, strict=True)
        if (wanted := one.precision or member.checkpoint.recipe.train.precision) != member.recipe.train.precision
    ]
    if operating := together.operating:
        fitted = zip(together.findings, operating.temperatures, strict=True)
        if names := [name for name, temperature in fitted if temperature.value is None]:
            lacking.append(f"validation found no temperature for {', '.join(names)}: these are not calibrated")
    return Predictor(members, replace(together, problems=(*together.problems, *lacking)), devices)


def load_runs(runs: Sequence[ImagePath], device: str | None = None) -> Predictor:
    """`distcxr.load`, which has the arguments; what is not known is a warning."""
    predictor = open_runs(runs, device)
    if predictor.problems:
        warnings.warn("\n".join(predictor.problems), stacklevel=3)
    return predictor


def _listed(paths: ImagePath | Iterable[ImagePath]) -> list[ImagePath]:
    return [paths] if isinstance(paths, str | os.PathLike) else list(paths)
