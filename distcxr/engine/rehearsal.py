"""A few real updates on made-up images: what a recipe's network takes in time and memory."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import torch

from distcxr.data.augment import input_side
from distcxr.data.dataset import Dataset
from distcxr.data.loader import request
from distcxr.data.readers.make import PackReader
from distcxr.data.readers.torch_reader import TorchReader
from distcxr.engine.opening import batch_plan, build_setup
from distcxr.engine.setup import Setup
from distcxr.engine.stages import Stage, name_parameters
from distcxr.engine.step import made_up_batch, update
from distcxr.engine.training import Training
from distcxr.recipe import Recipe
from distcxr.runtime import Runtime

_UPDATES = 3
_MEASURED_IMAGES = 512


@dataclass(frozen=True)
class Rehearsal:
    """What was measured on this machine.

    Attributes:
        num_parameters: of the network.
        state_bytes: of weights, their average, and the optimiser's moments: a checkpoint's size.
        micro_step_s: seconds of one forward and backward pass of `per_device_batch_size` images; the fastest.
        read_img_per_s: images that all readers of this machine decode and resize in a second.
        memory_bytes: peak of the GPU, or of this process without one.
        memory_limit_bytes: of that GPU, or of this machine.
        shared_memory_bytes: what the reader's workers need in /dev/shm; 0 where it has none.
    """

    num_parameters: int
    state_bytes: int
    micro_step_s: float
    read_img_per_s: float
    memory_bytes: int
    memory_limit_bytes: int
    shared_memory_bytes: int


def rehearse(recipe: Recipe, dataset: Dataset, stages: tuple[Stage, ...], runtime: Runtime) -> Rehearsal:
    """Build what a run builds, in one process, and update the network's weights, which are not kept, a few times.

    Args:
        recipe: `train.per_device_batch_size` is what one device holds.
        stages: of the whole run; the one with the largest images, of these with the most parameters, is what is tried.

    Raises:
        ValueError: what a run would stop at before its first step.
        torch.OutOfMemoryError: the micro-batch does not fit the GPU.
    """
    batch_size = recipe.train.per_device_batch_size
    train = recipe.train.model_copy(update={"global_batch_size": batch_size, "sync_bn": False})
    recipe = recipe.model_copy(update={"train": train})
    with closing(build_setup(recipe, None, runtime, dataset, batch_plan(recipe, runtime), trains=True)) as setup:
        training = Training(setup, _largest(recipe, name_parameters(stages, setup.module)))
        times = [_update_s(setup, training) for _ in range(_UPDATES)]
        weights = list(setup.module.state_dict().values())
        state = [*weights, *(weights if recipe.train.ema is not None else ()), *_moments(training)]
        on_gpu = runtime.device.type == "cuda"
        return Rehearsal(
            num_parameters=sum(parameter.numel() for parameter in setup.module.parameters()),
            state_bytes=sum(tensor.numel() * tensor.element_size() for tensor in state),
            micro_step_s=min(times),
            read_img_per_s=_read_img_per_s(setup),
            memory_bytes=torch.cuda.max_memory_reserved() if on_gpu else _process_bytes(),
            memory_limit_bytes=torch.cuda.get_device_properties(runtime.device).total_memory
            if on_gpu
            else _machine_bytes(),
            shared_memory_bytes=_shared_memory_bytes(setup),
        )


def _largest(recipe: Recipe, stages: Sequence[Stage]) -> Stage:
    """The stage that takes the most memory: what fits at 224 px need not at 512."""
    side = input_side(recipe.data.image_size, recipe.augment)
    return max(stages, key=lambda stage: (stage.augment.train_size or side, len(stage.parameters)))


def _update_s(setup: Setup, training: Training) -> float:
    batch = made_up_batch(setup)
    started_s = time.perf_counter()
    with training.batch_counts.together():
        logits = setup.logits(training.model, batch, transform=training.transform)
    setup.runtime.accelerator.backward(training.loss(logits, batch.targets, batch.mask) / batch.mask.numel())
    update(training.optimizer, setup)
    if setup.runtime.device.type == "cuda":
        torch.cuda.synchronize(setup.runtime.device)
    return time.perf_counter() - started_s


def _moments(training: Training) -> list[torch.Tensor]:
    held = [moment for moments in training.optimizer.state.values() for moment in moments.values()]
    return [moment for moment in held if isinstance(moment, torch.Tensor)]


def _read_img_per_s(setup: Setup) -> float:
    """Measured on the first training images, which the system may have cached, once the reader's workers run."""
    rows, size = setup.splits.train[:_MEASURED_IMAGES], setup.plan.per_device_batch_size
    starts, names = range(0, len(rows), size), setup.recipe.metadata
    parts = [request(setup.index, rows[start : start + size], names) for start in starts]
    for _ in setup.reader.read(parts[:1]):
        pass
    started_s = time.perf_counter()
    for _ in setup.reader.read(parts):
        pass
    return len(rows) / (time.perf_counter() - started_s)


def _shared_memory_bytes(setup: Setup) -> int:
    reader = setup.reader.inner if isinstance(setup.reader, PackReader) else setup.reader
    size = setup.plan.per_device_batch_size * setup.recipe.data.num_views
    return reader.shared_memory_bytes(size) if isinstance(reader, TorchReader) else 0


def _process_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _machine_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
