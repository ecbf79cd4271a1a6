"""Users' own parts, `module:function`: what each is called with, where its source is, and how it is imported.

    key: module:function ──► source file ──► SHA-256, compared with the recipe's `sources` ──► import ──► `part(name)`

A part is code of the machine that runs it: of the working directory, or installed. What a run names is imported only if
its source is what the run recorded, and never out of a run folder. Nothing is imported to find that out.

Shapes: B batch, C findings, T side of the network's input, K random numbers.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from distcxr.runfolder import filenames
from distcxr.runfolder.layout import checkpoints_of

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

ALLOW_VARIABLE = "DISTCXR_CHANGED_SOURCE"
"""In the environment, with the value `allow`: run a source that has changed since the run, with a warning."""
HOW_TO_ALLOW = f"Restore the file, or set {ALLOW_VARIABLE}=allow in the environment to run what is there"
_SHOWN_DIGITS = 12


class MakeNetwork(Protocol):
    """`model.name`, called by keyword: a network, float32 [B, in_chans, T, T] to float logits [B, num_classes]."""

    def __call__(self, *, num_classes: int, in_chans: int, image_size: int) -> nn.Module: ...


class ElementLosses(Protocol):
    """`loss.function`: float losses [B, C] of float32 logits [B, C] and targets [B, C], 0 to 1."""

    def __call__(self, logits_BC: Tensor, targets_BC: Tensor, /) -> Tensor: ...


class ChangeImages(Protocol):
    """`augment.function`: changed images of float32 grey [B, 1, T, T], 0 to 255, and random numbers [B, K], 0 to 1."""

    def __call__(self, images: Tensor, random_BK: Tensor, /) -> Tensor: ...


class MakeTable(Protocol):
    """`data.function`: a table with a row per image, of `data.root`; its columns are those of `data.dataset: csv`."""

    def __call__(self, root: Path, /) -> pd.DataFrame: ...


class ReadImage(Protocol):
    """`data.reader`: grey pixels, uint8 [H, W], of a file; ValueError or OSError for one that can't be read."""

    def __call__(self, file: str, /) -> NDArray[np.uint8]: ...


CONTRACTS = {
    "model.name": "it is called as function(num_classes=14, in_chans=1, image_size=224) and returns a torch.nn.Module "
    "that makes float logits [B, num_classes] of float32 images [B, in_chans, image_size, image_size]",
    "loss.function": "it is called as function(logits, targets), both float32 [B, C], and returns the loss of every "
    "label, float [B, C], which is neither summed nor averaged",
    "augment.function": "it is called as function(images, random), float32 [B, 1, T, T] of 0 to 255 and [B, 8] of 0 to "
    "1, and returns images of that shape, each a function of its own image and random numbers alone",
    "data.function": "it is called as function(root), a pathlib.Path, and returns a pandas.DataFrame with a row for "
    "each image and the columns that data.columns names",
    "data.reader": "it is called as function(file), a str, and returns the image's grey pixels, a numpy array uint8 "
    "[H, W], or raises ValueError or OSError if the file can't be read",
}
"""What is expected of a part, by key; every error of one that does otherwise ends with it."""


class PartError(ValueError):
    """An own part that can't be found, or does not keep to its contract; the message names its key."""


@dataclass(frozen=True)
class _Opened:
    function: Callable[..., Any]
    key: str
    file: Path
    sha256: str


_opened: dict[str, _Opened] = {}
"""The parts of this process by name."""


def open_parts(named: Mapping[str, str], sources: Mapping[str, str], *, only: str = "") -> dict[str, str]:
    """Find parts, compare their sources, and import them; `part` has them from then on.

    Args:
        named: name by key, as `Recipe.own_functions` gives them.
        sources: SHA-256 by key that is expected; of a key without, whatever is there is taken.
        only: what the keys begin with; others are left alone.

    Returns:
        SHA-256 of the sources by key.

    Raises:
        PartError: a module or function that is not there or can't be called so, or another source than expected.
    """
    found = {}
    for key, name in named.items():
        if not key.startswith(only):
            continue
        file = _source_of(key, name, of_a_run=key in sources and name not in _opened)
        found[key] = sha256 = _sha256_of(file)
        if changed := changed_source(key, name, sources.get(key, sha256), sha256):
            if not is_change_allowed():
                raise PartError(f"{changed}. {HOW_TO_ALLOW}")
            logger.warning(f"{changed}; {ALLOW_VARIABLE}=allow runs it")
        if name not in _opened:
            # A recipe that has `sources` was written by a run, perhaps somebody else's.
            level = logging.WARNING if key in sources else logging.INFO
            logger.log(level, f"{key}={name}: running the code of {file} (SHA-256 {sha256[:_SHOWN_DIGITS]})")
            _opened[name] = _import(key, name, file, sha256)
        if _opened[name].sha256 != sha256:
            raise PartError(f"{key}={name}: {file} has changed since it was imported: start Python anew")
        _check_signature(key, name, part(name))
    return found


def check_recorded(named: Mapping[str, str], sources: Mapping[str, str], where: str) -> None:
    """PartError if a recipe that a run has left, in the file `where`, names parts without their sources: a run writes
    these, and without them it may name any code of this machine."""
    if missing := [f"{key}={name}" for key, name in named.items() if key not in sources]:
        raise PartError(
            f"{where} names {', '.join(missing)} without the SHA-256 of its source, which every run records: it is not "
            "run. To use it, give a recipe of your own"
        )


def hash_sources(named: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 of the sources of parts by key, without importing them; PartError as `open_parts`."""
    return {key: _sha256_of(_source_of(key, name)) for key, name in named.items()}


def part(name: str) -> Callable[..., Any]:
    """The function of a part that `open_parts` has opened in this process."""
    return _opened[name].function


def changed_source(key: str, name: str, before: str, now: str) -> str:
    """A sentence if the source of a part is not what it was."""
    if before == now:
        return ""
    digests = f"SHA-256 {before[:_SHOWN_DIGITS]} in the run, {now[:_SHOWN_DIGITS]} now"
    return f"{key}={name}: {_source_of(key, name)} is not the source that the run was made with ({digests})"


def is_change_allowed() -> bool:
    """Whether the environment allows sources that have changed."""
    return os.environ.get(ALLOW_VARIABLE) == "allow"


def broken(key: str, name: str, what: str) -> PartError:
    """The error of a part that does not keep to its contract; `what` continues `key=name`."""
    return PartError(f"{key}={name} {what}; {CONTRACTS[_kind(key)]} (docs/own_parts.md)")


def blamed(error: BaseException) -> str:
    """A sentence that names the part in which an error was raised; empty if it was in none."""
    seen: BaseException | None = error
    while seen is not None:
        frames = traceback.extract_tb(seen.__traceback__)
        for frame in reversed(frames):
            if named := _parts_in(frame.filename, {one.name for one in frames if one.filename == frame.filename}):
                return _in_part(named, f"{frame.filename}, line {frame.lineno}")
        seen = seen.__cause__
    # Of a worker process there is the text of the traceback, which `note` has marked.
    return next((line for line in str(error).splitlines() if line.startswith(_MARK)), "")


def _parts_in(file: str, called: set[str]) -> str:
    """Keys and names of a file's parts: of those among the functions `called`, or of all where none is."""
    inside = {name: f"{one.key}={name}" for name, one in _opened.items() if str(one.file) == file}
    found = [named for name, named in inside.items() if name.partition(":")[2] in called]
    return " or ".join(found or inside.values()) or _importing.get(file, "")


def note(error: BaseException, key: str, name: str) -> None:
    """Mark an error of a worker process, which arrives elsewhere as text, for `blamed`."""
    error.add_note(_in_part(f"{key}={name}", "see the traceback"))


_MARK = "the error is in your own part"
_importing: dict[str, str] = {}
"""What is being imported: key and name by file."""


def _in_part(named: str, where: str) -> str:
    return f"{_MARK} {named} ({where})"


def _kind(key: str) -> str:
    """The key without the stage that it may belong to."""
    return ".".join(key.split(".")[-2:])


def _source_of(key: str, name: str, *, of_a_run: bool = False) -> Path:
    """The file of a part's module, which is not imported.

    Args:
        of_a_run: whether a run names the part, and not the user.

    Raises PartError: there is none, or a run names it that may have brought it along.
    """
    module = name.partition(":")[0]
    here = Path.cwd()
    trusted = not (of_a_run and _run_folder_with(here / module))
    if trusted and sys.path[:1] not in ([str(here)], [""]):
        sys.path.insert(0, str(here))  # as `python -m` does; workers inherit it
    importlib.invalidate_caches()
    spec, path = None, None
    parts = module.split(".")
    for depth in range(len(parts)):
        spec = _spec(".".join(parts[: depth + 1]), path)
        if spec is None:
            missing = ".".join(parts[: depth + 1])
            searched = f"in the working directory, {here}," if trusted else f"outside of this run folder, {here},"
            raise PartError(
                f"{key}={name}: there is no module {missing!r} {searched} or installed. Run the command where "
                f"{parts[0]}.py is, or install it"
            )
        path = spec.submodule_search_locations
    assert spec is not None
    if not spec.has_location or spec.origin is None:
        raise PartError(f"{key}={name}: the module {module!r} has no source file: name one with a file of its own")
    file = Path(spec.origin)
    if of_a_run and (run := _run_folder_with(file) or _run_folder_with(file.resolve())):
        raise PartError(
            f"{key}={name}: {file} is in the run folder {run}, and what a run folder brings along is never run: if you "
            "trust it, copy it to another folder and run the command there"
        )
    return file


def _sha256_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _spec(module: str, path: Any) -> ModuleSpec | None:
    """As `importlib.util.find_spec`, which would import the packages that a module is in."""
    for finder in sys.meta_path:
        spec = finder.find_spec(module, path)
        if spec is not None:
            return spec
    return None


def _run_folder_with(file: Path) -> Path | None:
    """The run folder that a file is in."""
    folders = (folder for folder in file.parents if (folder / filenames.RECIPE).is_file())
    return next((folder for folder in folders if checkpoints_of(folder).is_dir()), None)


def imported(name: str) -> Callable[..., Any]:
    """The function of a part in a worker process, of which the process that started it has opened the part."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]


def _import(key: str, name: str, file: Path, sha256: str) -> _Opened:
    module_name, _, function_name = name.partition(":")
    _importing[str(file)] = f"{key}={name}"
    try:
        module = importlib.import_module(module_name)
    except SyntaxError as error:  # has no frame in the file
        raise PartError(f"{key}={name}: {error.filename}, line {error.lineno}: {error.msg}") from error
    del _importing[str(file)]
    there = getattr(module, "__file__", None)
    if there is None or Path(there) != file:
        raise PartError(f"{key}={name}: {module_name!r} is already {there or 'another module'}: rename {file}")
    function = getattr(module, function_name, None)
    if function is None:
        public = [word for word, value in vars(module).items() if callable(value) and not word.startswith("_")]
        raise PartError(f"{key}={name}: {file} has no {function_name!r}; it has {', '.join(public) or 'no function'}")
    if not callable(function):
        raise broken(key, name, f"is {type(function).__name__}, which can't be called")
    home = getattr(function, "__module__", None)
    if home != module_name and getattr(sys.modules.get(str(home)), function_name, None) is function:
        raise PartError(f"{key}={name} is written in {home}: name {home}:{function_name}, the source to be compared")
    return _Opened(function, key, file, sha256)


def _check_signature(key: str, name: str, function: Callable[..., Any]) -> None:
    arguments: tuple[Any, ...] = ("",) * (2 if _kind(key) in ("loss.function", "augment.function") else 1)
    named = {}
    if _kind(key) == "model.name":
        arguments, named = (), dict.fromkeys(("num_classes", "in_chans", "image_size"), 1)
    try:
        inspect.signature(function).bind(*arguments, **named)
    except ValueError:  # compiled, without a signature
        pass
    except TypeError as error:
        raise broken(key, name, f"can't be called so: {error}") from None
