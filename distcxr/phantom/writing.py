"""Writes a folder of synthetic chest X-rays laid out like NIH ChestX-ray14 or another dataset.

Everything is a pure function of (seed, number): patient p's age, sex and findings of (seed, p), X-ray n's pixels
of (seed, n) and its row of the CSV. So any number of processes give the same bytes in any order, and a larger set
starts with the X-rays of a smaller one.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distcxr.phantom.draw import draw_xray
from distcxr.phantom.layouts import CHESTMNIST, LAYOUTS, write_chestmnist
from distcxr.phantom.plan import Xray, plan_xrays
from distcxr.phantom.png_encoder import encode_png

logger = logging.getLogger(__name__)

VERSION = 1  # of the drawing: raise it when the same seed gives other pixels or labels
DONE_NAME, STARTED_NAME = "phantom.json", "phantom.unfinished.json"
MIN_IMAGES = 8  # the second patient is the first of the test list, and the first has at most 6 images
MIN_SIZE = 32
JPEG_QUALITY = 95
_STREAM = 1  # keeps X-ray k's random numbers apart from patient k's


def write_phantom(
    out: Path, *, images: int, size: int, seed: int = 0, workers: int | None = None, layout: str = "nih"
) -> None:
    """Write `images` X-rays of `size` x `size` pixels, the tables that go with them, and last `phantom.json`.

    `workers` processes draw (default: the cores this process may use). What is written depends on `images`, `size`,
    `seed` and `layout` only, one of `layouts.LAYOUTS`. A whole folder of the same settings is left as it is; an
    unfinished one is written again.
    Raises ValueError when a setting is out of range, or `out` holds other settings or anything not written here.
    """
    settings = _checked_settings(images, size, seed, layout)
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers is {workers}: at least one process has to draw")
    xrays = plan_xrays(images, seed)
    path_of, tables_of = LAYOUTS[layout]
    paths, tables = [path_of(xray) for xray in xrays], tables_of(xrays, size)
    files = {*paths, *tables}
    if _read_settings(out / DONE_NAME) == settings and all((out / file).is_file() for file in files):
        logger.info("%s already holds these %d synthetic X-rays", out, images)
        return
    _claim(out, settings, files)
    draw = partial(_draw, size=size, seed=seed)
    if layout == "chestmnist":
        write_chestmnist(out / CHESTMNIST, xrays, _in_processes(draw, xrays, workers=workers))
    else:
        for folder in {(out / path).parent for path in paths}:
            folder.mkdir(parents=True, exist_ok=True)
        _in_processes(partial(_write, out, draw), xrays, paths, workers=workers)
    for name, text in tables.items():
        (out / name).write_text(text)
    os.replace(out / STARTED_NAME, out / DONE_NAME)  # same content: the name marks that all files are there


def _in_processes(work: Callable[..., Any], *items: Sequence[Any], workers: int) -> list[Any]:
    # Spawned, not forked: the caller may hold threads (torch, DALI) that a fork would freeze half-way.
    # A process costs about 0.3 s to start, so few X-rays are not worth many.
    workers = min(workers, math.ceil(len(items[0]) / 16))
    if workers == 1:
        return list(map(work, *items))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(work, *items, chunksize=16))


def _draw(xray: Xray, size: int, seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng([seed, _STREAM, xray.number])
    image: NDArray[np.uint8] = draw_xray(xray.findings, rng, size, xray.sex, xray.view)
    return image


def _write(out: Path, draw: Callable[[Xray], NDArray[np.uint8]], xray: Xray, path: str) -> None:
    image = draw(xray)
    if path.endswith(".png"):
        data = encode_png(image)
    else:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=JPEG_QUALITY)
        data = stream.getvalue()
    (out / path).write_bytes(data)


def _checked_settings(images: int, size: int, seed: int, layout: str) -> dict[str, int | str]:
    if images < MIN_IMAGES:
        raise ValueError(f"images is {images}: at least {MIN_IMAGES} are needed for a training and a test patient")
    if size < MIN_SIZE:
        raise ValueError(f"size is {size}: below {MIN_SIZE} pixels no finding can be seen")
    if seed < 0:
        raise ValueError(f"seed is {seed}: it must be 0 or more")
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}: it must be one of {', '.join(LAYOUTS)}")
    settings: dict[str, int | str] = {"version": VERSION, "images": images, "size": size, "seed": seed}
    return settings if layout == "nih" else {**settings, "layout": layout}  # folders from before there were others


def _claim(out: Path, settings: dict[str, int | str], files: set[str]) -> None:
    """Mark `out` as being written; ValueError where it can't be. `files` are those that will be there."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: give the name of a folder")
    done, started = out / DONE_NAME, out / STARTED_NAME
    found = _read_settings(done) or _read_settings(started)
    if found is not None and found != settings:
        theirs, ours = _as_text(found), _as_text(settings)
        raise ValueError(f"{out} holds synthetic X-rays of {theirs}, not {ours}: delete it or give another folder")
    if out.is_dir() and (foreign := _first_foreign(out, files if found else set())) is not None:
        raise ValueError(f"{out} holds {foreign}, which distcxr phantom did not write: give an empty or new folder")
    out.mkdir(parents=True, exist_ok=True)
    started.write_text(json.dumps(settings, indent=1) + "\n")
    done.unlink(missing_ok=True)


def _first_foreign(out: Path, files: set[str]) -> str | None:
    """The first file in `out` that is not of `files`; without a marker of ours, the first file or folder."""
    known = {*files, DONE_NAME, STARTED_NAME} if files else set()
    found = (str(path.relative_to(out)) for path in out.rglob("*") if not path.is_dir() or not files)
    return min((name for name in found if name not in known), default=None)


def _read_settings(path: Path) -> dict[str, int | str] | None:
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return settings if isinstance(settings, dict) else None


def _as_text(settings: dict[str, int | str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())
