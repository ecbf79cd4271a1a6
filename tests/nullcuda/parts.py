"""What scenarios have in common: tiny runs on the null CUDA, and what is looked at in them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
from nullcuda import counts
from nullcuda.counts import Counts

from distcxr.data.pixels.decode import decode_grey
from distcxr.data.pixels.image_bytes import read_file
from distcxr.data.pixels.resize import resize_grey
from distcxr.engine import evaluate as evaluation
from distcxr.engine.fit import updates
from distcxr.engine.state import Run
from distcxr.engine.step import train_step
from distcxr.metrics.gather import gather_by_sample_id

READERS = {
    "torch": ("data.loader=torch", "data.num_workers=0"),
    "torch_workers": ("data.loader=torch", "data.num_workers=1"),
    "cache_on_host": ("data.loader=cache", "data.cache.resident=host"),
    "cache_on_device": ("data.loader=cache", "data.cache.resident=device"),
    "cache_partly_on_device": ("data.loader=cache", "data.cache.resident=device", "data.cache.device_gb=3e-5"),
    "gpu": ("data.loader=gpu", "data.gpu.inflate=cpu", "data.gpu.wave=10", "data.num_workers=2"),
}
"""Every reader that works without more packages. DALI's is not among them: it has a CUDA runtime of its own linked in,
which calls hundreds of the driver's functions, some by tables that NVIDIA does not document. nvCOMP (the gpu reader
with `inflate=gpu`) is a library of kernels that would compute nothing."""

NUM_UNTIL_SETTLED = 12
"""Steps: DDP times its first ten backward passes, and then every hundredth, for which it waits for events."""

_EPOCHS, _WAIT_EVERY = 2, 3
_SMALL = ("train.global_batch_size=4", "logging.images=0")


def prepare(_: Path, __: Path) -> None:
    """For a scenario: one thread, and logits that nobody computed are zeros once they are gathered."""
    torch.set_num_threads(1)
    evaluation.gather_by_sample_id = _gathered  # type: ignore[attr-defined]


def build(folder: Path, *overrides: str) -> Run:
    """A tiny run on the null device."""
    return tiny.build(folder, f"output={folder / 'run'}", *overrides)


def step_counts(run: Run, num_before: int = 2) -> Counts:
    """What one `train_step` asks for, after some that warm up; raises where torch knows that it waits."""
    with closing(updates(run)) as global_batches:
        batches = next(global_batches)
        for _ in range(num_before):
            train_step(run, batches)
        torch.cuda.synchronize()
        with no_sync():
            return counts.during(lambda: train_step(run, batches))


@contextmanager
def no_sync() -> Iterator[None]:
    """Have torch raise where it knows that the host waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def figures(found: Counts) -> dict[str, int]:
    """The numbers that have a budget."""
    return {
        "launches": found.total("launches"),
        "copies_to_device": found.total("copies", "H2D"),
        "copies_to_host": found.total("copies", "D2H"),
        "copies_on_device": found.total("copies", "D2D"),
        "fills": found.total("fills"),
        "collectives": found.total("collectives"),
        "syncs": found.total("syncs"),
    }


def arrived(run: Run) -> dict[str, Any]:
    """Follow batches to the device for some epochs, with a wait at every third, as the log of a run has.

    Returns:
        num_batches; num_wrong_pixels, num_wrong_labels (samples that differ from their file and the index, once all
        copies are done); is_in_order, whether the samples are those of the order.
    """
    seen_ids, expected_ids, num_batches, wrong_pixels, wrong_labels = [], [], 0, 0, 0
    for epoch in range(_EPOCHS):
        run.state.epoch, run.state.batch = epoch, 0
        kept = []
        with closing(updates(run)) as global_batches:
            for number, (batch,) in enumerate(global_batches):
                kept.append(
                    [tensor.clone() for tensor in (batch.pixels, batch.targets, batch.sample_id)]
                )  # real copies
                num_batches += 1
                if number % _WAIT_EVERY == _WAIT_EVERY - 1:
                    torch.cuda.synchronize()
        order = run.training.loader.order.epoch(epoch, 0)
        expected_ids += np.concatenate([sample_id for _, sample_id in order]).tolist()
        for pixels, targets, sample_id in kept:
            rows = sample_id.cpu().numpy()
            seen_ids += rows.tolist()
            wrong_pixels += _num_different(pixels.cpu().numpy(), _pixels(run, rows))
            wrong_labels += _num_different(targets.cpu().numpy(), run.setup.index.targets_NC[rows])
    return {
        "num_batches": num_batches,
        "num_wrong_pixels": wrong_pixels,
        "num_wrong_labels": wrong_labels,
        "is_in_order": seen_ids == expected_ids,
    }


def read_with(folder: Path, reader: str, *overrides: str) -> dict[str, Any]:
    """What arrives on the device with one of `READERS`, and what the log warned of."""
    with warnings_logged() as messages:
        run = build(folder, *_SMALL, *READERS[reader], *overrides)
        try:
            return arrived(run) | {"warnings": messages}
        finally:
            run.setup.close()


@contextmanager
def warnings_logged() -> Iterator[list[str]]:
    """Messages of distcxr's log from warnings on: a reader that falls back on the CPU still gives the right pixels."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("distcxr").addHandler(handler)
    try:
        yield messages
    finally:
        logging.getLogger("distcxr").removeHandler(handler)


def _pixels(run: Run, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """uint8 [B, 1, S, S] of rows of the index, from their files."""
    size = run.setup.recipe.data.image_size
    return np.stack([resize_grey(decode_grey(read_file(file)[0]), size)[None] for file in run.setup.index.files(rows)])


def _num_different(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> int:
    """Samples that differ anywhere."""
    return int((ours != theirs).reshape(len(ours), -1).any(axis=1).sum())


def _gathered(logits_BC: torch.Tensor, sample_id_B: torch.Tensor, expected: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Gather for real, which fails where an id is missing: with pretended ranks it does, as all bring this one's."""
    try:
        _, ids_N = gather_by_sample_id(logits_BC, sample_id_B, expected)
    except RuntimeError as error:
        if not torch.distributed.is_initialized() or "duplicated" not in str(error):
            raise
        ids_N = torch.as_tensor(np.sort(expected))
    return torch.zeros(len(ids_N), logits_BC.shape[1]), ids_N
