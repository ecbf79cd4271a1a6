"""`distcxr probe RECIPE|RUN [key=value ...]`: a linear head on a network that stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distcxr.cli.options import complete_recipe, recipe_of

_Network = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE|RUN", show_default=False, autocompletion=complete_recipe,
        help="a recipe, to probe its model.weights; or a run folder or checkpoint, for its network and its images",
    ),
]  # fmt: skip
_Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="key=value", help="for example data.root=/data/nih output=runs/probe", show_default=False),
]
_Penalties = Annotated[
    list[float] | None,
    typer.Option(
        "--l2", metavar="STRENGTH", show_default=False,
        help="strengths of regularisation to try: --l2 1e-4 1e-3 1e-2 (default: 13 from 1e-6 to 1)",
    ),
]  # fmt: skip


def run(network: _Network, overrides: _Overrides = None, l2: _Penalties = None) -> int:
    """Fit a linear head on a pretrained network that stays as it is.

    The network makes features of every image once; then a logistic regression is fitted for each strength of
    regularisation, and validation chooses. What it leaves is a run folder, for test, predict, score, report and export.
    On several GPUs: accelerate launch -m distcxr.cli probe ...
    """
    penalties = l2 or []
    if wrong := [value for value in penalties if not 0 < value < float("inf")]:
        raise ValueError(f"--l2 {wrong[0]:g}: a strength is a number above 0")

    from rich.console import Console

    from distcxr.engine.linear_probe import PENALTIES, as_probe, probe
    from distcxr.logs import start_logging
    from distcxr.recipe import load_recipe
    from distcxr.recipe.shipped import is_recipe
    from distcxr.runfolder.layout import find_checkpoint, run_folder_of
    from distcxr.runtime import start_runtime

    path, name, given = network, f"{network.stem}-probe", list(overrides or ())
    if network.exists() and not is_recipe(str(network)):
        checkpoint = find_checkpoint(network)
        path, _ = recipe_of(checkpoint, [])
        folder = run_folder_of(checkpoint)
        assert folder is not None, "it has a recipe"
        name = f"{folder.absolute().parent.name}-probe"
        own = [f"model.weights={checkpoint}", "model.new_head=true", "augment.normalize=weights"]
        given = [*own, "model.lora=null", "model.head={kind: linear, metadata: []}", "output=null", *given]
    recipe, console = as_probe(load_recipe(path, given)), Console(stderr=True)
    start_logging(console)
    runtime = start_runtime(recipe)
    probe(recipe, name, penalties or PENALTIES, runtime, console)
    runtime.close()
    return 0
