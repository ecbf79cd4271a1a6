"""`Saver`: a thread that writes one checkpoint at a time while training continues."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Saver:
    """Writes checkpoints beside the training; on ranks that write none it never has any work.

    The next save, the end of training and every other exit wait for the one before, so a run is never two behind. What
    goes wrong in the thread is raised at the next update or at such a wait, whichever comes first.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def begin(self, write: Callable[[], None]) -> None:
        """Have `write` called beside the training, once what was begun before is done; raises that one's error."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(write,), name="checkpoint")
        self._thread.start()

    def _run(self, write: Callable[[], None]) -> None:
        try:
            write()
        except BaseException as error:
            self._error = error

    def raise_error(self) -> None:
        """Raise what went wrong since the last call; waits for nothing."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def wait(self) -> None:
        """Return once all that was begun is on the disk, or raise what went wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.raise_error()

    def close(self) -> None:
        """`wait` on the way out: an error is logged, as another may be the reason to leave."""
        try:
            self.wait()
        except Exception as error:
            logger.error(f"the newest checkpoint was not written: {error}")
