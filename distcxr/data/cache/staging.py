"""Copying a decoded cache to a node's own disk."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from distcxr.data.cache.files import CacheError, flush, locked, read_meta, remove_files, shown_size, write_json

logger = logging.getLogger(__name__)


def stage(folder: Path, to: Path) -> Path:
    """Copy a cache to a folder on this node's own disk, once for all processes that ask, and return the copy's folder.

    A copy of the same build is used again; copies of older builds of this cache are removed.

    Raises:
        CacheError: there is no whole cache, or `to` has no room or can't be written.
    """
    meta = read_meta(folder)
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:8]
    target = to.expanduser() / f"{folder.name}-{name}"
    try:
        target.mkdir(parents=True, exist_ok=True)
        with locked(target / "lock", wait=f"{target}: waiting for another process that copies the cache there"):
            if _is_copy(target, folder, meta):
                logger.info("%s: the copy of %s made earlier is used", target, folder)
                return target
            remove_files(target, keep=())
            needed = sum((folder / meta[name]).stat().st_size for name in ("pixels", "entries"))
            free = shutil.disk_usage(target).free
            if needed > free:
                raise CacheError(
                    f"data.cache.stage_to={to}: the cache in {folder} takes {shown_size(needed)} and "
                    f"{shown_size(free)} is free there; free some, name another folder, or leave stage_to out"
                )
            for name in (meta["pixels"], meta["entries"]):
                shutil.copyfile(folder / name, target / name)
                flush(target / name)
            write_json(target / "cache.json", meta)
            logger.info("%s: copied %s from %s", target, shown_size(needed), folder)
    except OSError as error:
        raise CacheError(
            f"data.cache.stage_to={to}: the cache in {folder} can't be copied to {target}: {error.strerror}"
        ) from error
    return target


def _is_copy(target: Path, folder: Path, meta: dict[str, Any]) -> bool:
    try:
        return read_meta(target) == meta and all(
            (target / meta[name]).stat().st_size == (folder / meta[name]).stat().st_size
            for name in ("pixels", "entries")
        )
    except (CacheError, OSError):
        return False
