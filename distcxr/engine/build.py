"""From a recipe to a run that is ready for its first step, or for the step after its checkpoint."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from distcxr.data.augment import DeviceTransform, channel_statistics, input_side, without_augmentation
from distcxr.data.dataset import Dataset, data_root, open_dataset
from distcxr.data.loader import PixelReader
from distcxr.data.metadata import check_metadata, metadata_width
from distcxr.data.order import BatchPlan, shuffled
from distcxr.data.pixels.decode import load_kernels
from distcxr.data.readers.choose import choose_reader
from distcxr.engine import checkpoint as checkpoints
from distcxr.engine.checkpoint import Checkpoint
from distcxr.engine.compatible import check_beginnings, check_data, check_findings
from distcxr.engine.folder import choose_folder, describe
from distcxr.engine.preempt import StopRequest
from distcxr.engine.stages import name_parameters, plan_stages
from distcxr.engine.state import Evaluation, Run, StepLog, TrainState, memory_format
from distcxr.engine.step import made_up_batch, warm_up
from distcxr.engine.training import Training
from distcxr.engine.tuning import check_mode, choose_mode, set_mode
from distcxr.losses import build_loss, check_exclusive
from distcxr.models.ema import Ema
from distcxr.models.factory import build_model, sync_batchnorm
from distcxr.recipe import Recipe
from distcxr.recipe.augment import Statistics
from distcxr.recipe.load import to_yaml
from distcxr.runfolder import filenames
from distcxr.runfolder.history import rewind_steps
from distcxr.runfolder.layout import run_folder_of, stage_folder
from distcxr.runtime import Runtime, log_to_file
from distcxr.tracking.progress import Progress
from distcxr.tracking.tracker import Tracker, open_tracker

logger = logging.getLogger(__name__)

_STATISTICS_IMAGES = 512


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
    check_mode(recipe.train.compile, runtime.device, plan.accumulation)
    stages = plan_stages(recipe, dataset.index, dataset.splits.train, plan)
    folder, checkpoint = runtime.decided_by_main(lambda: choose_folder(recipe, recipe_name))
    if checkpoint is not None:
        check_data(checkpoint, dataset.hashes)
    has_best = checkpoint is not None and runtime.decided_by_main(lambda: checkpoints.adopt_best(checkpoint, folder))
    if runtime.is_main:
        log_to_file(folder / filenames.LOG)
        resolved = recipe.data.model_copy(update={"root": data_root(recipe)})
        whole = recipe.model_copy(update={"output": folder, "data": resolved})
        total_steps = sum(stage.horizon.total_steps for stage in stages)
        total_steps = min(total_steps, recipe.train.max_steps or total_steps)
        describe(folder, whole, runtime, dataset.hashes, dataset.counts, total_steps)
    _say_start(recipe, runtime, dataset, plan, folder)
    if checkpoint is None:
        check_beginnings(recipe.model.weights, dataset)
    base = build_evaluation(recipe, runtime, dataset, plan, checkpoint)
    stages = name_parameters(stages, base.module)
    if recipe.train.sync_bn and runtime.world_size > 1:
        if runtime.device.type != "cuda":
            raise ValueError("train.sync_bn=true needs GPUs: PyTorch's SyncBatchNorm has no CPU kernels")
        base = replace(base, module=sync_batchnorm(base.module))
    state = _state(recipe, folder, checkpoint)
    earlier = run_folder_of(checkpoint.path) if checkpoint else None
    mode = choose_mode(base, stages[state.stage - 1], lambda: made_up_batch(base), folder, earlier)
    set_mode(base.module, mode)
    base = replace(base, mode=mode)
    ema = None if recipe.train.ema is None else Ema(base.module, recipe.train.ema)  # it begins with what was judged
    if checkpoint is not None:
        checkpoints.load_trained_weights(checkpoint, base.module)
    if state.best_step is not None and not has_best:
        logger.warning("the best checkpoint so far is not there any more: the best is looked for from here on")
        state.best_score = state.best_step = None
    run = Run(
        recipe=recipe, runtime=runtime, index=base.index, splits=base.splits, module=base.module,
        transform=base.transform, reader=base.reader, plan=plan, loss=base.loss, mode=mode, folder=folder,
        hashes=dataset.hashes, stages=stages, training=Training(base, stages[state.stage - 1]), ema=ema, state=state,
        steps=StepLog(),
        stop=StopRequest(folder, runtime),
        tracker=_tracker(recipe, folder, state.step) if runtime.is_main else None, progress=None,
    )  # fmt: skip
    _check_begin(run)
    if runtime.is_main:
        run = replace(run, progress=Progress(console, total_steps=run.last_step, done_steps=state.step))
    warm_up(run)
    if checkpoint is not None:
        checkpoints.load_training(checkpoint, run)
        logger.info(f"going on from {checkpoint.path}: step {state.step}, epoch {state.epoch}, batch {state.batch}")
    run.training.say()
    if runtime.is_main:
        rewind_steps(folder, state.step)
    if run.tracker:
        run.tracker.text("recipe", f"```yaml\n{to_yaml(recipe)}```", state.step)
    return run


def _state(recipe: Recipe, folder: Path, checkpoint: Checkpoint | None) -> TrainState:
    """Where training stands, or begins."""
    if checkpoint is not None:
        return checkpoints.stored_state(checkpoint)
    stage = recipe.train.stage or 1
    if stage > 1:
        left = stage_folder(folder, stage - 1)
        logger.warning(
            f"train.stage={stage}: there is no {left}, so stage {stage} begins with "
            f"model.weights={recipe.model.weights}"
        )
    return TrainState(stage=stage)


def _check_begin(run: Run) -> None:
    """Refuse `train.stage` where the checkpoint stands before it; say so where the stage has begun already."""
    wanted, stage = run.recipe.train.stage or 1, run.state.stage
    if run.recipe.train.stage is not None and run.state.step > run.state.stage_step and stage >= wanted:
        logger.info(
            f"train.stage={wanted}: the run is in stage {stage} already and goes on there. To begin stage {wanted} "
            f"again, give train.resume={stage_folder(run.folder, wanted - 1)} and another output=FOLDER"
        )
    if stage < wanted and not (stage == wanted - 1 and run.stage_ended):
        raise ValueError(
            f"train.stage={wanted}, but the run to go on with is at step {run.state.step}, in stage {stage}: leave out "
            f"train.stage to go on with it, or give another output=FOLDER to begin stage {wanted} with model.weights"
        )


def _tracker(recipe: Recipe, folder: Path, step: int) -> Tracker:
    return open_tracker(
        folder, purge_step=step + 1, services=recipe.logging.trackers, project=recipe.logging.project,
        config=recipe.model_dump(mode="json"),
    )  # fmt: skip


def build_evaluation(
    recipe: Recipe, runtime: Runtime, dataset: Dataset, plan: BatchPlan, checkpoint: Checkpoint | None
) -> Evaluation:
    """Network, reader and transform on the device; with the checkpoint's weights and statistics where there is one."""
    check_metadata(dataset.index, dataset.splits.train, recipe.model.head.metadata)
    with runtime.main_of_machine_first():  # one process of a machine compiles
        load_kernels()
    reader = runtime.done_by_all(
        lambda: choose_reader(
            recipe.data, dataset.index, max_batch_size=plan.per_device_batch_size, device=runtime.device,
            local_world_size=runtime.local_world_size, first_rows=dataset.splits.train,
            decided_by_main=runtime.decided_by_main,
        )
    )  # fmt: skip
    torch.manual_seed(recipe.seed)
    with runtime.main_of_machine_first():  # one process of a machine downloads weights
        module = build_model(
            recipe.model.name,
            library=recipe.model.library,
            num_classes=len(dataset.index.findings),
            in_chans=recipe.model.in_chans,
            image_size=input_side(recipe.data.image_size, recipe.augment),
            weights="none" if checkpoint else recipe.model.weights,
            drop_rate=recipe.model.drop_rate,
            head=recipe.model.head,
            num_metadata=metadata_width(recipe.model.head.metadata),
            new_head=recipe.model.new_head,
            findings=dataset.index.findings,
        )
    if checkpoint:
        check_findings(checkpoint, dataset.index.findings)
        checkpoints.load_weights(checkpoint, module)
        mean, std = tuple(checkpoint.meta["mean"]), tuple(checkpoint.meta["std"])
    else:
        choice = recipe.augment.normalize
        measured = None
        if choice == "dataset":
            measured = runtime.decided_by_main(lambda: _measure(dataset, reader, plan.per_device_batch_size))
        mean, std = channel_statistics(choice, in_chans=recipe.model.in_chans, measured=measured)
    index, train = dataset.index, dataset.splits.train
    if recipe.loss.name == "cross_entropy":
        for split in ("train", "val", "test"):
            rows = dataset.splits.rows(split)
            check_exclusive(split, index.findings, index.targets_NC[rows], index.mask_NC[rows], index.file_names(rows))
    loss = build_loss(recipe.loss, index.targets_NC[train], index.mask_NC[train], index.findings)
    module = module.to(runtime.device).to(memory_format=memory_format(recipe))  # type: ignore[call-overload]
    return Evaluation(
        recipe=recipe, runtime=runtime, index=dataset.index, splits=dataset.splits, module=module,
        transform=DeviceTransform(without_augmentation(recipe.augment), mean, std), reader=reader, plan=plan,
        loss=loss.to(runtime.device),
    )  # fmt: skip


def _measure(dataset: Dataset, reader: PixelReader, batch_size: int) -> Statistics:
    """Mean and std of grey values in [0, 1] over up to 512 training images, always the same ones."""
    rows = dataset.splits.train
    drawn = rows[shuffled(np.arange(min(len(rows), _STATISTICS_IMAGES)), len(rows), seed=0, epoch=0)]
    parts = [drawn[start : start + batch_size] for start in range(0, len(drawn), batch_size)]
    count, total, squares = 0, 0.0, 0.0
    for pixels, unreadable in reader.read(parts):
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


def _say_start(recipe: Recipe, runtime: Runtime, dataset: Dataset, plan: BatchPlan, folder: Path) -> None:
    """The derived numbers of the run, before its first step."""
    logger.info(f"run folder {folder}")
    for line in dataset.describe():
        logger.info(line)
    logger.info(world_line(recipe, runtime))
    logger.info(
        f"global batch {plan.global_batch_size} = {plan.per_device_batch_size} per device x {plan.accumulation} "
        f"accumulation x {plan.world_size} ranks"
    )
    assert plan.per_device_batch_size * plan.accumulation * plan.world_size == plan.global_batch_size
