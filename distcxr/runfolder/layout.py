"""Checkpoints in a run folder: names of folders and files, how they are written whole, found, copied and checked.

    checkpoints/last-00000120/   model.safetensors    weights and buffers, contiguous, loadable anywhere
                                 trained.safetensors  with `train.ema` alone: what training resumes with
                                 training.pt          optimiser and GradScaler
                                 checkpoint.json      written last: recipe, state, and what the others are to be like
                                                      (`manifest.py`)
    checkpoints/stage-1/         the same, at the end of a stage
    checkpoints/best/            the same, of the best validation so far

A folder is written as `.NAME.part`, flushed to the disk and renamed. Where one of that name is there, it is renamed to
`.NAME.old` before and removed after: a kill between the two renames leaves the old one, which `find_checkpoint` finds.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distcxr.runfolder.manifest import META, complete_meta, read_meta
from distcxr.runfolder.storage import check_space, storage_errors
from distcxr.runfolder.whole import flush

CHECKPOINTS, BEST = "checkpoints", "best"
_LAST, _STAGE, _DAMAGED = "last-", "stage-", "damaged-"


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
    return run_folder / CHECKPOINTS / f"{_STAGE}{number}"


def is_end_of_stage(checkpoint: Path) -> bool:
    """Whether it is what a stage left, by its name."""
    return checkpoint.name.startswith(_STAGE)


def last_folders(run_folder: Path) -> list[Path]:
    """`last-*` folders of a run, newest first."""
    found = checkpoints_of(run_folder).glob(f"{_LAST}*")
    return sorted((path for path in found if path.name[len(_LAST) :].isdigit()), key=step_of, reverse=True)


def all_folders(run_folder: Path) -> list[Path]:
    """Every checkpoint of a run: the best, the newest first, then those of stages. Folders put aside are left out."""
    best, stages = best_folder(run_folder), checkpoints_of(run_folder).glob(f"{_STAGE}*")
    found = find_checkpoint(best)
    return [*([found] if found.exists() else []), *last_folders(run_folder), *sorted(stages)]


def others_of_step(checkpoints: Path, step: int) -> list[Path]:
    """`last-*` and `stage-*` folders in the folder `checkpoints` that were made after `step` updates, whole or not."""
    found = []
    for path in sorted([*checkpoints.glob(f"{_LAST}*"), *checkpoints.glob(f"{_STAGE}*")]):
        try:
            if read_meta(path)["state"]["step"] == step:
                found.append(path)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


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


@contextmanager
def checkpoint_being_written(target: Path, meta: Mapping[str, Any], needed: int = 0) -> Iterator[Path]:
    """The folder in which to write the files of what becomes the checkpoint `target` when the block ends well.

    After an error what was there stays, and nothing is left beside it.

    Args:
        meta: what `checkpoint.json` holds beside the format and the files' sizes and checksums.
        needed: bytes that the files will take.

    Raises:
        StorageError: the disk has less free than that, or does not take what is written.
    """
    with _folder_being_written(target, needed) as part:
        part.mkdir()
        yield part
        complete_meta(part, meta)
        for file in part.iterdir():  # safetensors gives its files to their owner alone
            shutil.copymode(part / META, file)


def copy_checkpoint(source: Path, target: Path) -> None:
    """Have a copy of a whole checkpoint at `target`; StorageError as for `checkpoint_being_written`."""
    with _folder_being_written(target, size_of(source)) as part:
        shutil.copytree(source, part)


@contextmanager
def _folder_being_written(target: Path, needed: int) -> Iterator[Path]:
    """The name of the folder that becomes `target` when the block ends well."""
    with storage_errors(target, needed):
        part = _empty_part(target)
        check_space(target, needed)
        try:
            yield part
            _rename(part, target)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise


def size_of(checkpoint: Path) -> int:
    """Bytes of a checkpoint's files."""
    return sum(file.stat().st_size for file in checkpoint.iterdir())


def put_aside_as_damaged(checkpoints: Sequence[Path]) -> list[Path]:
    """Rename checkpoints that can't be resumed, so that they are not taken for the run's later on.

    Those that an earlier launch put aside are removed, or they would pile up. Returns the new names.
    """
    earlier = [old for path in checkpoints[:1] for old in path.parent.glob(f"{_DAMAGED}*")]
    for old in earlier:
        shutil.rmtree(old, ignore_errors=True)
    return [path.rename(path.with_name(f"{_DAMAGED}{path.name}")) for path in checkpoints]


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
