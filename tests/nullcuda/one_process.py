"""A scenario: one process on one device. Steps, what follows them, every reader, and faults that were planted."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import tiny
import torch
from nullcuda import counts, moves, parts, scenario
from nullcuda.parts import READERS, arrived, build, figures, read_with, step_counts
from safetensors.torch import load_file

from distcxr.data.loader import PixelReader, Pixels, Request
from distcxr.engine.checkpoint import newest_checkpoint
from distcxr.engine.evaluate import evaluate
from distcxr.engine.fit import begin_next_stage, fit

ACCUMULATING = ("train.per_device_batch_size=8", "train.ema=0.9")
SKIP = "train.on_nan=skip"
STAGES = "train.stages=[{epochs: 1}, {epochs: 1, optimizer: carry}]"


def step_bf16(folder: Path) -> dict[str, int]:
    return figures(step_counts(build(folder, tiny.BF16, *ACCUMULATING)))


def step_fp16(folder: Path) -> dict[str, int]:
    return figures(step_counts(build(folder, "train.precision=fp16", *ACCUMULATING)))


def step_fp32(folder: Path) -> dict[str, int]:
    """With every augmentation that has numbers of its own."""
    augment = "augment={rand_augment: m6-mstd0.5-inc1, erase: 0.5, mixup: 0.4, cutmix: 1, crop: 24}"
    return figures(step_counts(build(folder, "train.precision=no", "optim.name=sgd", augment)))


def step_skipping(folder: Path) -> dict[str, int]:
    """With `train.on_nan=skip`: what is decided on the device stays there."""
    return figures(step_counts(build(folder, SKIP, tiny.BF16, *ACCUMULATING)))


def step_skipping_fp16(folder: Path) -> dict[str, int]:
    return figures(step_counts(build(folder, SKIP, "train.precision=fp16", "optim.name=sgd")))


def step_of_pairs(folder: Path) -> dict[str, int]:
    """With losses that compare the images of both micro-batches."""
    parts = "[{name: bce}, {name: auc_margin, weights: balanced}, {name: partial_auc}]"
    return figures(step_counts(build(folder, f"loss={{name: combined, parts: {parts}}}", *ACCUMULATING)))


def step_with_carried_moments(folder: Path) -> dict[str, dict[str, int]]:
    """Beside that of the stage before it, which is the same network with moments of its own."""
    run = build(folder, STAGES, tiny.BF16)
    before = figures(step_counts(run))
    begin_next_stage(run)
    return {"before": before, "carried": figures(step_counts(run))}


def planted_sync(folder: Path) -> dict[str, Any]:
    """What is found of a step that looks at its loss."""
    loss = torch.zeros((), device="cuda")
    seen = counts.during(loss.item)
    try:
        with parts.no_sync():
            loss.item()
    except RuntimeError as error:
        return {"syncs": seen.total("syncs"), "raised": str(error)}
    return {"syncs": seen.total("syncs"), "raised": ""}


def fit_and_resume(folder: Path) -> dict[str, Any]:
    """Two launches of one run, with an average of the weights."""
    moves.carry_out()  # from here on: what fit reads from the device are losses, ids and weights
    # Weights as channels_last would be saved through a kernel.
    common = (
        tiny.BF16,
        "train.channels_last=false",
        "train.ema=0.9",
        "eval.splits=[val]",
        "eval.pictures=0",
        "eval.tta=[flip]",
    )
    first = build(folder, *common, "train.max_steps=4")
    fit(first)
    first.setup.close()
    checkpoint = newest_checkpoint(first.folder)
    assert checkpoint is not None
    second = build(folder, *common)
    with second.evaluated_weights():
        averaged = _differing(second, load_file(checkpoint.path / "model.safetensors"))
    trained = _differing(second, load_file(checkpoint.path / "trained.safetensors"))
    begun_at = second.state.step
    fit(second)
    second.setup.close()
    steps = [row["step"] for row in tiny.rows(second.folder / "steps.csv")]
    return {
        "begun_at": begun_at, "ended_at": second.state.step, "expected_end": second.last_step, "steps": steps,
        "differing": sorted(averaged + trained),
    }  # fmt: skip


def evaluated(folder: Path) -> dict[str, Any]:
    """Ids that came back, and what two splits of different length wait for, once cuDNN has tried every batch's size."""
    run = build(folder, tiny.BF16, "train.global_batch_size=4")
    found = {}
    for split in ("val", "train", "val", "train"):
        counts.reset()
        rows = evaluate(run.setup, split, ("flip", "zoom")).rows.tolist()
        seen = counts.read()
        found[split] = {
            "is_whole": rows == sorted(run.setup.splits.rows(split).tolist()), "num_samples": len(rows),
            "syncs": seen.total("syncs"), "copies_to_host": seen.total("copies", "D2H"),
        }  # fmt: skip
    return found


def readers(folder: Path) -> dict[str, Any]:
    return {reader: read_with(folder, reader) for reader in READERS}


class _ReusingReader:
    """Fast and wrong: every batch is written into the same pinned memory, while the copy out of it may still wait."""

    where = "here"

    def __init__(self, inner: PixelReader) -> None:
        self._inner = inner
        self._pinned: torch.Tensor | None = None

    def read(self, requests: Iterable[Request]) -> Generator[Pixels]:
        for pixels, unreadable in self._inner.read(requests):
            if self._pinned is None:
                self._pinned = torch.empty_like(pixels, pin_memory=True)
            yield Pixels(self._pinned[: len(pixels)].copy_(pixels), unreadable)

    def close(self) -> None:
        self._inner.close()


def planted_reuse(folder: Path) -> dict[str, Any]:
    """What is found of a reader that uses pinned memory again too early, by the check that the real ones pass."""
    run = build(folder, *READERS["cache_on_host"], "train.global_batch_size=4", "logging.images=0")
    run.training.loader = replace(run.training.loader, reader=_ReusingReader(run.setup.reader))
    try:
        return arrived(run)
    finally:
        run.setup.close()


def calls(_: Path) -> dict[str, int]:
    """What was asked of the null CUDA that it has not."""
    return counts.read().get("refused calls", {})


def _differing(run: tiny.Run, stored: dict[str, torch.Tensor]) -> list[str]:
    """Tensors of the network on the device that are not those of a checkpoint."""
    ours = {name: tensor.cpu() for name, tensor in run.setup.module.state_dict().items()}
    return [name for name in ours.keys() | stored.keys() if not torch.equal(ours[name], stored[name])]


PARTS = (
    step_bf16, step_fp16, step_fp32, step_skipping, step_skipping_fp16, step_of_pairs,
    step_with_carried_moments,
    planted_sync, fit_and_resume, evaluated, readers,
    planted_reuse, calls,
)  # fmt: skip

if __name__ == "__main__":
    scenario.main(parts.prepare, PARTS)
