"""`distcxr check`: whether the files of a run folder are as they were written, and what the run is worth.

Reads every byte of the checkpoints once, about a second a gigabyte, and changes nothing.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distcxr.runfolder import filenames
from distcxr.runfolder.contents import check_files
from distcxr.runfolder.history import check_steps, read_columns, steps_in_words
from distcxr.runfolder.layout import all_folders, best_folder, find_checkpoint, last_folders, size_of
from distcxr.runfolder.lock import is_claimed_elsewhere
from distcxr.runfolder.manifest import META, READABLE_VERSIONS, damaged_files, read_meta


@dataclass(frozen=True)
class CheckedCheckpoint:
    """A checkpoint as it was found.

    Attributes:
        meta: the content of `checkpoint.json`; None where that is damaged.
        problems: a sentence each; none where it is whole.
    """

    path: Path
    num_bytes: int
    meta: Mapping[str, Any] | None
    problems: tuple[str, ...]

    @property
    def state(self) -> Mapping[str, Any]:
        """Where training stood; empty where it is not known."""
        return {} if self.meta is None else self.meta["state"]


@dataclass(frozen=True)
class CheckedRun:
    """A run folder as it was found.

    Attributes:
        checkpoints: the best, the newest first, those of stages.
        files: how far each reaches, by its name, where that is known.
        problems: all of them, a sentence each.
        worth: sentences on what can be done with the run.
    """

    checkpoints: tuple[CheckedCheckpoint, ...]
    files: dict[str, str]
    problems: tuple[str, ...]
    worth: tuple[str, ...]


def check_run(folder: Path) -> CheckedRun:
    """Check a run folder.

    Raises:
        ValueError: it is not a run folder.
    """
    checkpoints = tuple(check_checkpoint(path) for path in all_folders(folder) if path.exists())
    wrong = check_files(folder)
    if filenames.RECIPE not in wrong and not checkpoints:
        raise ValueError(f"{folder} is not a run folder: it holds neither {filenames.RECIPE} nor checkpoints")
    problems = [problem for checkpoint in checkpoints for problem in checkpoint.problems]
    files = {name: "unreadable" if problem else "readable" for name, problem in wrong.items()}
    newest = _newest_whole(folder, checkpoints)
    if newest is not None:
        problems += _tables(folder, newest, files)
    problems += [problem for problem in wrong.values() if problem]
    return CheckedRun(checkpoints, files, tuple(problems), tuple(_worth(folder, checkpoints, newest)))


def check_checkpoint(path: Path) -> CheckedCheckpoint:
    """Compare a checkpoint's files with its `checkpoint.json`, and that with its checksum of itself."""
    size, meta = size_of(path), None
    try:
        meta = read_meta(path)
        if meta["format_version"] not in READABLE_VERSIONS:
            problems = [f"{path} has format {meta['format_version']}, which this distcxr does not read"]
        else:
            problems = damaged_files(path, meta)
            int(meta["state"]["step"])
    except FileNotFoundError as error:
        problems = [f"{error.filename} is missing"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        problems, meta = [f"{path / META} is damaged: {error}"], None
    return CheckedCheckpoint(path, size, meta, tuple(problems))


def _newest_whole(folder: Path, checkpoints: tuple[CheckedCheckpoint, ...]) -> CheckedCheckpoint | None:
    """The checkpoint that the run resumes from."""
    lasts = last_folders(folder)
    return next((one for one in checkpoints if one.path in lasts and not one.problems), None)


def _tables(folder: Path, newest: CheckedCheckpoint, files: dict[str, str]) -> list[str]:
    """What is wrong with the two tables by the newest checkpoint; how far they reach goes into `files`."""
    assert newest.meta is not None
    reach, gaps = steps_in_words(folder)
    if filenames.STEPS in files:
        files[filenames.STEPS] = reach
    found = [problem for problem in (check_steps(folder, newest.meta), gaps) if problem]
    expected, path = len(newest.state.get("history", [])), folder / filenames.HISTORY
    try:
        rows = len(next(iter(read_columns(path).values()), []))
    except ValueError:
        rows = 0
    if rows:
        files[filenames.HISTORY] = f"{rows} epoch{'s' * (rows != 1)}"
    if rows < expected:
        found.append(f"{path} has {rows} of {expected} epochs; the run writes it anew when it resumes")
    return found


def _worth(
    folder: Path, checkpoints: tuple[CheckedCheckpoint, ...], newest: CheckedCheckpoint | None
) -> list[str]:  # fmt: skip
    """What can be done with the run."""
    found = []
    if is_claimed_elsewhere(folder):
        found.append("A process is training here: what it writes meanwhile may look damaged.")
    best_path = find_checkpoint(best_folder(folder))
    best = next((one for one in checkpoints if one.path == best_path), None)
    state = {} if newest is None else newest.state
    found += [str(note) for note in state.get("notes", [])]
    if best is not None and not best.problems:
        found.append(f"The best weights, of step {best.state['step']}, can be tested: distcxr test {_word(folder)}")
    elif state.get("best_step") is not None:
        same = [
            one for one in checkpoints
            if one is not best and not one.problems and one.state.get("step") == state["best_step"]
        ]  # fmt: skip
        anew = f"{same[0].path.name} has them, and the run makes it anew from there" if same else "they are lost"
        found.append(f"There is no whole best checkpoint with the weights of step {state['best_step']}: {anew}.")
    if newest is None or newest.meta is None:
        whole = [one.path.name for one in checkpoints if not one.problems]
        begin = f"; a new run can begin with model.weights={folder}/checkpoints/{whole[0]}" if whole else ""
        return [*found, f"No checkpoint can be resumed: the run begins anew{begin}."]
    recipe, step = newest.meta["recipe"], state["step"]
    left = not state["ended"] and step < (recipe["train"]["max_steps"] or sys.maxsize)
    unscored = [split for split in recipe["eval"]["splits"] if not (folder / filenames.metrics(split)).exists()]
    if not left and not unscored and not state.get("owes_validation"):
        return [*found, f"It is finished, at step {step}."]
    what = f"resumes from {newest.path.name}" if left else "is trained, and scores what is missing"
    arguments = f"{_word(folder / filenames.RECIPE)} output={_word(folder)} train.resume=auto"
    return [*found, f"It {what}: distcxr train {arguments}"]


def _word(path: Path) -> str:
    return shlex.quote(str(path))
