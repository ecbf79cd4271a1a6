"""`distcxr models [PATTERN]`: the networks that `model.name` can be."""

from __future__ import annotations

from typing import Annotated

import typer

_MOST_COUNTED = 40

_Pattern = Annotated[
    str, typer.Argument(metavar="PATTERN", show_default=False, help="part of a name, or a pattern: 'swin*base*'")
]


def run(pattern: _Pattern = "*") -> int:
    """List networks of torchvision and timm, and their weights.

    A line for each name that model.name takes, with model.library, parameters, the size of the images that its weights
    were trained with and what model.weights=imagenet loads; then one for each name of X-ray weights that model.weights
    takes for these networks, with licence and which of NIH ChestX-ray14's images the pretraining saw.
    """
    from distcxr.models.catalogue import find_networks
    from distcxr.models.foundation import FOUNDATIONS
    from distcxr.tracking.terminal import table_text

    found = find_networks(pattern, most_counted=_MOST_COUNTED)
    rows = [("model.name", "model.library", "parameters", "MB", "px", "imagenet")]
    for one in found:
        num = one.num_parameters
        count, size = ("-", "-") if num is None else (f"{num:,}", f"{4 * num / 1e6:,.0f}")
        rows.append((one.name, one.library, count, size, str(one.side or "-"), one.imagenet or "-"))
    print(table_text(rows, width=None))
    if any(one.num_parameters is None for one in found):
        print(f"- in place of parameters: not counted, as more than {_MOST_COUNTED} of timm's are listed")
    names = [name for one in found for name in one.xray]
    if names:
        rows = [("model.weights", "what", "model.name", "px", "licence", "NIH's images in pretraining")]
        weights = [FOUNDATIONS[name] for name in names]
        rows += [(n, w.title, w.network, str(w.side), w.licence, w.nih) for n, w in zip(names, weights, strict=True)]
        print(f"\n{table_text(rows, width=None)}")
        print("Where they come from: docs/foundation.md; those that saw NIH's may have seen its official test list")
    return 0
