"""Checkpoints in a run folder: names of folders and files, how they are written whole, found, copied and checked.

    checkpoints/last-00000120/   model.safetensors    weights and buffers, contiguous, loadable anywhere
                                 trained.safetensors  with `train.ema` alone: what training resumes with
                                 training.pt          optimiser and GradScaler
                                 checkpoint.json      written last: format, recipe, state, checksums of the others and
                                                      of its own content
    checkpoints/stage-1/         the same, at the end of a stage
    checkpoints/best/            the same, of the best validation so far

A folder is written as `.NAME.part`, flushed to the disk and renamed. Where one of that name is there, it is renamed to
`.NAME.old` before and removed after: a kill between the two renames leaves the old one, which `find_checkpoint` finds.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distcxr.regular import open_regular, read_regular
from distcxr.runfolder.whole import flush

CHECKPOINTS, BEST = "checkpoints", "best"
MODEL, TRAINED, TRAINING, META = "model.safetensors", "trained.safetensors", "training.pt", "checkpoint.json"
FORMAT_VERSION = 3
READABLE_VERSIONS = (2, FORMAT_VERSION)  # 2 has no checksum of checkpoint.json
_LAST = "last-"


def checkpoints_of(run_folder: Path) -> Path:
    """The folder that holds a run's checkpoints."""
    return run_folder / CHECKPOINTS


def best_folder(run_folder: Path) -> Path:
    """Where a run keeps the checkpoint of its best validation."""
    return run_folder / CHECKPOINTS / BEST


def last_folder(run_folder: Path, step: int) -> Path:
    """Where a run keeps the checkpoint that it made after `step` updates."""
    return run_folder / CHECKPOINTS / f"{_LAST}{step:08d}"


def stage_folder(run_folder: Path, number: int) -> Path:
    """Where a run keeps what stage `number` left."""
    return run_folder / CHECKPOINTS / f"stage-{number}"


def last_folders(run_folder: Path) -> list[Path]:
    """`last-*` folders of a run, newest first."""
    found = checkpoints_of(run_folder).glob(f"{_LAST}*")
    return sorted((path for path in found if path.name[len(_LAST) :].isdigit()), key=step_of, reverse=True)


def step_of(last: Path) -> int:
    """Updates that a `last-*` folder is named by."""
    return int(last.name.removeprefix(_LAST))


def holds_checkpoints(run_folder: Path) -> bool:
    """Whether a run has saved anything there."""
    folder = checkpoints_of(run_folder)
    return folder.exists() and any(folder.iterdir())


def run_folder_of(checkpoint: Path) -> Path | None:
    """The run folder that a checkpoint lies in; None for one that was copied elsewhere."""
    return checkpoint.parent.parent if checkpoint.parent.name == CHECKPOINTS else None


def is_best(checkpoint: Path) -> bool:
    """Whether validation chose it among others; `find_checkpoint` may have found it under its other name."""
    best = checkpoint.with_name(BEST)
    return checkpoint in (best, _aside(best))


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a path means: of a run folder the best, and of one that a kill has moved aside, that."""
    if checkpoints_of(path).is_dir():
        path = best_folder(path)
    return path if path.exists() or not _aside(path).exists() else _aside(path)


def damaged_files(checkpoint: Path, checksums: Mapping[str, int]) -> list[Path]:
    """Files of a checkpoint that don't have the checksums in its `checkpoint.json`.

    Raises:
        OSError: a file is missing or can't be read.
        KeyError: a file that every checkpoint has is not listed.
    """
    listed = {name: checksums[name] for name in (MODEL, TRAINED, TRAINING) if name != TRAINED or name in checksums}
    return [checkpoint / name for name, checksum in listed.items() if _crc32(checkpoint / name) != checksum]


def read_meta(checkpoint: Path) -> dict[str, Any]:
    """The content of `checkpoint.json`, checked against the checksum of itself.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not JSON, or not what was written.
    """
    try:
        meta = json.loads(read_regular(checkpoint / META)[0])
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(meta, dict):
        raise ValueError(f"a {type(meta).__name__} where an object should be")
    own = meta["crc32"].pop(META, None) if isinstance(meta.get("crc32"), dict) else None
    if own is None and meta.get("format_version") == FORMAT_VERSION:
        raise ValueError("it has no checksum of itself")
    if own is not None and own != _meta_crc32(meta):
        raise ValueError("its checksum of itself is wrong")
    return meta


def write_meta(checkpoint: Path, meta: Mapping[str, Any]) -> None:
    """Write `checkpoint.json` with the checksum of itself beside those in `meta`."""
    plain = json.loads(json.dumps(meta, allow_nan=False))  # as it will be read
    content = plain | {"crc32": plain["crc32"] | {META: _meta_crc32(plain)}}
    (checkpoint / META).write_text(json.dumps(content, indent=1))


def _meta_crc32(meta: Mapping[str, Any]) -> int:
    """Of the content, not of the text: white space and order don't matter."""
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


@contextmanager
def checkpoint_being_written(target: Path, meta: Mapping[str, Any]) -> Iterator[Path]:
    """The folder in which to write the files of what becomes the checkpoint `target` when the block ends well.

    Args:
        meta: what `checkpoint.json` holds beside the format and the files' checksums.
    """
    part = _empty_part(target)
    part.mkdir()
    try:
        yield part
        checksums = {file.name: _crc32(file) for file in sorted(part.iterdir())}
        write_meta(part, {"format_version": FORMAT_VERSION} | dict(meta) | {"crc32": checksums})
        for file in part.iterdir():  # safetensors gives its files to their owner alone
            shutil.copymode(part / META, file)
        _rename(part, target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def copy_checkpoint(source: Path, target: Path) -> None:
    """Have a copy of a whole checkpoint at `target`."""
    part = _empty_part(target)
    shutil.copytree(source, part)
    _rename(part, target)


def put_aside_as_damaged(checkpoint: Path) -> None:
    """Rename a checkpoint that can't be resumed, so that it is not taken for one of the run's later on."""
    aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)


def _empty_part(target: Path) -> Path:
    """The name to write `target` under; what kills have left under such names is removed."""
    target.parent.mkdir(exist_ok=True)
    for left_by_a_kill in target.parent.glob(".*.part"):
        shutil.rmtree(left_by_a_kill, ignore_errors=True)
    return target.with_name(f".{target.name}.part")


def _rename(part: Path, target: Path) -> None:
    for file in part.iterdir():
        flush(file)
    flush(part)
    aside = _aside(target)
    if target.exists():
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
    part.rename(target)
    flush(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _crc32(path: Path) -> int:
    """Checksum of a file: about a second a gigabyte."""
    checksum = 0
    with open(open_regular(path)[0], "rb") as file:
        while block := file.read(1 << 22):
            checksum = zlib.crc32(block, checksum)
    return checksum
