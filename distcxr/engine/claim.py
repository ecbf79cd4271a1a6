"""Whose run folder it is: a lock that the kernel takes back when its process ends; and marks for others to leave."""

from __future__ import annotations

import fcntl
import logging
import os
import platform
from pathlib import Path

logger = logging.getLogger(__name__)

STOP, RESUME = "STOP", "RESUME"
"""Files: asks the run to save itself and end; it has, and goes on when it is started again."""

_claimed: dict[Path, int] = {}
"""Descriptors of the lock files of this process's run folders; the kernel takes the locks back when it ends."""


def claim(folder: Path) -> None:
    """Keep other processes from training into `folder`; ValueError if one does."""
    if folder.resolve() in _claimed:
        return
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 200).decode(errors="replace") or "unknown process"
        os.close(descriptor)
        raise ValueError(
            f"another run is writing to {folder} ({holder}): wait for its end, or choose another output=FOLDER"
        ) from None
    except OSError:
        logger.warning(f"{folder} is on a file system without locks: do not start two runs there")
    os.truncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())
    _claimed[folder.resolve()] = descriptor


def is_claimed_elsewhere(folder: Path) -> bool:
    """Whether another process trains into `folder`."""
    if folder.resolve() in _claimed or not (folder / ".lock").exists():
        return False
    with (folder / ".lock").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False
