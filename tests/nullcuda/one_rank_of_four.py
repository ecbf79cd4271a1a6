"""A scenario: rank 2 of four pretended ranks, each with a device of its own, of which this process may touch one."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import tiny
import torch
from nullcuda import counts, moves, parts, ranks, scenario
from nullcuda.one_process import ACCUMULATING, SKIP, STAGES
from nullcuda.parts import NUM_UNTIL_SETTLED, READERS, build, figures, read_with, step_counts

from distcxr.engine.evaluate import evaluate
from distcxr.engine.fit import begin_next_stage, fit

RANK, WORLD_SIZE = 2, 4


def prepare(data: Path, own: Path) -> None:
    ranks.pretend(RANK, WORLD_SIZE)
    parts.prepare(data, own)


def step_bf16(folder: Path) -> dict[str, int]:
    """With one input channel: DDP is known to warn of its weights' strides, and warnings are errors."""
    run = build(folder, tiny.BF16, *ACCUMULATING, "train.per_device_batch_size=2")
    return figures(step_counts(run, NUM_UNTIL_SETTLED))


def step_fp16(folder: Path) -> dict[str, int]:
    return figures(step_counts(build(folder, "train.precision=fp16"), NUM_UNTIL_SETTLED))


def step_skipping(folder: Path) -> dict[str, int]:
    return figures(step_counts(build(folder, SKIP, tiny.BF16), NUM_UNTIL_SETTLED))


def step_with_carried_moments(folder: Path) -> dict[str, int]:
    run = build(folder, STAGES, tiny.BF16)
    step_counts(run)
    begin_next_stage(run)
    return figures(step_counts(run, NUM_UNTIL_SETTLED))


def fitted(folder: Path) -> dict[str, int]:
    """A run to its end: this rank writes nothing, and scores the last weights, as nobody has written the best."""
    moves.carry_out()
    run = build(folder, tiny.BF16, "train.ema=0.9", "eval.splits=[val]", "eval.pictures=0", "eval.weights=last")
    fit(run)
    run.setup.close()
    return {"step": run.state.step, "expected": run.last_step}


def evaluated(folder: Path) -> dict[str, int]:
    run = build(folder, tiny.BF16)
    return {"num_scored": len(evaluate(run.setup, "test", ("flip",)).rows), "expected": len(run.setup.splits.test)}


def readers(folder: Path) -> dict[str, Any]:
    return {reader: read_with(folder, reader, "train.global_batch_size=8") for reader in READERS}


def devices(_: Path) -> dict[str, dict[str, int]]:
    """All calls so far that need a context, by the device that was current."""
    return _by_device()


def planted_thread(_: Path) -> dict[str, dict[str, int]]:
    """The same after a thread that sets no device has made a tensor."""
    thread = threading.Thread(target=lambda: torch.zeros(1, device="cuda"))
    thread.start()
    thread.join()
    return _by_device()


def _by_device() -> dict[str, dict[str, int]]:
    seen = counts.read()
    return {str(device): seen[f"device {device}"] for device in seen.devices()}


PARTS = (
    step_bf16,
    step_fp16,
    step_skipping,
    step_with_carried_moments,
    fitted,
    evaluated,
    readers,
    devices,
    planted_thread,
)

if __name__ == "__main__":
    scenario.main(prepare, PARTS)
