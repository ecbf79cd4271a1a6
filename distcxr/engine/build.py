"""From a recipe to a run that is ready for its first step, or for the step after its checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from distcxr.data.augment import DeviceTransform, channel_statistics, draw_parameters, input_side
from distcxr.data.dataset import Dataset, data_root, make_splits, open_dataset
from distcxr.data.loader import Loader, PixelReader, Request
from distcxr.data.loaders.choose import choose_reader
from distcxr.data.order import BatchPlan, TrainOrder, shuffled
from distcxr.data.pixels.png import load_kernels
from distcxr.engine import checkpoint as checkpoints
from distcxr.engine.checkpoint import Checkpoint
from distcxr.engine.folder import choose_folder, describe
from distcxr.engine.state import Evaluation, Horizon, Run, StepLog, TrainState, rewind_steps_csv
from distcxr.engine.step import warm_up
from distcxr.models.factory import build_model, sync_batchnorm
from distcxr.optim import build_optimizer
from distcxr.recipe import Recipe
from distcxr.recipe.augment import Statistics
from distcxr.recipe.load import to_yaml
from distcxr.runtime import Runtime, log_to_file
from distcxr.tracking.progress import Progress
from distcxr.tracking.tensorboard import Tracker

logger = logging.getLogger(__name__)

_STATISTICS_IMAGES = 512


def check_unseen(checkpoint: Checkpoint, dataset: Dataset) -> None:
    """Refuse to test on patients that the checkpoint was trained or chosen on, whatever split the recipe has."""
    if checkpoint.meta["hashes"]["labels"] != dataset.index.label_hash:
        logger.warning("the checkpoint was trained with other labels: whether it saw these patients is not known")
        return
    theirs = make_splits(Recipe.model_validate(checkpoint.meta["recipe"]).data, dataset.index)
    patient_id = dataset.index.patient_id
    seen = np.intersect1d(patient_id[np.concatenate([theirs.train, theirs.val])], patient_id[dataset.splits.test])
    if len(seen):
        raise ValueError(
            f"{checkpoint.path} was trained or chosen on {len(seen):,} patients of this test split, such as "
            f"{seen[0]}: the result would be flattered. Test with the split it was trained with"
        )


def batch_plan(recipe: Recipe, runtime: Runtime) -> BatchPlan:
    """How the recipe's global batch is shared out among the ranks."""
    total = recipe.train.global_batch_size
    return BatchPlan(
        global_batch_size=total,
        per_device_batch_size=recipe.train.per_device_batch_size or max(1, total // runtime.world_size),
        world_size=runtime.world_size,
        rank=runtime.rank,
    )


def build_run(recipe: Recipe, recipe_name: str, runtime: Runtime, console: Console) -> Run:
    """Everything a training run needs, restored from its checkpoint where there is one."""
    dataset, plan = open_dataset(recipe), batch_plan(recipe, runtime)
    order = TrainOrder(dataset.splits.train, recipe.seed, plan)
    folder, checkpoint = runtime.decided_by_main(lambda: choose_folder(recipe, recipe_name))
    if checkpoint is not None:
        checkpoints.check_data(checkpoint, dataset.hashes)
    has_best = checkpoint is not None and runtime.decided_by_main(lambda: checkpoints.adopt_best(checkpoint, folder))
    horizon = Horizon.of(recipe, len(order))
    if runtime.is_main:
        log_to_file(folder / "log.txt")
        resolved = recipe.data.model_copy(update={"root": data_root(recipe)})
        whole = recipe.model_copy(update={"output": folder, "data": resolved})
        describe(folder, whole, runtime, dataset.hashes, dataset.counts)
    _say_start(recipe, runtime, dataset, plan, horizon, folder)
    base = build_evaluation(recipe, runtime, dataset, plan, checkpoint)

    module = base.module
    if recipe.train.sync_bn and runtime.world_size > 1:
        if runtime.device.type != "cuda":
            raise ValueError("train.sync_bn=true needs GPUs: PyTorch's SyncBatchNorm has no CPU kernels")
        module = sync_batchnorm(module)
    if recipe.train.compile:
        module.compile()
    optim = recipe.optim
    model, optimizer = runtime.accelerator.prepare(
        module,
        build_optimizer(
            optim.name, module.named_parameters(), lr=optim.lr, weight_decay=optim.weight_decay, betas=optim.betas,
            momentum=optim.momentum, nesterov=optim.nesterov,
        ),
    )  # fmt: skip
    state = checkpoints.stored_state(checkpoint) if checkpoint else TrainState()
    if state.best_step is not None and not has_best:
        logger.warning("the best checkpoint so far is not there any more: the best is looked for from here on")
        state.best_auroc = state.best_step = None

    def parameters(epoch: int, positions: NDArray[np.int64]) -> Tensor:
        return draw_parameters(recipe.augment, seed=recipe.seed, epoch=epoch, positions=positions)

    run = Run(
        recipe=recipe, runtime=runtime, index=dataset.index, splits=dataset.splits, module=module,
        transform=base.transform, reader=base.reader, plan=plan, folder=folder, model=model, optimizer=optimizer,
        hashes=dataset.hashes,
        train_loader=Loader(dataset.index, order, base.reader, parameters), horizon=horizon, state=state,
        steps=StepLog(),
        tracker=Tracker(folder / "tensorboard", purge_step=state.step + 1) if runtime.is_main else None,
        progress=Progress(console, total_steps=horizon.last_step, done_steps=state.step) if runtime.is_main else None,
    )  # fmt: skip
    warm_up(run)
    if checkpoint is not None:
        checkpoints.load_training(checkpoint, run)
        logger.info(f"going on from {checkpoint.path}: step {state.step}, epoch {state.epoch}, batch {state.batch}")
    if runtime.is_main:
        rewind_steps_csv(folder / "steps.csv", state.step)
    if run.tracker:
        run.tracker.text("recipe", f"```yaml\n{to_yaml(recipe)}```", state.step)
    return run


def build_evaluation(
    recipe: Recipe, runtime: Runtime, dataset: Dataset, plan: BatchPlan, checkpoint: Checkpoint | None
) -> Evaluation:
    """Network, reader and transform on the device; with the checkpoint's weights and statistics where there is one."""
    with runtime.accelerator.local_main_process_first():  # one process of a machine compiles
        load_kernels()
    reader = choose_reader(
        recipe.data, dataset.index, max_batch_size=plan.per_device_batch_size, device=runtime.device,
        local_world_size=runtime.local_world_size, first_rows=dataset.splits.train,
        decided_by_main=runtime.decided_by_main,
    )  # fmt: skip
    torch.manual_seed(recipe.seed)
    with runtime.accelerator.local_main_process_first():  # one process of a machine downloads weights
        module = build_model(
            recipe.model.name,
            library=recipe.model.library,
            num_classes=len(dataset.index.findings),
            in_chans=recipe.model.in_chans,
            image_size=input_side(recipe.data.image_size, recipe.augment),
            weights="none" if checkpoint else recipe.model.weights,
            drop_rate=recipe.model.drop_rate,
        )
    if checkpoint:
        checkpoints.load_weights(checkpoint, module)
        mean, std = tuple(checkpoint.meta["mean"]), tuple(checkpoint.meta["std"])
    else:
        choice = recipe.augment.normalize
        measured = None
        if choice == "dataset":
            measured = runtime.decided_by_main(lambda: _measure(dataset, reader, plan.per_device_batch_size))
        mean, std = channel_statistics(choice, in_chans=recipe.model.in_chans, measured=measured)
    memory_format = torch.channels_last if recipe.train.channels_last else torch.contiguous_format
    module = module.to(runtime.device).to(memory_format=memory_format)  # type: ignore[call-overload]
    return Evaluation(
        recipe=recipe, runtime=runtime, index=dataset.index, splits=dataset.splits, module=module,
        transform=DeviceTransform(recipe.augment, mean, std), reader=reader, plan=plan,
    )  # fmt: skip


def _measure(dataset: Dataset, reader: PixelReader, batch_size: int) -> Statistics:
    """Mean and std of grey values in [0, 1] over up to 512 training images, always the same ones."""
    rows = dataset.splits.train
    drawn = rows[shuffled(np.arange(min(len(rows), _STATISTICS_IMAGES)), len(rows), seed=0, epoch=0)]
    parts = [drawn[start : start + batch_size] for start in range(0, len(drawn), batch_size)]
    requests = [Request(part, dataset.index.files(part)) for part in parts]
    count, total, squares = 0, 0.0, 0.0
    for pixels, unreadable in reader.read(requests):
        bad = [place for place, _ in unreadable]
        kept = np.delete(pixels.cpu().numpy(), bad, axis=0) / 255.0
        count, total, squares = count + kept.size, total + float(kept.sum()), squares + float((kept**2).sum())
    if not count:
        raise ValueError("augment.normalize=dataset: none of the training images drawn for it can be read")
    mean = total / count
    std = max(squares / count - mean**2, 0.0) ** 0.5
    logger.info(f"training images: mean {mean:.4f}, std {std:.4f} ({len(drawn)} measured)")
    return Statistics(mean=mean, std=max(std, 1e-3))


def world_line(recipe: Recipe, runtime: Runtime) -> str:
    """Who computes where, for the start of the log."""
    return (
        f"world size {runtime.world_size} ({runtime.backend}), device {runtime.device}, "
        f"precision {recipe.train.precision}"
    )


def _say_start(
    recipe: Recipe, runtime: Runtime, dataset: Dataset, plan: BatchPlan, horizon: Horizon, folder: Path
) -> None:
    """The derived numbers of the run, before its first step."""
    logger.info(f"run folder {folder}")
    for line in dataset.describe():
        logger.info(line)
    logger.info(world_line(recipe, runtime))
    logger.info(
        f"global batch {plan.global_batch_size} = {plan.per_device_batch_size} per device x {plan.accumulation} "
        f"accumulation x {plan.world_size} ranks; {horizon.steps_per_epoch} steps an epoch, "
        f"{horizon.last_step} of {horizon.total_steps} steps"
    )
    assert plan.per_device_batch_size * plan.accumulation * plan.world_size == plan.global_batch_size
