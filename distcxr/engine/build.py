"""From a recipe to a run that is ready for its first step, or for the step after its checkpoint."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from distcxr.data.dataset import Dataset, open_dataset
from distcxr.data.order import BatchPlan
from distcxr.engine import checkpoint as checkpoints
from distcxr.engine.checkpoint import Best, Checkpoint
from distcxr.engine.compatible import check_beginnings, check_data, log_after_divergence
from distcxr.engine.conditions import log_changed
from distcxr.engine.folder import choose_folder, describe
from distcxr.engine.opening import batch_plan, build_setup, log_start
from distcxr.engine.own_functions import check_functions, with_same_sources
from distcxr.engine.preempt import StopRequest
from distcxr.engine.saver import Saver
from distcxr.engine.saving import check_room
from distcxr.engine.shown import show_hyperparameters
from distcxr.engine.stages import name_parameters, plan_stages
from distcxr.engine.state import Run, StepLog, TrainState
from distcxr.engine.step import warm_up
from distcxr.engine.training import Training
from distcxr.engine.tuning import check_mode, choose_mode, set_mode
from distcxr.models.ema import Ema
from distcxr.models.factory import check_named, sync_batchnorm
from distcxr.recipe import Recipe
from distcxr.recipe.load import to_yaml
from distcxr.runfolder import filenames
from distcxr.runfolder.history import check_steps, rewind_steps, write_history
from distcxr.runfolder.layout import run_folder_of, stage_folder
from distcxr.runtime import Runtime, log_to_file
from distcxr.stall.watch import use_run_folder
from distcxr.tracking.terminal import Progress
from distcxr.tracking.tracker import Tracker

logger = logging.getLogger(__name__)


def build_run(recipe: Recipe, recipe_name: str, runtime: Runtime, console: Console) -> Run:
    """Everything a training run needs, restored from its checkpoint where there is one."""
    recipe = with_same_sources(recipe, runtime)
    check_named(recipe.model.name, library=recipe.model.library, weights=recipe.model.weights)
    dataset, plan = open_dataset(recipe), batch_plan(recipe, runtime)
    check_mode(recipe.train.compile, runtime.device, plan.accumulation)
    stages = plan_stages(recipe, dataset.index, dataset.splits.train, plan)
    check_functions(recipe, dataset)
    folder, checkpoint = runtime.decided_by_main(lambda: choose_folder(recipe, recipe_name))
    use_run_folder(folder)
    if checkpoint is not None:
        check_data(checkpoint, dataset.hashes)
    best, steps_problem = runtime.decided_by_main(lambda: _looked_after(checkpoint, folder))
    if runtime.is_main:
        log_to_file(folder / filenames.LOG)
        total_steps = sum(stage.horizon.total_steps for stage in stages)
        total_steps = min(total_steps, recipe.train.max_steps or total_steps)
        describe(folder, recipe, runtime, dataset, name=recipe_name, total_steps=total_steps)
    _log_start(recipe, runtime, dataset, plan, folder)
    if checkpoint is None:
        check_beginnings(recipe.model.weights, dataset)
    elif runtime.is_main:
        log_after_divergence(checkpoint, recipe)
    setup = build_setup(recipe, checkpoint, runtime, dataset, plan)
    stages = name_parameters(stages, setup.module)
    if recipe.train.sync_bn and runtime.world_size > 1:
        if runtime.device.type != "cuda":
            raise ValueError("train.sync_bn=true needs GPUs: PyTorch's SyncBatchNorm has no CPU kernels")
        setup = replace(setup, module=sync_batchnorm(setup.module))
    state = _state(recipe, folder, checkpoint)
    earlier = run_folder_of(checkpoint.path) if checkpoint else None
    mode = choose_mode(setup, stages[state.stage - 1], folder, earlier)
    set_mode(setup.module, mode)
    setup = replace(setup, mode=mode)
    ema = None if recipe.train.ema is None else Ema(setup.module, recipe.train.ema)  # begins with evaluated weights
    if checkpoint is not None:
        checkpoints.load_trained_weights(checkpoint, setup.module)
    if not best.is_there:
        state.best_score = state.best_step = None
    for problem in filter(None, (best.lost, steps_problem)):
        logger.warning(problem)
        state.note(problem)
    run = Run(
        setup=setup, folder=folder, stages=stages, training=Training(setup, stages[state.stage - 1]), ema=ema,
        state=state, steps=StepLog(), saver=Saver(), stop=StopRequest(folder, runtime), tracker=None, progress=None,
    )  # fmt: skip
    _check_begin(run)
    if runtime.is_main:
        tracker = Tracker(
            folder, purge_step=state.step + 1, services=recipe.logging.trackers, project=recipe.logging.project,
            config=recipe.model_dump(mode="json"),
        )  # fmt: skip
        run = replace(
            run, tracker=tracker, progress=Progress(console, total_steps=run.last_step, done_steps=state.step)
        )
    check_room(run)
    logger.info("warm-up: two batches that change nothing")
    warm_up(setup, run.training)
    if checkpoint is not None:
        checkpoints.load_training(checkpoint, run)
        log_changed(checkpoint.meta.get("conditions", {}), setup)
        logger.info(f"resumed from {checkpoint.path}: step {state.step}, epoch {state.epoch}, batch {state.batch}")
    run.training.log_stage()
    if runtime.is_main:
        rewind_steps(folder, state.step)
        if state.history:
            write_history(folder, state.history)
    if run.tracker:
        run.tracker.text("recipe", f"```yaml\n{to_yaml(recipe)}```", state.step)
        show_hyperparameters(run)
    return run


def _looked_after(checkpoint: Checkpoint | None, folder: Path) -> tuple[Best, str | None]:
    """The best checkpoint beside `checkpoint`, and what is wrong with the table of losses that goes with it."""
    if checkpoint is None:
        return Best(is_there=False), None
    best = checkpoints.adopt_best(checkpoint.path.parent, checkpoint.meta["state"], folder)
    earlier = run_folder_of(checkpoint.path)
    is_same = earlier is not None and earlier.resolve() == folder.resolve()
    return best, check_steps(folder, checkpoint.meta) if is_same else None


def _state(recipe: Recipe, folder: Path, checkpoint: Checkpoint | None) -> TrainState:
    """The checkpoint's state, or that of a beginning."""
    if checkpoint is not None:
        return TrainState(**checkpoint.meta["state"])
    stage = recipe.train.stage or 1
    if stage > 1:
        left = stage_folder(folder, stage - 1)
        logger.warning(
            f"train.stage={stage}: there is no {left}, so stage {stage} begins with "
            f"model.weights={recipe.model.weights}"
        )
    return TrainState(stage=stage)


def _check_begin(run: Run) -> None:
    """Refuse `train.stage` where the checkpoint is before it; log it where the stage has begun already."""
    asked, stage = run.setup.recipe.train.stage, run.state.stage
    wanted = asked or 1
    if asked is not None and run.state.step > run.state.stage_step and stage >= wanted:
        logger.info(
            f"train.stage={wanted}: the run is in stage {stage} already and resumes there. To begin stage {wanted} "
            f"again, give train.resume={stage_folder(run.folder, wanted - 1)} and another output=FOLDER"
        )
    if stage < wanted and not (stage == wanted - 1 and run.stage_ended):
        raise ValueError(
            f"train.stage={wanted}, but the run to resume is at step {run.state.step}, in stage {stage}: leave out "
            f"train.stage to resume it, or give another output=FOLDER to begin stage {wanted} with model.weights"
        )


def _log_start(recipe: Recipe, runtime: Runtime, dataset: Dataset, plan: BatchPlan, folder: Path) -> None:
    """The derived numbers of the run, before its first step."""
    logger.info(f"run folder {folder}")
    log_start(recipe, runtime, dataset)
    logger.info(
        f"global batch {plan.global_batch_size} = {plan.per_device_batch_size} per device x {plan.accumulation} "
        f"accumulation x {plan.world_size} ranks"
    )
    assert plan.per_device_batch_size * plan.accumulation * plan.world_size == plan.global_batch_size
