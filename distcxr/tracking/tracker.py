"""Sends a run's figures to TensorBoard, and to the services that the recipe names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distcxr.runfolder import filenames
from distcxr.tracking.services import Services
from distcxr.tracking.tensorboard import TensorBoard


class Tracker:
    """Sends figures and texts to TensorBoard and to every service. On rank 0 alone."""

    def __init__(self, board: TensorBoard, services: Services) -> None:
        self._board, self._services = board, services

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """One point on each curve; tags are `split/metric/finding`."""
        self._board.scalars(values, step)
        self._services.send(lambda service: service.scalars(values, step))

    def image(self, tag: str, picture: NDArray[np.uint8], step: int) -> None:
        """A picture, uint8 [H, W, 3]: for TensorBoard alone, which stays in the run folder."""
        self._board.image(tag, picture, step)

    def text(self, tag: str, markdown: str, step: int = 0) -> None:
        """A page of text."""
        self._board.text(tag, markdown, step)
        self._services.send(lambda service: service.text(tag, markdown, step))

    def hyperparameters(self, values: Mapping[str, Any], results: Mapping[str, float]) -> None:
        """A row of TensorBoard's HParams tab; services got the whole recipe when the run began.

        Args:
            results: by the tags of curves this run has; the tab shows their last values.
        """
        self._board.hyperparameters(values, results)

    def close(self) -> None:
        """Write and send what is left."""
        self._board.close()
        self._services.send(lambda service: service.close())


def open_tracker(
    folder: Path, *, purge_step: int, services: Sequence[str], project: str, config: Mapping[str, Any]
) -> Tracker:
    """Begin to track the run of a folder, or resume that.

    Args:
        purge_step: steps from here on were written by a run that is now being repeated; TensorBoard hides them.
        services: of `logging.trackers`.
        config: the recipe, nested.

    Raises:
        ValueError: a service's package is missing, or it does not start a run.
    """
    opened = Services(services, project=project, folder=folder, config=config)
    return Tracker(TensorBoard(folder / filenames.TENSORBOARD, purge_step=purge_step), opened)
