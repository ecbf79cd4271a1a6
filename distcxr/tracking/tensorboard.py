"""TensorBoard files: scalars tagged `split/metric/finding`, pictures and hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class TensorBoard:
    """Writes one run's TensorBoard folder."""

    def __init__(self, folder: Path, *, purge_step: int | None = None) -> None:
        """
        Args:
            folder: made when it is not there.
            purge_step: steps from here on were written by a run that is now being repeated; TensorBoard hides them.
        """
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._writer = SummaryWriter(str(folder), purge_step=purge_step)  # type: ignore[no-untyped-call]

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """One point on each curve."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)  # type: ignore[no-untyped-call]
        self._writer.flush()  # type: ignore[no-untyped-call]

    def image(self, tag: str, picture: NDArray[np.uint8], step: int) -> None:
        """A picture, uint8 [H, W, 3]."""
        self._writer.add_image(tag, picture, step, dataformats="HWC")  # type: ignore[no-untyped-call]

    def text(self, tag: str, markdown: str, step: int = 0) -> None:
        """A page in the Text tab."""
        self._writer.add_text(tag, markdown, step)  # type: ignore[no-untyped-call]

    def hyperparameters(self, values: Mapping[str, Any], results: Mapping[str, float]) -> None:
        """A row of the HParams tab, in this run rather than in a sub-run of its own.

        Args:
            results: by the tags of curves this run has; the tab shows their last values.
        """
        from torch.utils.tensorboard.summary import hparams

        plain = {
            key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in values.items()
        }
        for summary in hparams(plain, dict(results)):  # type: ignore[no-untyped-call]
            self._writer._get_file_writer().add_summary(summary)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Flush and close the files."""
        self._writer.close()  # type: ignore[no-untyped-call]
