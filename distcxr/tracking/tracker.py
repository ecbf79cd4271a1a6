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

_LAYOUT = {
    "Validation": {
        "AUROC of each finding": ["Multiline", [r"val/auroc/(?!(macro|best)$)"]],
        "macro AUROC": ["Multiline", [r"val/auroc/(macro|best)$"]],
        "average precision of each finding": ["Multiline", [r"val/auprc/"]],
    },
    "Loss": {"loss": ["Multiline", [r"(train|val)/loss$"]], "learning rate": ["Multiline", [r"train/lr$"]]},
    "Speed": {
        "images per second": ["Multiline", [r"train/img_per_s$"]],
        "waited for data, % of the time": ["Multiline", [r"train/data_wait_pct$"]],
    },
}
"""The tab Custom Scalars. Patterns, so that it is the same in every run: TensorBoard merges what is equal."""

_PR_THRESHOLDS = 201
"""From 0 to 1, as TensorBoard wants them: 3 kB a curve."""


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
        self._board: Any = SummaryWriter(str(events_folder(folder)), purge_step=purge_step)  # type: ignore[no-untyped-call]
        self._draw(lambda board: board.add_custom_scalars(_LAYOUT))

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

    def pr_curves(self, curves: Mapping[str, tuple[NDArray[np.uint8], NDArray[np.float64]]], step: int) -> None:
        """Precision by recall: labels and probabilities, [M] each, by tag. For TensorBoard alone."""

        def draw(board: Any) -> None:
            for tag, (targets_M, probs_M) in curves.items():
                board.add_pr_curve(tag, targets_M, probs_M, step, num_thresholds=_PR_THRESHOLDS)

        self._draw(draw)

    def text(self, tag: str, markdown: str, step: int = 0) -> None:
        """A page of text."""
        self._draw(lambda board: board.add_text(tag, markdown, step))
        self._services.send(lambda service: service.text(tag, markdown, step))

    def hyperparameters(self, values: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """A row of TensorBoard's HParams tab, in this run rather than in a sub-run of its own.

        Services got the whole recipe when the run began.

        Args:
            metrics: tags of curves, of which the row has the last values, as soon as there are some.
        """
        from torch.utils.tensorboard.summary import hparams

        plain = {
            key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in values.items()
        }
        *begin, self._end = hparams(plain, dict.fromkeys(metrics))  # type: ignore[no-untyped-call]
        self._write(begin)

    def ended_well(self) -> None:
        """Mark the row of `hyperparameters` as that of a finished run."""
        self._write([self._end])

    def _write(self, summaries: Sequence[Any]) -> None:
        def draw(board: Any) -> None:
            for summary in summaries:
                board._get_file_writer().add_summary(summary)
            board.flush()

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


def events_folder(folder: Path) -> Path:
    """Where a run's event files are: in its folder itself, since TensorBoard calls a run by the folder they lie in.

    A run begun before December 2026 has them in `tensorboard/`, and continues there, or it would become two runs.
    """
    earlier = folder / filenames.TENSORBOARD
    return earlier if earlier.is_dir() else folder


def tensorboard_command(folder: Path) -> str:
    """What shows the run in a browser: with all others of `runs/`, where it is one of them."""
    return f"tensorboard --logdir {filenames.RUNS if filenames.RUNS in folder.parents else folder}"


def _leave_reports_to_the_caller() -> None:
    """TensorBoard's thread raises to the next caller what ended it: its traceback on the terminal is not needed."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if type(args.thread).__name__ != "_AsyncWriterThread" or not isinstance(args.exc_value, OSError):
            before(args)

    threading.excepthook = hook
