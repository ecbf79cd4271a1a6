"""The lock of a run folder, which lets one process at a time write there; the kernel releases it when that ends."""

from __future__ import annotations

import fcntl
import logging
import os
import platform
from pathlib import Path

from distcxr.runfolder import filenames

logger = logging.getLogger(__name__)

_claimed: dict[Path, int] = {}
"""Descriptors of the lock files of this process's run folders; the kernel takes the locks back when it ends."""


def make_writable(folder: Path) -> None:
    """Make the folder; ValueError if files can't be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"the run folder {folder} can't be written: {error.strerror}. Choose another with output=FOLDER"
        ) from None


def claim(folder: Path) -> None:
    """Keep other processes from training into `folder`; ValueError if one does."""
    if folder.resolve() in _claimed:
        return
    descriptor = os.open(folder / filenames.LOCK, os.O_RDWR | os.O_CREAT, 0o644)
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
    lock = folder / filenames.LOCK
    if folder.resolve() in _claimed or not lock.exists():
        return False
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False
