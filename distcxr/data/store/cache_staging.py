"""Copying a decoded cache to a node's own disk."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import shutil
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from distcxr.data.store.cache_format import DecodedCache
from distcxr.data.store.store_files import CACHE, StoreError, locked, shown_size, write_json
from distcxr.runfolder.whole import flush

logger = logging.getLogger(__name__)


def stage(folder: Path, to: Path) -> Path:
    """Copy a cache to a folder on this node's own disk, once for all processes that ask, and return the copy's folder.

    A copy of the same build is used again; copies of older builds of this cache are removed. `~` and environment
    variables in `to` stand for what they are on this node, which may be another folder than on the next one.

    Raises StoreError: there is no whole cache, a variable in `to` is not set, or `to` has too little space or can't be
    written; names the node.
    """
    settings = CACHE.read_settings(folder)
    names = [settings["entries"], settings["pixels"]]
    node = platform.node()
    target = _expanded(to, node) / f"{folder.name}-{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:8]}"
    try:
        target.mkdir(parents=True, exist_ok=True)
        with locked(target / "lock", wait=f"{target}: waiting for another process that copies the cache there"):
            if _is_copy(target, settings):
                logger.info("%s: the copy of %s made earlier is used", target, folder)
                return target
            CACHE.remove_files(target, keep=())
            needed, free = sum((folder / name).stat().st_size for name in names), shutil.disk_usage(target).free
            if needed > free:
                raise StoreError(
                    f"data.cache.stage_to={to}: the cache in {folder} takes {shown_size(needed)} and "
                    f"{shown_size(free)} is free in {target} on {node}; free some, name another folder, or leave "
                    "stage_to out"
                )
            started_s = time.monotonic()
            for name in names:
                shutil.copyfile(folder / name, target / name)
                flush(target / name)
            write_json(target / CACHE.json_name, settings)
            logger.info(
                "%s on %s: copied %s from %s in %.1f s",
                target, node, shown_size(needed), folder, time.monotonic() - started_s,
                extra={"from_any_rank": True},  # who copies on the other nodes is not rank 0
            )  # fmt: skip
    except OSError as error:
        raise StoreError(
            f"data.cache.stage_to={to}: the cache in {folder} can't be copied to {target} on {node}: {error.strerror}"
        ) from error
    return target


def _expanded(to: Path, node: str) -> Path:
    def value(found: re.Match[str]) -> str:
        name = found[1].strip("{}")
        if not os.environ.get(name):
            raise StoreError(f"data.cache.stage_to={to}: ${name} is not set on {node}")
        return os.environ[name]

    return Path(re.sub(r"\$(\w+|\{\w+\})", value, str(to))).expanduser()


def _is_copy(target: Path, settings: dict[str, Any]) -> bool:
    try:
        with closing(DecodedCache(target, settings["image_size"])) as copy:
            return copy.settings == settings
    except StoreError:
        return False
