"""An update that was not finite, made again from its file: the same images, augmentation and dropout, on one process.

Its weights are those of the newest checkpoint before it, or the initial ones: from step 20 to a step 37 the file knows
the losses, but not the weights. `checkpoint.every=1st` in a run that resumes from step 20 keeps those, too.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distcxr.data.batch import Batch
from distcxr.data.dataset import Dataset, open_dataset
from distcxr.data.loader import make_batch, request
from distcxr.engine.checkpoint import Checkpoint, CheckpointError, load_trained_weights, open_checkpoint
from distcxr.engine.opening import batch_plan, build_setup
from distcxr.engine.own_functions import with_sources
from distcxr.engine.setup import Setup
from distcxr.engine.stages import name_parameters, plan_stages
from distcxr.engine.training import Training
from distcxr.engine.whole_batch import WholeBatch, scored_first
from distcxr.losses import LossFunction
from distcxr.models.freeze import evaluation_mode
from distcxr.own_parts import check_recorded
from distcxr.recipe import Recipe
from distcxr.recipe.load import with_overrides
from distcxr.recipe.loss import Loss
from distcxr.runfolder.layout import checkpoints_of
from distcxr.runtime import start_runtime

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """An image of the update.

    Attributes:
        rank: the one that trained on it.
        loss: mean over its known labels, in its batch; NaN in one image reaches all through BatchNorm. None where no
            label is known. With a loss of pairs, of which an image has none, its binary cross-entropy.
        alone: the same with BatchNorm's averages and without dropout, as evaluation computes it: of this image alone.
        problem: why its file can't be read; empty otherwise.
    """

    file: str
    rank: int
    loss: float | None
    alone: float | None
    problem: str


@dataclass(frozen=True)
class Replay:
    """What an update is with the weights of `weights_step`.

    Attributes:
        checkpoint: where the weights are from; None for the initial ones.
        samples: what is not finite alone comes first, then the highest loss.
        layer: the first module with an output that is not finite (`input`: what it was shown), or None.
        parameter: the first parameter, from the loss back, with a gradient that is not finite, or None.
    """

    checkpoint: Path | None
    weights_step: int
    loss: float
    grad_norm: float
    samples: tuple[Sample, ...]
    layer: str | None
    parameter: str | None


def recipe_to_replay(content: dict[str, Any], overrides: list[str]) -> Recipe:
    """The recipe of the update, with overrides such as `data.root`; with batches as its ranks had them, uncompiled."""
    size = len(content["ranks"][0]["sample_id"]) // content["accumulation"]
    recipe = Recipe.model_validate(content["recipe"])
    check_recorded(recipe.own_functions(), recipe.sources, "the file")
    train = recipe.train.model_copy(
        update={"per_device_batch_size": size, "compile": False, "autotune": False, "sync_bn": False}
    )
    return with_overrides(recipe.model_copy(update={"train": train}), overrides)


def replay(content: dict[str, Any], run_folder: Path, recipe: Recipe) -> Replay:
    """Make the update again: forward and backward.

    Args:
        content: from `read_diverged`.
        run_folder: where its checkpoints are.
        recipe: from `recipe_to_replay`.

    Raises:
        ValueError: other labels or splits than then, or other images in their rows.
    """
    runtime = start_runtime(recipe)
    recipe = with_sources(recipe)
    dataset = open_dataset(recipe)
    rows = _rows(content, dataset)
    checkpoint = _newest_before(run_folder, content["step"])
    with closing(build_setup(recipe, checkpoint, runtime, dataset, batch_plan(recipe, runtime), trains=True)) as setup:
        if checkpoint is not None:
            load_trained_weights(checkpoint, setup.module)
        stages = name_parameters(plan_stages(recipe, dataset.index, dataset.splits.train, setup.plan), setup.module)
        training = Training(setup, stages[content["stage"] - 1])
        batches = [
            (rank, micro_step, training.transform.with_mixed_labels(batch))
            for rank, micro_step, batch in _batches(content, rows, setup)
        ]
        return _replay(content, checkpoint, setup, training, batches)


def _replay(
    content: dict[str, Any],
    checkpoint: Checkpoint | None,
    setup: Setup,
    training: Training,
    batches: list[tuple[int, int, Batch]],
) -> Replay:
    known = max(1, sum(int(training.loss.count(batch.mask)) for _, _, batch in batches))
    grad_scale = float(content.get("grad_scale") or 1.0)  # fp16: gradients are as large as they were then
    samples: list[Sample] = []
    total = 0.0
    # First: a pass in training mode may leave averages in BatchNorm that are not finite.
    alone = [_alone(setup, training, batch) for _, _, batch in batches]
    numbered = [(rank * content["accumulation"] + micro_step, batch) for rank, micro_step, batch in batches]
    whole = None
    if training.loss.of_pairs:
        logits_first = scored_first(setup, training, content["step"] - 1, numbered)
        whole = WholeBatch(setup.runtime, logits_first, [batch for _, batch in numbered])
    with _first_not_finite(setup.module) as layers:
        for place, ((number, batch), alone_BC) in enumerate(zip(numbered, alone, strict=True)):
            setup.runtime.seed_step(setup.recipe.seed, content["step"] - 1, number)
            logits = setup.logits(training.model, batch, transform=training.transform)
            if whole is None:
                loss = training.loss(logits, batch.targets, batch.mask) / known
                total += loss.item()
            else:
                loss = training.loss(*whole.around(logits, place)) / known
                total = loss.item()
            (loss * grad_scale).backward()  # type: ignore[no-untyped-call]
            samples += _samples(batches[place][0], batch, logits.detach(), alone_BC, setup, training)
    gradients = {name: one.grad for name, one in setup.module.named_parameters() if one.grad is not None}
    norm = torch.nn.utils.get_total_norm(list(gradients.values())).item() / grad_scale
    broken = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    samples.sort(key=lambda one: (one.alone is None, -_height(one.alone), -_height(one.loss)))
    return Replay(
        checkpoint=checkpoint.path if checkpoint else None, weights_step=checkpoint.step if checkpoint else 0,
        loss=total, grad_norm=norm, samples=tuple(samples), layer=layers[0] if layers else None,
        parameter=broken[-1] if broken else None,
    )  # fmt: skip


def _rows(content: dict[str, Any], dataset: Dataset) -> list[NDArray[np.int64]]:
    """The update's images by their rows of the index, int64 [B] of each rank; by name, as rows may have moved."""
    changed = [name for name in ("labels", "train") if content["hashes"].get(name) != dataset.hashes[name]]
    if changed:
        raise ValueError(
            f"the step was made of other data: {', '.join(changed)} changed since. Give data.root=PATH of the data then"
        )
    train = dataset.splits.train
    row_of = dict(zip(dataset.index.file_names(train), train.tolist(), strict=True))
    return [np.array([row_of[name] for name in rank["files"]], dtype=np.int64) for rank in content["ranks"]]


def _newest_before(run_folder: Path, step: int) -> Checkpoint | None:
    """The checkpoint with the most updates before update `step`, from 1."""
    found = []
    for path in sorted(checkpoints_of(run_folder).glob("[!.]*")):
        try:
            checkpoint = open_checkpoint(path)
        except CheckpointError as error:
            logger.warning(f"passed over a checkpoint: {error}")
            continue
        if checkpoint.step < step:
            found.append(checkpoint)
    return max(found, key=lambda checkpoint: checkpoint.step, default=None)


def _batches(
    content: dict[str, Any], rows_by_rank: list[NDArray[np.int64]], setup: Setup
) -> Generator[tuple[int, int, Batch]]:
    """(rank, micro-step, micro-batch on the device) of the whole global batch."""
    index, size = setup.index, setup.plan.per_device_batch_size
    parts = [
        (rank["rank"], start // size, rows[start : start + size],
         torch.tensor(rank["augment"][start : start + size], dtype=torch.float32))
        for rank, rows in zip(content["ranks"], rows_by_rank, strict=True)
        for start in range(0, len(rows), size)
    ]  # fmt: skip
    names = setup.recipe.metadata
    with closing(setup.reader.read(request(index, rows, names) for _, _, rows, _ in parts)) as answers:
        for (rank, micro_step, rows, augment), answer in zip(parts, answers, strict=True):
            batch = make_batch(index, rows, answer, augment, names)
            yield rank, micro_step, batch.to(setup.runtime.device)


def _alone(setup: Setup, training: Training, batch: Batch) -> Tensor:
    """Logits without what batches share: BatchNorm's statistics."""
    with evaluation_mode(setup.module), torch.no_grad():
        return setup.logits(training.model, batch, transform=training.transform)


def _samples(
    rank: int, batch: Batch, logits_BC: Tensor, alone_BC: Tensor, setup: Setup, training: Training
) -> Iterator[Sample]:
    problems = dict(batch.unreadable)
    loss = LossFunction(Loss()) if training.loss.of_pairs else training.loss
    for at, sample_id in enumerate(batch.sample_id.tolist()):
        one = slice(at, at + 1)
        num = int(loss.count(batch.mask[one]))
        losses = [
            loss(logits[one], batch.targets[one], batch.mask[one]).item() / num if num else None
            for logits in (logits_BC, alone_BC)
        ]
        yield Sample(setup.index.file_name(sample_id), rank, losses[0], losses[1], problems.get(sample_id, ""))


@contextmanager
def _first_not_finite(module: nn.Module) -> Iterator[list[str]]:
    """Within the block, the names of modules in training mode with an output that is not finite, as they are met."""
    met: list[str] = []

    def shown(_: nn.Module, inputs: Any) -> None:
        if module.training and not all(one.isfinite().all() for one in inputs if isinstance(one, Tensor)):
            met.append("input")

    def look(name: str, output: Any) -> None:
        if module.training and isinstance(output, Tensor) and not output.isfinite().all():
            met.append(name)

    handles = [module.register_forward_pre_hook(shown)]
    for name, part in module.named_modules():
        handles.append(part.register_forward_hook(lambda _, __, output, name=name: look(name or "output", output)))
    try:
        yield met
    finally:
        for handle in handles:
            handle.remove()


def _height(loss: float | None) -> float:
    """For sorting: what is not finite is highest."""
    return -math.inf if loss is None else loss if math.isfinite(loss) else math.inf
