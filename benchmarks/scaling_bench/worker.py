"""One rank of a world: builds the run as launch.py does, then measures its step and its all-reduces.

    accelerate launch ... benchmarks/scaling_bench/worker.py recipes/densenet121.yaml --batch 64 --json rows.json

`benchmarks/scaling.py` starts it; start it by hand to measure several nodes, as any training over them is started, with
`data.root=` and `output=` on a disk that they share.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from distcxr.data.batch import Batch
from distcxr.device import device_name
from distcxr.engine.build import build_run
from distcxr.engine.fit import updates
from distcxr.engine.state import Run
from distcxr.engine.step import train_step
from distcxr.recipe import load_recipe
from distcxr.runtime import start_runtime
from scaling_bench.table import PROGRESS

Row = dict[str, Any]
Mark = Any  # a CUDA event, or seconds


class Clock:
    """Moments on the device: events on a GPU, which cost no wait; the host's clock on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"

    def mark(self) -> Mark:
        """Now, as the device sees it."""
        if not self._gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self) -> None:
        """Until the device has nothing left to do."""
        if self._gpu:
            torch.cuda.synchronize()

    def between(self, start: Mark, end: Mark) -> float:
        """Seconds; after `wait`."""
        return start.elapsed_time(end) / 1e3 if self._gpu else end - start


def main() -> None:
    """Measure this world and have rank 0 write its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--batch", type=int, required=True, help="images of a rank; all images in strong scaling")
    parser.add_argument("--batches", type=int, nargs="*", default=[], help="further batches, of a single rank")
    parser.add_argument("--steps", type=int, default=10, help="of a window (default %(default)s)")
    parser.add_argument("--windows", type=int, default=5, help="the median counts (default %(default)s)")
    parser.add_argument("--threads", type=int, help="of a rank on a CPU (default: as in training)")
    parser.add_argument("--largest-mb", type=int, default=64, help="message of the all-reduces (default %(default)s)")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_intermixed_args()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    size = f"train.global_batch_size={args.batch * world}"
    recipe = load_recipe(args.recipe, [*args.overrides, size, "train.per_device_batch_size=null", "logging.images=0"])
    runtime = start_runtime(recipe)
    if args.threads and runtime.device.type == "cpu":
        torch.set_num_threads(args.threads)
    run = build_run(recipe, "scaling", runtime, Console(quiet=True))
    whole = next(updates(run))[0]
    sizes = {"weak": args.batch}
    if world > 1 and args.batch >= world:
        sizes["strong"] = args.batch // world
    sizes |= {f"batch {batch}": batch for batch in args.batches}
    data_s = measure_data(run, args.steps * args.windows)
    common = {
        "kind": "step", "ranks": world, "nodes": world // runtime.local_world_size, "recipe": str(args.recipe),
        "device": device_name(runtime.device), "backend": runtime.backend, "precision": recipe.train.precision,
        "bucket_mb": recipe.train.bucket_mb, "compressed": recipe.train.compress_gradients != "none",
        "devices": _devices(runtime.device), "on_gpu": runtime.device.type == "cuda", "data_s": data_s,
        "buffer_bytes": sum(buffer.nbytes for buffer in run.setup.module.buffers()),
    }  # fmt: skip
    rows = []
    for mode, batch in sizes.items():
        rows.append(common | {"mode": mode, "batch": batch} | measure_step(run, first(whole, batch), args))
    if world > 1:
        exchange_s, buckets = measure_exchange(run)
        rows = [row | {"exchange_s": exchange_s, "bucket_bytes": buckets} for row in rows]
        rows += measure_all_reduce(run, args.largest_mb * 2**20, common)
    if runtime.is_main:
        args.json.write_text(json.dumps(rows))
    run.setup.close()
    del run  # DDP must be gone before the process group is
    runtime.close()


def _devices(device: torch.device) -> int:
    """Ranks that this node has devices for: GPUs, or cores by the threads of a rank."""
    if device.type == "cuda":
        return torch.cuda.device_count()
    return max(1, len(os.sched_getaffinity(0)) // torch.get_num_threads())


def first(batch: Batch, num: int) -> Batch:
    """The batch's first `num` images."""
    names = ("pixels", "targets", "mask", "sample_id", "augment", "metadata")
    return replace(batch, **{name: getattr(batch, name)[:num] for name in names})


def measure_data(run: Run, num_steps: int) -> float:
    """Seconds a step of real training waits for its images, when the device has done the step before.

    An epoch's first step, for which loaders start, is left out. Work of the host that a GPU's queue would hide counts.
    """
    clock, waited_s = Clock(run.setup.runtime.device), list[float]()
    while len(waited_s) < num_steps:
        run.steps.start_window()
        before, seen = 0.0, 0
        for seen, micro_batches in enumerate(updates(run), start=1):
            if seen > 1:
                waited_s.append(run.steps.data_s - before)
            before = run.steps.data_s
            train_step(run, micro_batches)
            clock.wait()
            if len(waited_s) >= num_steps:
                break
        if seen < 2:
            return 0.0
        run.state.epoch += 1
    return statistics.fmean(waited_s)


def measure_step(run: Run, batch: Batch, args: argparse.Namespace) -> Row:
    """Where the time of a step over a batch that is on the device goes, with the exchange of gradients and without."""
    device, accelerator, model = run.setup.runtime.device, run.setup.runtime.accelerator, run.training.model
    clock = Clock(device)
    windows: dict[str, list[float]] = {
        name: [] for name in ("step_s", "alone_s", "forward_s", "backward_s", "update_s")
    }
    single: list[float] = []
    with marked_backward(run, clock) as marks:
        for window in range(args.windows + 1):  # the first warms up
            for name in ("step_s", "alone_s"):
                run.setup.runtime.wait_for_all()
                marks.clear()
                with accelerator.no_sync(model) if name == "alone_s" else nullcontext():
                    edges = [clock.mark()]
                    for _ in range(args.steps):
                        train_step(run, [batch])
                        edges.append(clock.mark())
                clock.wait()
                if not window:
                    continue
                windows[name].append(clock.between(edges[0], edges[-1]) / args.steps)
                if name == "step_s" and run.setup.runtime.is_main:
                    so_far = f"batch {len(batch)}, window {window} of {args.windows}: {windows[name][-1]:.3g} s a step"
                    print(PROGRESS, so_far, file=sys.stderr, flush=True)
                if name == "alone_s":
                    starts, ends = marks[::2], marks[1::2]
                    for part, begin, end in (
                        ("forward_s", edges, starts), ("backward_s", starts, ends), ("update_s", ends, edges[1:])
                    ):  # fmt: skip
                        windows[part].append(statistics.fmean(map(clock.between, begin, end)))
                    single += map(clock.between, edges, edges[1:])
    gradients = measure_gradients(run, batch, clock)
    found = [statistics.median(seconds) for seconds in windows.values()] + [_deviation(single)]
    ranks = mean_of_ranks(run, found)
    return dict(zip([*windows, "deviation_s"], ranks, strict=True)) | {
        "gradients": gradients, "gradient_bytes": sum(num_bytes for _, num_bytes in gradients),
    }  # fmt: skip


@contextmanager
def marked_backward(run: Run, clock: Clock) -> Iterator[list[Mark]]:
    """Have every backward pass leave a mark where it begins and one where it ends, its exchange included."""
    accelerator, marks = run.setup.runtime.accelerator, []
    plain = accelerator.backward

    def backward(loss: Tensor, **kwargs: Any) -> None:
        marks.append(clock.mark())
        plain(loss, **kwargs)
        marks.append(clock.mark())

    accelerator.backward = backward
    try:
        yield marks
    finally:
        accelerator.backward = plain


def measure_gradients(run: Run, batch: Batch, clock: Clock) -> list[tuple[float, int]]:
    """Of each gradient in the order they are made: how much of the backward pass is over then, and its bytes."""
    made: list[tuple[Mark, int]] = []
    hooks = [
        parameter.register_post_accumulate_grad_hook(lambda own: made.append((clock.mark(), own.nbytes)))
        for parameter in run.setup.module.parameters()
        if parameter.requires_grad
    ]
    with marked_backward(run, clock) as marks, run.setup.runtime.accelerator.no_sync(run.training.model):
        train_step(run, [batch])
    clock.wait()
    for hook in hooks:
        hook.remove()
    whole = clock.between(*marks)
    return [(min(1.0, clock.between(marks[0], moment) / whole), num_bytes) for moment, num_bytes in made]


def measure_all_reduce(run: Run, largest: int, common: Row) -> list[Row]:
    """Seconds of an all-reduce by its bytes, with nothing beside it."""
    device, clock, rows = run.setup.runtime.device, Clock(run.setup.runtime.device), []
    num_bytes = 1024
    while num_bytes <= largest:
        message = torch.zeros(num_bytes // 4, device=device)
        times = 20 if num_bytes <= 2**18 else 5
        seconds = median_s(partial(torch.distributed.all_reduce, message), times, clock, run)
        kept = {name: common[name] for name in ("ranks", "nodes", "device", "devices", "backend")}
        rows.append({"kind": "all_reduce", **kept, "bytes": num_bytes, "seconds": seconds})
        num_bytes *= 4
    return rows


def measure_exchange(run: Run) -> tuple[float, list[int]]:
    """Seconds of all-reduces over DDP's own buckets with nothing beside them, and the buckets' bytes of float32."""
    data = run.training.model._get_ddp_logging_data()
    sizes = [int(size) for size in data["rebuilt_bucket_sizes"].split(",")]
    kind = torch.float32 if run.setup.recipe.train.compress_gradients == "none" else torch.bfloat16
    messages = [torch.zeros(size // 4, dtype=kind, device=run.setup.runtime.device) for size in sizes]

    def exchange() -> None:
        for message in messages:
            torch.distributed.all_reduce(message)

    return median_s(exchange, 2, Clock(run.setup.runtime.device), run), sizes


def median_s(call: Callable[[], object], times: int, clock: Clock, run: Run) -> float:
    """Median seconds of a call over windows, the mean of the ranks."""
    windows = []
    for window in range(6):
        run.setup.runtime.wait_for_all()
        start = clock.mark()
        for _ in range(times):
            call()
        end = clock.mark()
        clock.wait()
        if window:
            windows.append(clock.between(start, end) / times)
    return mean_of_ranks(run, [statistics.median(windows)])[0]


def mean_of_ranks(run: Run, values: list[float]) -> list[float]:
    """The ranks' mean of each value."""
    summed = run.setup.runtime.sum_over_ranks(
        torch.tensor(values, dtype=torch.float64, device=run.setup.runtime.device)
    )
    return (summed / run.setup.runtime.world_size).tolist()


def _deviation(seconds: list[float]) -> float:
    """Standard deviation by the quartiles: one step beside another program's burst of work does not dominate."""
    low, _, high = statistics.quantiles(seconds, n=4)
    return (high - low) / 1.349


if __name__ == "__main__":
    main()
