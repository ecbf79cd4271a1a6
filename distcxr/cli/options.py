"""Arguments and options that several verbs have, each defined once: one name and one meaning everywhere."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand


class Split(StrEnum):
    """A part of the images."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


def complete_recipe(incomplete: str) -> list[str]:
    """Recipes for the shell's completion: the names that come with distcxr, and YAML files and folders here."""
    from distcxr.recipe.shipped import recipe_names

    files = [path for path in Path().glob(f"{incomplete}*") if path.is_dir() or path.suffix in (".yaml", ".yml")]
    here = [f"{path}/" if path.is_dir() else str(path) for path in files]
    return [name for name in (*recipe_names(), *sorted(here)) if name.startswith(incomplete)]


Recipe = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE", autocompletion=complete_recipe, show_default=False,
        help="YAML file, or a name: recipes/densenet121.yaml, densenet121",
    ),
]  # fmt: skip
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="key=value", help="for example train.epochs=3 data.root=/data/nih", show_default=False),
]
Checkpoint = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        show_default=False,
        help="run folder, for its best weights: runs/NAME/TIME; or a checkpoint: runs/NAME/TIME/checkpoints/best",
    ),
]
CheckpointsRecipe = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RECIPE|key=value", show_default=False, autocompletion=complete_recipe,
        help="a recipe that names the images (default: that of the run), and keys that differ",
    ),
]  # fmt: skip
Workers = Annotated[
    int | None,
    typer.Option(metavar="N", show_default=False, help="images at a time, each on a core (default: one per core)"),
]
Processes = Annotated[
    int | None,
    typer.Option(metavar="N", show_default=False, help="processes of a run (default: one per GPU, two on a CPU)"),
]
Json = Annotated[Path | None, typer.Option(metavar="FILE", show_default=False, help="write everything as JSON")]
Seed = Annotated[int, typer.Option(metavar="N", help="of random numbers")]
Force = Annotated[bool, typer.Option("--force", help="replace files that are there")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="check everything, show what would run and stop")]


class SeveralWords(TyperCommand):
    """A verb with options that take several words: `--split train val` is read as `--split train --split val`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each of its words."""
        names = {name for parameter in self.params if getattr(parameter, "multiple", False) for name in parameter.opts}
        return super().parse_args(ctx, repeat_options(args, names))


def repeat_options(args: list[str], names: set[Any]) -> list[str]:
    """The words of a command, with an option of `names` before every one of the words that follow it."""
    written: list[str] = []
    option = None
    for word in args:
        if word.startswith("-"):
            option = word if word in names else None
            if option:
                continue
        written += [option, word] if option else [word]
    return written if option is None or args[-1] != option else [*written, option]


def fill_in(args: list[str], option: str, left_out: str, is_value: Callable[[str], bool]) -> list[str]:
    """The words of a command, with `left_out` for an option's value where the word that follows it is none."""
    return [
        f"{word}={left_out}" if word == option and not is_value(following) else word
        for word, following in zip(args, [*args, ""][1:], strict=True)
    ]


def check_writable(path: Path | None, *endings: str) -> None:
    """Whether the file could be written later, and its name has one of the endings; ValueError now, not after the work.

    A file that a user names is replaced by the new one once that is whole. Only `export`, which writes files beside the
    one that is named, asks for --force.
    """
    if path is None:
        return
    if endings and path.suffix not in endings:
        raise ValueError(f"{path}: name a file that ends in {' or '.join(endings)}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of a file")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path} can't be written: the folder {path.parent} is not there")


def recipe_of(checkpoint: Path, words: list[str]) -> tuple[Path, list[str]]:
    """The recipe among `words`, or the one in the checkpoint's run folder; and the other words, which are overrides.

    Raises:
        ValueError: several recipes, or none and no run folder.
    """
    from distcxr.own_parts import check_recorded
    from distcxr.recipe import load_recipe
    from distcxr.runfolder import filenames
    from distcxr.runfolder.layout import run_folder_of

    named = [word for word in words if "=" not in word or Path(word).is_file()]
    overrides = [word for word in words if word not in named]
    if len(named) > 1:
        raise ValueError(f"one recipe at a time, not {', '.join(named)}")
    if named:
        return Path(named[0]), overrides
    folder = run_folder_of(checkpoint)
    if folder is None or not (kept := folder / filenames.RECIPE).is_file():
        raise ValueError(f"{checkpoint} is not in a run folder that has a {filenames.RECIPE}: name a recipe, too")
    recipe, given = load_recipe(kept, overrides), {override.partition("=")[0] for override in overrides}
    functions = {key: name for key, name in recipe.own_functions().items() if key not in given}
    check_recorded(functions, recipe.sources, str(kept))
    return kept, overrides
