"""Are the images still those that the run began with? By the sizes of their files, beside the training.

    first launch ──► .images.npz: a size for every image        later launches ──► what differs is named and noted

Nobody waits for it: 112,120 files on a local disk take 0.4 s of CPU time. A file with other pixels and the same size is
not noticed.
"""

from __future__ import annotations

import logging
import os
import threading
import zipfile
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from distcxr.data.index import SampleIndex
from distcxr.engine.state import Run
from distcxr.runfolder import filenames
from distcxr.runfolder.whole import being_written

logger = logging.getLogger(__name__)

_BLOCK = 4096
_SHOWN = 5
_LONGEST_WAIT_S = 30.0


def look_at_images(run: Run) -> Callable[[], None]:
    """Begin, on rank 0, where pixels are read from image files; the call of the result waits for the end, a while."""
    if not run.setup.runtime.is_main or run.setup.recipe.data.source != "png":
        return lambda: None
    thread = threading.Thread(target=_compare, args=(run,), name="distcxr-images", daemon=True)
    thread.start()
    return lambda: thread.join(_LONGEST_WAIT_S)


def _compare(run: Run) -> None:
    index, path = run.setup.index, run.folder / filenames.IMAGES
    try:
        now_N = sizes(index)
        try:
            with np.load(path) as held:
                before_N = held["sizes"] if str(held["labels"]) == index.label_hash else None
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            before_N = None
        if before_N is None or before_N.shape != now_N.shape:
            with being_written(path) as part, part.open("wb") as file:
                np.savez(file, sizes=now_N, labels=index.label_hash)
            return
    except OSError as error:
        logger.warning(f"{path} can't be written ({error.strerror or error}): images that change are not noticed")
        return
    changed = np.flatnonzero(before_N != now_N)
    if len(changed):
        more = " and others" if len(changed) > _SHOWN else ""
        sentence = (
            f"{len(changed):,} of {len(index):,} images have another size, or are gone, since the run began: "
            f"{', '.join(index.file_names(changed[:_SHOWN]))}{more}. It was trained on others until then."
        )
        logger.warning(sentence)
        run.state.note(sentence)


def sizes(index: SampleIndex) -> NDArray[np.int64]:
    """Bytes of every image's file, int64 [N]; -1 where there is none."""
    return np.concatenate(
        [
            np.array([_size(path) for path in index.files(np.arange(start, min(start + _BLOCK, len(index))))])
            for start in range(0, len(index), _BLOCK)
        ]
    )


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
