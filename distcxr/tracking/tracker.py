"""Sends a run's figures to TensorBoard, and to the services that the recipe names."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distcxr.runfolder import filenames
from distcxr.tracking.services import Services

logger = logging.getLogger(__name__)


class Tracker:
    """Writes TensorBoard's files, and sends figures and texts to every service too. On rank 0 alone.

    Curves are no reason to end a run: where the disk does not take them a warning is logged, and no more are written.
    """

    def __init__(
        self, folder: Path, *, purge_step: int, services: Sequence[str], project: str, config: Mapping[str, Any]
    ) -> None:
        """Begin to track the run of a folder, or resume that, with the keys of its recipe's `logging`.

        TensorBoard hides steps from `purge_step` on: they were written by a run that is now being repeated.
        Raises ValueError: a service's package is missing, or it does not start a run.
        """
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._services = Services(services, project=project, folder=folder, config=config)
        _leave_reports_to_the_caller()
        self._board: Any = SummaryWriter(str(folder / filenames.TENSORBOARD), purge_step=purge_step)  # type: ignore[no-untyped-call]

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """One point on each curve; tags are `split/metric/finding`."""

        def draw(board: Any) -> None:
            for tag, value in values.items():
                board.add_scalar(tag, value, step)
            board.flush()

        self._draw(draw)
        self._services.send(lambda service: service.scalars(values, step))

    def image(self, tag: str, picture: NDArray[np.uint8], step: int) -> None:
        """A picture, uint8 [H, W, 3]: for TensorBoard alone, which stays in the run folder."""
        self._draw(lambda board: board.add_image(tag, picture, step, dataformats="HWC"))

    def text(self, tag: str, markdown: str, step: int = 0) -> None:
        """A page of text."""
        self._draw(lambda board: board.add_text(tag, markdown, step))
        self._services.send(lambda service: service.text(tag, markdown, step))

    def hyperparameters(self, values: Mapping[str, Any], results: Mapping[str, float]) -> None:
        """A row of TensorBoard's HParams tab, in this run rather than in a sub-run of its own.

        Services got the whole recipe when the run began. `results` are by the tags of curves: their last values.
        """
        from torch.utils.tensorboard.summary import hparams

        plain = {
            key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in values.items()
        }
        summaries = hparams(plain, dict(results))  # type: ignore[no-untyped-call]

        def draw(board: Any) -> None:
            for summary in summaries:
                board._get_file_writer().add_summary(summary)

        self._draw(draw)

    def close(self) -> None:
        """Write and send what is left."""
        self._draw(lambda board: board.close())
        self._services.send(lambda service: service.close())

    def _draw(self, draw: Callable[[Any], None]) -> None:
        if self._board is None:
            return
        try:
            draw(self._board)
        except OSError as error:
            self._board = None
            reason = error.strerror or error
            logger.warning(f"TensorBoard's files can't be written ({reason}): this launch writes no more curves")


def _leave_reports_to_the_caller() -> None:
    """TensorBoard's thread raises to the next caller what ended it: its traceback on the terminal is not needed."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if type(args.thread).__name__ != "_AsyncWriterThread" or not isinstance(args.exc_value, OSError):
            before(args)

    threading.excepthook = hook
