"""What `Predictor.predict` returns: logits in the terms of the run's validation, a row for each image and finding.

Shapes: N images, C findings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from distcxr.data.sources.image_files import ImageFiles
from distcxr.engine.evaluate import Outputs
from distcxr.engine.validated import Validated

if TYPE_CHECKING:
    import pandas as pd

_ABOVE = ("above_negatives", "above_positives")


def prediction_table(
    images: ImageFiles, known: Validated, rule: str, outputs: Outputs, remarks: dict[int, list[str]]
) -> pd.DataFrame:
    """The table, with the columns that `Predictor.predict` documents.

    Args:
        outputs: logits [N, C] of the images that can be read.
        remarks: what is unusual of an image, by its row.
    """
    import pandas as pd

    shape = (len(images), len(known.findings))
    numbers = {name: np.full(shape, np.nan) for name in ("probability", "threshold", *_ABOVE)}
    logit_NC, positive_NC = np.full(shape, np.nan, dtype=np.float32), np.full(shape, None, dtype=object)
    rows = outputs.rows
    logit_NC[rows] = outputs.values_NK
    for at in range(len(known.findings)):
        logits_N = outputs.values_NK[:, at]
        numbers["probability"][rows, at] = known.calibrated(logits_N, at)
        for target, name in enumerate(_ABOVE):
            scores = known.scores(at, target)
            if len(scores):
                numbers[name][rows, at] = np.searchsorted(scores, logits_N) / len(scores)
        logit = known.logit_threshold(rule, at)
        if logit is not None:
            positive_NC[rows, at] = logits_N >= np.float32(logit)
            numbers["threshold"][rows, at] = known.threshold(rule, at)
    noted = remarks | {row: [f"left out: {reason}"] for row, reason in outputs.unreadable}
    notes = ["; ".join(noted.get(row, ())) for row in range(len(images))]
    return pd.DataFrame(
        {
            "file": np.repeat(np.array(images.names, dtype=object), shape[1]),
            "finding": list(known.findings) * shape[0],
            "probability": numbers["probability"].ravel(),
            "positive": pd.array(positive_NC.ravel(), dtype="boolean"),
            "threshold": numbers["threshold"].ravel(),
            **{name: numbers[name].ravel() for name in _ABOVE},
            "logit": logit_NC.ravel(),
            "note": np.repeat(np.array(notes, dtype=object), shape[1]),
        }
    )
