"""`distcxr models [PATTERN]`: the networks that `model.name` can be."""

from __future__ import annotations

from typing import Annotated

import typer

_MOST_COUNTED = 40

_Pattern = Annotated[
    str, typer.Argument(metavar="[PATTERN]", show_default=False, help="part of a name, or a pattern: 'swin*base*'")
]


def run(pattern: _Pattern = "*") -> int:
    """List the networks of torchvision and timm, and which weights there are.

    A line for each name that model.name takes, with model.library, parameters, the size of the images that its weights
    were trained with, what model.weights=imagenet loads, and files of others that were trained on NIH's images.
    """
    from distcxr.models.catalogue import find_networks
    from distcxr.tracking.terminal import table_text

    found = find_networks(pattern, most_counted=_MOST_COUNTED)
    with_nih = any(one.nih for one in found)
    rows = [("model.name", "model.library", "parameters", "MB", "px", "imagenet", *(["of NIH's images"] * with_nih))]
    for one in found:
        num = one.num_parameters
        count, size = ("-", "-") if num is None else (f"{num:,}", f"{4 * num / 1e6:,.0f}")
        cells = (one.name, one.library, count, size, str(one.side or "-"), one.imagenet or "-")
        rows.append((*cells, *([one.nih or "-"] * with_nih)))
    print(table_text(rows, width=None))
    if any(one.num_parameters is None for one in found):
        print(f"- in place of parameters: not counted, as more than {_MOST_COUNTED} of timm's are listed")
    if with_nih:
        print("Weights of NIH's images: model.weights=FILE; they may have seen patients of the official test list")
    return 0
