"""Training speed of a recipe's network by precision and batch, on pixels that are already on the device.

    python benchmarks/train_step.py recipes/densenet121.yaml --batches 64 128 256 --json results.json

This is the img/s that a loader has to deliver so that the device never waits. One process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from rich.console import Console

from distcxr.data.phantom.dataset import write_phantom
from distcxr.engine.build import build_run
from distcxr.engine.fit import updates
from distcxr.engine.step import train_step
from distcxr.recipe import load_recipe
from distcxr.runtime import device_name, start_runtime


def main() -> None:
    """Measure every combination and print a markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp16", "no"])
    parser.add_argument("--steps", type=int, default=20, help="steps of a window (default %(default)s)")
    parser.add_argument("--windows", type=int, default=5, help="the median window counts (default %(default)s)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_intermixed_args()
    on_gpu = torch.cuda.is_available()
    device = device_name(torch.device("cuda" if on_gpu else "cpu"))
    rows = []
    print(
        f"{args.recipe}, {device}, torch {torch.__version__}, median of {args.windows} windows of {args.steps} steps\n"
    )
    print("| precision | batch | img/s | memory MB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        write_phantom(Path(place) / "data", images=max(args.batches) * 2 + 400, size=64)
        for precision in args.precisions:
            if precision == "fp16" and not on_gpu:
                continue
            for batch in args.batches:
                row = {"recipe": str(args.recipe), "device": device, "precision": precision, "batch": batch}
                try:
                    row |= measure(args, Path(place), precision, batch)
                except torch.OutOfMemoryError:
                    row["img_per_s"] = None
                rows.append(row)
                speed = "out of memory" if row["img_per_s"] is None else f"{row['img_per_s']:.0f}"
                print(f"| {precision} | {batch} | {speed} | {row.get('memory_mb', '')} |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


def measure(args: argparse.Namespace, place: Path, precision: str, batch: int) -> dict[str, float]:
    """Median img/s of whole optimiser updates over one resident batch."""
    data = (f"data.root={place / 'data'}", "data.loader=torch", "data.num_workers=0", "model.weights=none")
    size = (
        f"train.global_batch_size={batch}",
        f"train.precision={precision}",
        f"output={place / precision / str(batch)}",
    )
    recipe = load_recipe(args.recipe, [*args.overrides, *data, *size, "logging.images=0"])
    AcceleratorState._reset_state(reset_partial_state=False)
    run = build_run(recipe, "benchmark", start_runtime(recipe), Console(quiet=True))
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    micro_batches = next(updates(run))
    speeds = []
    for _ in range(args.windows + 1):
        started = time.perf_counter()
        for _ in range(args.steps):
            train_step(run, micro_batches)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        speeds.append(args.steps * batch / (time.perf_counter() - started))
    figures = {"img_per_s": round(statistics.median(speeds[1:]), 1)}  # the first window warms up
    if torch.cuda.is_available():
        figures["memory_mb"] = round(torch.cuda.max_memory_allocated() / 1e6)
    return figures


if __name__ == "__main__":
    main()
