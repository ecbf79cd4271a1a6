"""`distcxr phantom OUT`: write a folder of synthetic chest X-rays laid out like NIH ChestX-ray14 or another dataset."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from distcxr.cli.options import Seed, Workers

_Out = Annotated[
    Path,
    typer.Argument(metavar="OUT", show_default=False, help="the folder to write; new, empty or of an earlier phantom"),
]
_Images = Annotated[int, typer.Option(metavar="N", help="how many")]
_Size = Annotated[int, typer.Option(metavar="PIXELS", help="width and height")]
_Layout = Annotated[
    Literal["nih", "csv", "folders", "chexpert", "chestmnist"],
    typer.Option(help="the dataset to look like, data.dataset of a recipe"),
]


def run(
    out: _Out,
    images: _Images = 2000,
    size: _Size = 256,
    seed: Seed = 0,
    layout: _Layout = "nih",
    workers: Workers = None,
) -> int:
    """Write synthetic chest X-rays laid out like NIH's, or others'.

    With labels, patients and splits, so that every recipe runs on them; results on them mean nothing for patients.
    """
    from distcxr.phantom.writing import write_phantom

    write_phantom(out, layout=layout, images=images, size=size, seed=seed, workers=workers)
    print(f"{out}: {images} synthetic X-rays of {size} x {size} pixels, seed {seed}")
    return 0
