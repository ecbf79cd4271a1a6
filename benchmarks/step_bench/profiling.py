"""Splits a step's time among kernels, by torch's profiler."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from step_bench.job import Message

TOP = 15
_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cuGraphLaunch")
_COPIES = ("cudaMemcpy", "cuMemcpy")


@contextmanager
def profiled(device: torch.device, trace: Path | None, steps: int) -> Generator[Message]:
    """Fill the message when the block, which runs `steps` steps, ends.

    `table`: (name, ms a step, calls a step) of what takes most time by itself, kernels on a GPU and operators on a CPU.
    On a GPU also `launches` and `copies` that the host starts a step, and `busy_pct`, the share of the time from the
    first kernel to the last one's end in which one ran.

    Args:
        trace: file for Chrome's tracing or Perfetto; `.gz` compresses it.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    found: Message = {}
    with profile(activities=activities, acc_events=True) as profiler:
        yield found
    if trace is not None:
        profiler.export_chrome_trace(str(trace))
    found["table"] = top_table(profiler.key_averages(), steps, on_gpu)
    if on_gpu:
        events = profiler.events()
        spans = [(event.time_range.start, event.time_range.end) for event in events if _runs_on_gpu(event)]
        if spans:  # else the profiler was not allowed to look at the GPU
            found["launches"] = round(sum(event.name.startswith(_LAUNCHES) for event in events) / steps)
            found["copies"] = round(sum(event.name.startswith(_COPIES) for event in events) / steps)
            found["busy_pct"] = round(100 * busy_share(spans), 1)


def top_table(averages: Iterable[Any], steps: int, on_gpu: bool) -> list[tuple[str, float, float]]:
    """What takes most time by itself: name, milliseconds a step, calls a step; the rest in one row."""
    rows = []
    for one in averages:
        if on_gpu and not _runs_on_gpu(one):
            continue  # an operator's time on the device is its kernels', which have rows of their own
        own_us = one.self_device_time_total if on_gpu else one.self_cpu_time_total
        if own_us > 0:
            rows.append((one.key, own_us / 1e3 / steps, one.count / steps))
    rows.sort(key=lambda row: -row[1])
    rest = rows[TOP:]
    if rest:
        rows = [*rows[:TOP], (f"{len(rest)} others", sum(ms for _, ms, _ in rest), sum(calls for *_, calls in rest))]
    return [(name, round(ms, 3), round(calls, 1)) for name, ms, calls in rows]


def _runs_on_gpu(event: Any) -> bool:
    """Whether it is a kernel or a copy; what a program marks by name (`record_function`) spans those once more."""
    return event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation


def busy_share(spans: Sequence[tuple[float, float]]) -> float:
    """Share of the time from the first start to the last end that at least one of the (start, end) covers."""
    covered, first = 0.0, min(start for start, _ in spans)
    until = first
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    return covered / (until - first) if until > first else 0.0
