"""`distcxr import SRC DST`: weights that somebody saved, as a safetensors file for `model.weights`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_Source = Annotated[Path, typer.Argument(metavar="SRC", show_default=False, help="the PyTorch file")]
_Destination = Annotated[
    Path, typer.Argument(metavar="DST", show_default=False, help="the file to write, NAME.safetensors")
]
_Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="unpickle it: this runs whatever code the file holds, in a process of its own but with your rights "
        "to your files and network. Only for files of people you trust",
    ),
]


def run(source: _Source, destination: _Destination, trust: _Trust = False) -> int:
    """Turn others' weights into a file that model.weights takes.

    Takes the weights out of a PyTorch file (.pth, .pt, .tar, .ckpt) and writes them as safetensors, by the names they
    have. State dicts need no import: model.weights reads them as they are. Whole pickled models (torchxrayvision's
    files, torch.save(model)) do, and --trust with it.
    """
    from distcxr.models.unpickle import import_weights

    num_tensors = import_weights(source, destination, trust=trust)
    print(f"{num_tensors:,} tensors: {destination}; use it with model.weights={destination}")
    return 0
