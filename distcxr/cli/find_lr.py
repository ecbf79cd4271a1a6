"""`distcxr find-lr RECIPE [key=value ...]`: a learning-rate range test."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distcxr.cli.building import Bar
from distcxr.cli.options import Overrides, Recipe, check_writable

if TYPE_CHECKING:
    from distcxr.engine.lr_search import Found

_From = Annotated[float, typer.Option("--from", metavar="LR", help="the first update's rate")]
_To = Annotated[
    float, typer.Option("--to", metavar="LR", help="the last update's rate, if the loss has not diverged before")
]
_Steps = Annotated[int, typer.Option(metavar="N", help="updates", min=10)]
_Out = Annotated[
    Path | None,
    typer.Option(metavar="FILE.csv", show_default=False, help="write rates and losses, and a chart beside: FILE.svg"),
]
_NUM_SHOWN = 12


def run(
    recipe_path: Recipe, overrides: Overrides = None, lowest: _From = 1e-7, highest: _To = 10.0, steps: _Steps = 100,
    out: _Out = None,
) -> int:  # fmt: skip
    """Find a learning rate for a recipe by training briefly.

    The rate rises from update to update, until the loss does. The data, augmentation, batches and precision are the
    recipe's; the network begins as a run would, and is thrown away. The test ends where the loss is above its first and
    four times its lowest. On several GPUs: accelerate launch -m distcxr.cli find-lr ...
    """
    if not 0 < lowest < highest:
        raise ValueError(f"--from {lowest:g} --to {highest:g}: give two rates above 0, the lower one first")
    check_writable(out, ".csv")

    from rich.console import Console

    from distcxr.engine.lr_search import find_lr, rising
    from distcxr.logs import start_logging
    from distcxr.recipe import load_recipe
    from distcxr.runtime import start_runtime

    recipe = load_recipe(recipe_path, overrides or ())
    start_logging(Console(stderr=True))
    runtime = start_runtime(recipe)
    rates = rising(lowest, highest, steps)
    with Bar() as bar:

        def report(done: int, loss: float) -> None:
            if runtime.is_main:
                bar.show("updates", done, steps, f"lr {rates[done - 1]:.2e}  loss {loss:.4f}")

        found = find_lr(recipe, runtime, rates, report)
    if runtime.is_main:
        _show(found, recipe.optim.lr, recipe.optim.name, recipe.train.global_batch_size)
        if out is not None:
            _write(found, out)
    runtime.close()
    return 0


def _show(found: Found, own: float, optimizer: str, batch_size: int) -> None:
    from distcxr.tracking.terminal import table_text

    num = len(found.lrs)
    shown = sorted({round(at * (num - 1) / (_NUM_SHOWN - 1)) for at in range(_NUM_SHOWN)})
    rows = [["update", "lr", "loss", "mean of neighbours"]]
    rows += [
        [str(at + 1), f"{found.lrs[at]:.2e}", f"{found.losses[at]:.4f}", f"{found.smoothed[at]:.4f}"] for at in shown
    ]
    print(table_text(rows, width=None))
    print(f"the loss {'diverged' if found.diverged else 'did not diverge'} up to lr {found.lrs[-1]:.2g}")
    if not found.diverged and found.smoothed[-1] == min(found.smoothed):
        print("it was still falling at the last update: raise --to")
    if found.steepest is None or found.tenth is None:
        print("it never fell: begin lower with --from, or take more --steps")
        return
    print(f"falls fastest at lr {found.steepest:.2g}; a tenth of the rate at its lowest is {found.tenth:.2g}")
    print(
        f"optim.lr={min(found.steepest, found.tenth):.1g} is where to begin, for {optimizer} and a global batch of "
        f"{batch_size}; the recipe has {own:g}"
    )


def _write(found: Found, path: Path) -> None:
    from math import isfinite, log10

    from distcxr.report.blocks import Chart, Part
    from distcxr.report.charts import Dot, Line, chart_file, over_time

    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["step", "lr", "loss", "smoothed"])
        rows.writerows(zip(range(1, len(found.lrs) + 1), found.lrs, found.losses, found.smoothed, strict=True))
    x = [log10(lr) for lr in found.lrs]
    bound = max(found.smoothed)
    losses = [(at, min(loss, bound)) for at, loss in zip(x, found.losses, strict=True) if isfinite(loss)]
    smoothed = list(zip(x, found.smoothed, strict=True))
    read = {"falls fastest": found.steepest, "a tenth of the rate at its lowest": found.tenth}
    named = {name: rate for name, rate in read.items() if rate is not None}
    dots = [Dot(log10(rate), _at(log10(rate), smoothed), 4.5, "ring") for rate in named.values()]
    lines = [Line(losses, "curve thin", "loss"), Line(smoothed, "curve other", "mean of neighbours")]
    drawn = over_time(lines, "learning rate", dots, log_x=True, title="Loss over the learning rate")
    caption = "; ".join(f"{name}, {rate:.2g}" for name, rate in named.items())
    chart = path.with_suffix(".svg")
    drawn_file = chart_file([Chart("Loss", (Part(f"rings: {caption}" if named else "it never fell"),), drawn)])
    chart.write_text(drawn_file, encoding="utf-8")
    print(f"written: {path}, {chart}")


def _at(x: float, points: list[tuple[float, float]]) -> float:
    """The height of the point nearest to x."""
    return min(points, key=lambda point: abs(point[0] - x))[1]
