"""Reads and checks the files of a run folder. Needs `recipe.yaml` or one `metrics_<split>.json`; others may lack."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from distcxr.plain_yaml import load_plain
from distcxr.runfolder import filenames
from distcxr.runfolder.history import read_columns, read_text
from distcxr.runfolder.possible import check_possible
from distcxr.runfolder.predictions import read_predictions

SPLITS = ("test", "val", "train")
"""The order of preference: a report is about the first of these that was scored."""


@dataclass(frozen=True)
class RunFiles:
    """What a run folder holds, parsed.

    Attributes:
        metrics: by split, in the order of `SPLITS`.
        steps, history: the columns of the two CSVs, one row an entry; None is an empty cell. Empty without the file.
        localisation: by split.
        missing: names of files that a finished run would have.
    """

    folder: Path
    recipe: dict[str, Any]
    recipe_text: str
    environment: dict[str, Any]
    metrics: dict[str, dict[str, Any]]
    steps: dict[str, list[float | None]]
    history: dict[str, list[float | None]]
    pictures: list[dict[str, Any]]
    localisation: dict[str, dict[str, Any]]
    missing: tuple[str, ...]


def read_run(folder: Path) -> RunFiles:
    """Read a run folder.

    Raises:
        ValueError: there is no such folder, it is not a run's, or one of its files is damaged; the file is named.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give a run folder, such as runs/quickstart/2026-01-31_12-00-00")
    missing: list[str] = []

    def read(name: str, parse: Callable[[Path], Any], empty: Any, *, expected: bool = True) -> Any:
        if not (folder / name).exists():
            if expected:
                missing.append(name)
            return empty
        return parse(folder / name)

    recipe_text: str = read(filenames.RECIPE, read_text, "")
    environment = read(filenames.ENVIRONMENT, read_environment, {})
    metrics = {
        split: found
        for split in SPLITS
        if (found := read(filenames.metrics(split), _metrics, None, expected=split != "train")) is not None
    }
    if not recipe_text and not metrics:
        raise ValueError(f"{folder} is not a run folder: it holds neither recipe.yaml nor metrics_<split>.json")
    for split in metrics:
        read(filenames.predictions(split), lambda path: path, None)
    steps, history = read(filenames.STEPS, read_columns, {}), read(filenames.HISTORY, read_columns, {})
    return RunFiles(
        folder=folder,
        recipe=read_recipe(folder / filenames.RECIPE) if recipe_text else {},
        recipe_text=recipe_text,
        environment=environment,
        metrics=metrics,
        steps=steps,
        history=history,
        pictures=read(f"{filenames.PICTURES}/{filenames.PICTURES_LIST}", _pictures, [], expected=False),
        localisation={
            split: found
            for split in SPLITS
            if (found := read(filenames.localisation(split), _json_object, None, expected=False)) is not None
        },
        missing=tuple(missing),
    )


def check_files(folder: Path) -> dict[str, str | None]:
    """Each file of a run folder that is there and that something reads again: what is wrong with it, or None."""
    readers: dict[str, Callable[[Path], Any]] = {
        filenames.RECIPE: read_recipe,
        filenames.ENVIRONMENT: read_environment,
        filenames.STEPS: read_columns,
        filenames.HISTORY: read_columns,
        filenames.VALIDATIONS: read_columns,
        filenames.VALIDATION_BATCHES: read_columns,
        filenames.OPERATING: lambda path: read_operating(path.parent),
        filenames.AUTOTUNE: lambda path: read_autotune(path.parent),
        f"{filenames.PICTURES}/{filenames.PICTURES_LIST}": _pictures,
    }
    for split in SPLITS:
        readers |= {
            filenames.metrics(split): _metrics,
            filenames.predictions(split): read_predictions,
            filenames.localisation(split): _json_object,
        }
    found: dict[str, str | None] = {}
    for name, reader in readers.items():
        if (folder / name).exists():
            try:
                reader(folder / name)
                found[name] = None
            except (OSError, ValueError) as error:
                found[name] = str(error)
    return found


def _json(path: Path) -> Any:
    def refuse(word: str) -> NoReturn:
        raise ValueError(f"it holds {word}, which is not JSON")

    try:
        return json.loads(read_text(path), parse_constant=refuse)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    except RecursionError:
        raise ValueError(f"{path} is damaged: it is nested too deeply") from None


def _json_object(path: Path) -> dict[str, Any]:
    found = _json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: an object is expected, not a {type(found).__name__}")
    return found


def read_environment(path: Path) -> dict[str, Any]:
    """The content of `environment.json`; ValueError, which names it, where it is not there or damaged."""
    found = _json_object(path)
    for name in ("hashes", "versions", "hardware"):
        if not isinstance(found.get(name, {}), dict):
            raise ValueError(f"{path} is damaged: {name} is not an object")
    return found


def read_operating(folder: Path) -> dict[str, Any] | None:
    """The content of a folder's `operating.json`; None without it, ValueError where it is damaged."""
    path = folder / filenames.OPERATING
    return _json_object(path) if path.exists() else None


def read_metrics(folder: Path, split: str) -> dict[str, Any] | None:
    """The content of a folder's `metrics_<split>.json`; None without it, ValueError where it is damaged."""
    path = folder / filenames.metrics(split)
    return _metrics(path) if path.exists() else None


def read_autotune(folder: Path) -> str | None:
    """The mode that a folder's `autotune.json` names: `eager`, `compiled` or `graphs`; None without the file.

    Raises:
        ValueError: it is damaged.
    """
    path = folder / filenames.AUTOTUNE
    if not path.exists():
        return None
    try:
        mode = _json_object(path).get("mode")
    except ValueError as error:
        raise ValueError(f"{error}; remove it, and the run tunes anew") from None
    if mode not in ("eager", "compiled", "graphs"):
        raise ValueError(f"{path} names the mode {mode!r}; remove it, and the run tunes anew")
    assert isinstance(mode, str)
    return mode


def _metrics(path: Path) -> dict[str, Any]:
    """The report of a split; checked for all that a report page relies on."""
    found = _json_object(path)
    macro, findings = found.get("macro"), found.get("findings")
    if not isinstance(macro, dict) or not isinstance(findings, dict):
        raise ValueError(f"{path} is damaged: it has no `macro` and `findings`")
    for name, scores in {"macro": macro, **findings}.items():
        if not isinstance(scores, dict) or "auroc" not in scores:
            raise ValueError(f"{path} is damaged: {name!r} has no `auroc`")
    check_possible(path, found)
    num = found.get("num_samples")
    if not isinstance(num, int) or isinstance(num, bool):
        raise ValueError(f"{path} is damaged: num_samples is {num!r}, not a count")
    if not isinstance(macro.get("findings", []), list):
        raise ValueError(f"{path} is damaged: `macro.findings` is not a list of names")
    return found


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe's values as they are written: one of another version of distcxr can still be shown."""
    try:
        values = load_plain(read_text(path)) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold keys and values, not a {type(values).__name__}")
    for name in ("data", "model", "optim", "eval"):
        if not isinstance(values.get(name, {}), dict):
            raise ValueError(f"{path}: {name} must hold keys and values, not {values[name]!r}")
    members = values.get("data", {}).get("members") or []
    if not isinstance(members, list) or not all(isinstance(member, dict) for member in members):
        raise ValueError(f"{path}: data.members must be a list of data sets, not {members!r}")
    return values


def _pictures(path: Path) -> list[dict[str, Any]]:
    found = _json(path)
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise ValueError(f"{path} is damaged: a list of pictures is expected")
    for number, entry in enumerate(found, start=1):
        for key in ("split", "file", "finding", "kind", "image"):
            if not isinstance(entry.get(key), str):
                raise ValueError(f"{path}, picture {number}: it has no `{key}`")
        for key in ("image", "heat"):
            name = entry.get(key)
            if name is not None and (not isinstance(name, str) or Path(name).name != name):
                raise ValueError(f"{path}, picture {number}: `{key}` must name a file beside it, not {name!r}")
    check_possible(path, found)
    return found
