"""The error file of a rank: what torchrun, `accelerate launch` and `distcxr train` report of a process that failed.

    a rank fails ──► error file ──► launcher: its summary, or with `distcxr train` the last line on the screen

Without the file the launchers' summary has a link to PyTorch's documentation in place of the reason. The format is the
one of `torch.distributed.elastic.multiprocessing.errors`; a wrong recipe is reported before torch is imported.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from pathlib import Path

from distcxr.exit_codes import ENVIRONMENT

REPORTED_VARIABLE = "DISTCXR_ERRORS_REPORTED"
"""In the environment of ranks: their launcher prints the error file's message last, so they leave it out themselves."""

FILE_VARIABLE = "TORCHELASTIC_ERROR_FILE"
"""In the environment of ranks: where to leave the error file."""

FULL_MEMORY = (
    "this process's memory is full: raise its limit (ulimit -v, the container's, SLURM's --mem), or lower "
    "train.per_device_batch_size, data.num_workers or data.prefetch"
)
"""The message where there is no memory, known before there is a run."""


_FULL = ("can't allocate memory", "Cannot allocate memory", "failed to map segment from shared object")
"""As torch's allocators, the kernel and the dynamic loader report it."""


def is_full_memory(error: BaseException) -> bool:
    """Whether this process got no more memory, as Python, the kernel, torch or a library's loading reports it."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return any(words in str(error) for words in _FULL)


def write_error_file(message: str) -> None:
    """Leave `message` for the launcher, if it has named a file for it."""
    path = os.environ.get(FILE_VARIABLE)
    if not path:
        return
    content = {"message": {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}}
    try:
        Path(path).write_text(json.dumps(content), encoding="utf-8")
    except OSError:  # a full disk may be the very failure that is being reported
        return


def launch_folder() -> Path | None:
    """A folder that the ranks of this host have in common before they have exchanged anything: that of their launcher's
    error files, `.../attempt_0/<local rank>/error.json`."""
    named = os.environ.get(FILE_VARIABLE)
    folder = Path(named).parent.parent if named else None
    return folder if folder is not None and folder.is_dir() else None


def is_left_by_first_rank(within_s: float) -> bool:
    """Whether the first rank of this machine leaves its error file within so many seconds: False on that rank."""
    folder, end = launch_folder(), time.monotonic() + within_s
    if os.environ.get("LOCAL_RANK", "0") == "0":
        return False
    while time.monotonic() < end:
        if folder and (folder / "0" / "error.json").exists():
            return True
        time.sleep(0.2)
    return False


def is_reported_by_launcher() -> bool:
    """Whether the launcher prints the message itself."""
    return bool(os.environ.get(REPORTED_VARIABLE)) and bool(os.environ.get(FILE_VARIABLE))


def leave_full_memory() -> int:
    """Report `FULL_MEMORY` where there is no log yet; the exit code."""
    write_error_file(FULL_MEMORY)
    if not is_reported_by_launcher():
        sys.stderr.write(f"error: {FULL_MEMORY}\n")
    return ENVIRONMENT
