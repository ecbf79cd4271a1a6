"""What is built once from image files, in steps that a kill or a power cut can't split: a decoded cache, a pack.

Files that belong together are named by one JSON file, which is replaced last; a lock keeps a second builder out.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Report = Callable[[str, int, int], None]
"""(what is being done, images done, images in all); called from the thread that builds."""

STAT_THREADS = 16
"""For looking at many source files: a network file system answers many at once."""

_CHUNK = 16


def read_json(file: Path) -> dict[str, Any]:
    """What `write_json` wrote; ValueError, KeyError or TypeError when that is not what is there."""
    whole = json.loads(file.read_bytes())
    content: dict[str, Any] = whole["content"]
    if whole["sha256"] != _digest(content):
        raise ValueError("its content does not have its sha256")
    return content


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Replace a file in one step that a power cut can't split."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps({"sha256": _digest(content), "content": content}, indent=1))
    flush(part)
    part.replace(file)
    flush(file.parent)


def flush(path: Path) -> None:
    """Wait until a file's or folder's content is on disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def locked(file: Path, *, wait: str | None) -> Iterator[None]:
    """Hold the lock file, which the system gives back when the process ends in whatever way.

    Args:
        wait: logged when another process holds it, which is then waited for; None raises BlockingIOError instead.
    """
    with file.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if wait is None:
                raise
            logger.info(wait)
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems are mounted without locks
            logger.warning("%s can't be locked (%s): let one process alone use this folder", file, error.strerror)
        yield


def shown_size(num_bytes: int) -> str:
    """For messages: `5.63 GB`, `17.96 MB`."""
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.2f} MB"


def look(file: str | bytes) -> list[int]:
    """Size and modification time of a source file in ns; -1 for one that can't be looked at."""
    try:
        state = os.stat(file)
    except OSError:
        return [-1, -1]
    return [state.st_size, state.st_mtime_ns]


def in_threads(
    what: str, work: Callable[[int], None], rows: NDArray[np.int64], *, workers: int, report: Report
) -> None:
    """Run `work` on every row, in any order; the first error ends it."""
    stop = threading.Event()

    def run(part: list[int]) -> int:
        for row in part:
            if stop.is_set():
                break
            work(row)
        return len(part)

    done, starts = 0, range(0, len(rows), _CHUNK)
    with ThreadPoolExecutor(workers, thread_name_prefix="build") as pool:
        try:
            futures = [pool.submit(run, rows[start : start + _CHUNK].tolist()) for start in starts]
            for future in as_completed(futures):
                done += future.result()
                report(what, done, len(rows))
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
