"""A run's most confident errors of validation or test, from the predictions that it kept. Knows no web library."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from distcxr.api import Predictor
from distcxr.data.dataset import data_root
from distcxr.data.index import SampleIndex
from distcxr.data.read import read_index
from distcxr.data.sources.image_files import ImageFiles
from distcxr.engine.pictures import worst_cases
from distcxr.engine.validated import scored_folder
from distcxr.runfolder import filenames
from distcxr.runfolder.contents import read_metrics
from distcxr.runfolder.predictions import Predictions, read_predictions
from distcxr.ui.answers import one_image

SPLITS = ("test", "val")


@dataclass(frozen=True)
class PastError:
    """An image that a run was wrong about.

    Attributes:
        missed: a positive that scored low; otherwise a negative that scored high.
        labels: findings that the image has by its labels.
    """

    file: str
    missed: bool
    probability: float
    labels: tuple[str, ...]


class PastErrors:
    """What one run got wrong. Files are read when they are first asked for, and kept."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        (self._checkpoint,) = predictor.opened
        self._read = cache(self._read_split)
        self._dataset = cache(self._read_dataset)

    def worst(self, split: str, finding: str, rule: str, num: int) -> list[PastError]:
        """Up to `num` false positives, then as many missed positives by the rule's threshold, the most confident first.

        Without a threshold: the highest scores among negatives and the lowest among positives.

        Raises:
            ValueError: there are no predictions of these weights; the message names the file.
        """
        kept = self._read(split)
        column = self.predictor.findings.index(finding)
        probs_N = self.predictor.calibrated(finding, kept.logits_NC[:, column])
        threshold = self.predictor.thresholds[rule][finding] if rule in self.predictor.rules else np.nan
        wrong_N = (probs_N >= threshold) != (kept.targets_NC[:, column] == 1)
        mask_NC = kept.mask_NC if np.isnan(threshold) else (kept.mask_NC * wrong_N[:, None]).astype(np.uint8)
        present_NC = (kept.targets_NC == 1) & (kept.mask_NC == 1)
        return [
            PastError(
                kept.files[case.position], case.kind == "false_negative", float(probs_N[case.position]),
                tuple(name for name, on in zip(kept.findings, present_NC[case.position], strict=True) if on),
            )
            for case in worst_cases(kept.logits_NC, kept.targets_NC, mask_NC, [column], num)
        ]  # fmt: skip

    def image(self, name: str) -> ImageFiles:
        """An image of the run's dataset, with what is known of its patient.

        Raises:
            ValueError: the dataset is not at `data.root`, or has no such image.
        """
        index, row_of = self._dataset()
        if name not in row_of:
            raise ValueError(f"{index.root} has no {name}")
        row = row_of[name]
        age = float(index.age[row])
        about = {"age": "" if np.isnan(age) else f"{age:g}", "sex": str(index.sex[row]), "view": str(index.view[row])}
        return one_image(Path(index.files([row])[0]), name, about)

    def _read_split(self, split: str) -> Predictions:
        folder = scored_folder(self._checkpoint.path)
        if folder is None:
            raise ValueError(f"{self._checkpoint.path} is not in a run folder: it has no predictions")
        path = folder / filenames.predictions(split)
        if not path.exists():
            raise ValueError(f"{path} is not there: distcxr test writes it")
        kept, figures = read_predictions(path), read_metrics(folder, split)
        if figures is not None and figures.get("step") != self._checkpoint.step:
            raise ValueError(f"{path} is of other weights (step {figures.get('step')}): distcxr test writes it anew")
        if tuple(kept.findings) != self.predictor.findings:
            raise ValueError(f"{path} has other findings than {self._checkpoint.path}")
        return kept

    def _read_dataset(self) -> tuple[SampleIndex, dict[str, int]]:
        recipe = self._checkpoint.recipe
        index = read_index(recipe.data, data_root(recipe))
        return index, {name: row for row, name in enumerate(index.file_names(range(len(index))))}
