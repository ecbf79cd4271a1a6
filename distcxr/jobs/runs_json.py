"""runs.json: the runs that an array or a sweep is made of, those that have not begun or have failed, too."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distcxr.jobs.grid import Planned
from distcxr.runfolder import filenames
from distcxr.runfolder.whole import write_json


@dataclass(frozen=True)
class Listed:
    """A run that was asked for; its folder need not be there.

    Attributes:
        recipe, values: its recipe's name and the values that tell it from others of that recipe, as written.
        seed, same_but_seed: the recipe's seed, and the hash of the rest; None in older files.
    """

    name: str
    recipe: str
    values: dict[str, str]
    folder: Path
    num_parameters: int
    seed: int | None = None
    same_but_seed: str | None = None


def write_listing(folder: Path, runs: Sequence[Planned], num_parameters: Mapping[str, int]) -> None:
    """Write `runs.json` into the folder of an array or a sweep, which is made if need be.

    Args:
        num_parameters: by the runs' names.
    """
    content = [
        {
            "name": run.name, "recipe": run.recipe_path.stem, "values": run.values,
            "folder": os.path.relpath(run.folder, folder), "num_parameters": num_parameters[run.name],
            "seed": run.recipe.seed, "same_but_seed": run.same_but_seed(),
        }
        for run in runs
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / filenames.LISTING, content)


def read_listing(folder: Path) -> list[Listed]:
    """What `write_listing` wrote, in its order.

    Raises:
        ValueError: the file can't be read or is damaged; names it.
    """
    path = folder / filenames.LISTING
    try:
        return [
            Listed(
                name=str(run["name"]), recipe=str(run["recipe"]),
                values={key: str(text) for key, text in run["values"].items()}, folder=folder / run["folder"],
                num_parameters=int(run["num_parameters"]), seed=run.get("seed"),
                same_but_seed=run.get("same_but_seed"),
            )
            for run in json.loads(path.read_text(encoding="utf-8"))
        ]  # fmt: skip
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); the command that made it writes it again") from None
