"""`diverged-step-<n>.json`: an update with a loss or a gradient that was not finite, and what it was made of.

    written by engine/divergence.py, at the step that ends a run and at each that `train.on_nan=skip` leaves out
    read by engine/replay.py, which makes the batch again, and by engine/compatible.py: a run that it ended may resume
    with another learning rate

Numbers that are not finite are the strings `nan`, `inf` and `-inf`, as JSON has none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distcxr.runfolder import filenames
from distcxr.runfolder.whole import write_json

FORMAT = 1
_KEYS = {
    "format": int, "step": int, "epoch": int, "batch": int, "stage": int, "accumulation": int, "skipped": bool,
    "identity": str, "recipe": dict, "hashes": dict, "augment_columns": list, "ranks": list, "steps": list,
}  # fmt: skip
_RANK_KEYS = {"rank": int, "sample_id": list, "files": list, "augment": list}


def in_json(number: float | None) -> float | str | None:
    """The number, or its name where JSON has none for it."""
    return number if number is None or math.isfinite(number) else str(number)


def write_diverged(run_folder: Path, content: Mapping[str, Any]) -> Path:
    """Write what is known of an update; the file of the same step is replaced. Returns its path."""
    path = run_folder / filenames.diverged(content["step"])
    write_json(path, {"format": FORMAT} | dict(content))
    return path


def find_diverged(path: Path) -> Path:
    """The file that a path means: of a run folder the newest; ValueError where that has none."""
    if not path.is_dir():
        return path
    found = diverged_files(path)
    if not found:
        raise ValueError(f"{path} has no {filenames.DIVERGED}: all its updates were finite")
    return found[-1]


def read_diverged(path: Path) -> dict[str, Any]:
    """The content of such a file.

    Raises:
        ValueError: naming the file, and the key that it lacks.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__} where an object should be")
    _check(path, content, _KEYS, "")
    if content["format"] != FORMAT:
        raise ValueError(f"{path} has format {content['format']}; this distcxr reads format {FORMAT}")
    for number, rank in enumerate(content["ranks"]):
        _check(path, rank if isinstance(rank, dict) else {}, _RANK_KEYS, f"ranks.{number}.")
        if not len(rank["sample_id"]) == len(rank["files"]) == len(rank["augment"]):
            raise ValueError(f"{path}: ranks.{number} has not as many files and augmentations as samples")
    return content


def diverged_files(run_folder: Path) -> list[Path]:
    """Those of a run, by step."""
    return sorted(run_folder.glob(filenames.DIVERGED), key=_step_in)


def newest_end(run_folder: Path) -> dict[str, Any] | None:
    """The content of the newest file of an update that ended the run; None where there is none that can be read."""
    for path in reversed(diverged_files(run_folder)):
        try:
            content = read_diverged(path)
        except ValueError:
            continue
        if not content["skipped"]:
            return content
    return None


def _step_in(path: Path) -> int:
    digits = path.stem.rpartition("-")[2]
    return int(digits) if digits.isdigit() else -1


def _check(path: Path, content: Mapping[str, Any], keys: Mapping[str, type], prefix: str) -> None:
    for key, kind in keys.items():
        if not isinstance(content.get(key), kind):
            raise ValueError(f"{path}: {prefix}{key} is missing or not a {kind.__name__}")
