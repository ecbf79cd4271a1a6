"""Converts a PyTorch file to safetensors, by unpickling it only if it needs that and the user trusts it.

Unpickling runs whatever code the file names, with the rights of its process. `import_weights` starts a process for it
(`python -m distcxr.models.unpickle SRC DST`), so that the code does not see the caller's memory; it has the caller's
rights, environment and files.

Classes that are not installed (torchxrayvision, somebody's `model.py`) are replaced by empty modules: the weights are
read without them.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from distcxr.models.importers import XRAYVISION, NeedsTrust, find_state, read_weights
from distcxr.runfolder.whole import being_written


class _Placeholder(nn.Module):
    """In place of a class that can't be imported; takes whatever state it is given."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            super().__setstate__(state)  # type: ignore[no-untyped-call]


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError):
            return type(name, (_Placeholder,), {"__module__": module})


def import_weights(source: Path, destination: Path, *, trust: bool) -> int:
    """Write the weights in `source`, by the names they have there, to the safetensors file `destination`.

    Args:
        trust: unpickle it, in a process of its own, if it holds more than tensors and plain values.

    Returns how many tensors there are.

    Raises ValueError: a file that is not there, is damaged or holds no weights; a destination that is not the name of a
    safetensors file; without `trust`, a file that would have to be unpickled.
    """
    if destination.suffix != ".safetensors" or not destination.absolute().parent.is_dir():
        raise ValueError(f"{destination}: name a file NAME.safetensors in a folder that is there")
    try:
        file = read_weights(source)
        _write(file.state, destination, layout=file.layout)
    except NeedsTrust:
        if not trust:
            raise
        command = [sys.executable, "-m", __name__, str(source.absolute()), str(destination.absolute())]
        child = subprocess.run(command, capture_output=True, text=True, check=False)
        if child.returncode:
            lines = child.stderr.strip().splitlines() or [f"exit code {child.returncode}"]
            raise ValueError(f"{source}: it could not be unpickled: {lines[-1]}") from None
    with safe_open(destination, framework="pt") as written:
        return len(written.keys())


def unpickle(source: Path, destination: Path) -> None:
    """Write the weights found in `source` to `destination`. Runs the file's code, here.

    Raises ValueError: there are none.
    """
    reader: Any = ModuleType("pickle")
    reader.Unpickler, reader.load = _Unpickler, lambda file, **options: _Unpickler(file, **options).load()
    loaded = torch.load(source, map_location="cpu", weights_only=False, pickle_module=reader)
    state = find_state(loaded)
    if not state:
        raise ValueError(f"no weights in it, but a {type(loaded).__name__}")
    _write(state, destination, layout=XRAYVISION if _is_xrayvision(loaded) else "")


def _write(state: dict[str, torch.Tensor], destination: Path, *, layout: str = "") -> None:
    """Write a state dict as safetensors, whole or not at all; `layout` as in `importers.WeightsFile`."""
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    with being_written(destination) as part:
        save_file(weights, part, metadata={"format": "pt"} | ({"layout": layout} if layout else {}))


def _is_xrayvision(loaded: Any) -> bool:
    """By the class of the model, wherever in a checkpoint that is."""
    held = loaded.values() if isinstance(loaded, dict) else [loaded]
    parts = [part for one in held if isinstance(one, nn.Module) for part in one.modules()]
    return any(type(part).__module__.partition(".")[0] == XRAYVISION for part in parts)


if __name__ == "__main__":
    try:
        unpickle(Path(sys.argv[1]), Path(sys.argv[2]))
    except Exception as error:  # anything can go wrong in somebody else's code: the caller shows this one line
        sys.exit(f"{type(error).__name__}: {error}")
