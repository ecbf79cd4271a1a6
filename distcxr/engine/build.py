"""From a recipe to a run that is ready for its first step, or for the step after its checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from distcxr.data.dataset import Dataset, open_dataset
from distcxr.data.order import BatchPlan
from distcxr.engine import checkpoint as checkpoints
from distcxr.engine.checkpoint import Best, Checkpoint
from distcxr.engine.compatible import begins_again, check_data, log_after_divergence
from distcxr.engine.conditions import log_changed
from distcxr.engine.folder import choose_folder, describe
from distcxr.engine.opening import batch_plan, build_setup, log_start
from distcxr.engine.own_functions import check_functions, with_same_sources
from distcxr.engine.preempt import StopRequest
from distcxr.engine.saver import Saver
from distcxr.engine.saving import check_room
from distcxr.engine.shown import show_hyperparameters
from distcxr.engine.stages import Stage, name_parameters, plan_stages
from distcxr.engine.state import Run, StepLog, TrainState
from distcxr.engine.step import warm_up
from distcxr.engine.training import Training
from distcxr.engine.tuning import check_mode, choose_mode, set_mode
from distcxr.engine.unseen import check_beginnings
from distcxr.logs import log_to_file
from distcxr.models.ema import Ema
from distcxr.models.factory import check_named, sync_batchnorm
from distcxr.recipe import Recipe
from distcxr.recipe.load import to_yaml
from distcxr.runfolder import filenames
from distcxr.runfolder.history import check_steps, rewind_steps, write_history, write_validations
from distcxr.runfolder.layout import run_folder_of, stage_folder
from distcxr.runtime import Runtime
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
    state, is_anew = _state(recipe, folder, checkpoint, stages)
    if runtime.is_main:
        total_steps = state.stage_step + sum(stage.horizon.total_steps for stage in stages[state.stage - 1 :])
        total_steps = min(total_steps, recipe.train.max_steps or total_steps)
        describe(folder, recipe, runtime, dataset, name=recipe_name, total_steps=total_steps)
    _log_start(recipe, runtime, dataset, plan, folder)
    if checkpoint is None:
        check_beginnings(recipe.model.weights, dataset)
    elif runtime.is_main:
        log_after_divergence(checkpoint, recipe)
    setup = build_setup(recipe, checkpoint, runtime, dataset, plan, trains=True)
    stages = name_parameters(stages, setup.module)
    if recipe.train.sync_bn and runtime.world_size > 1:
        if runtime.device.type != "cuda":
            raise ValueError("train.sync_bn=true needs GPUs: PyTorch's SyncBatchNorm has no CPU kernels")
        setup = replace(setup, module=sync_batchnorm(setup.module))
    earlier = run_folder_of(checkpoint.path) if checkpoint else None
    mode = choose_mode(setup, stages[state.stage - 1], folder, earlier)
    set_mode(setup.module, mode)
    setup = replace(setup, mode=mode)
    ema = None
    if recipe.train.ema is not None:  # begins with evaluated weights
        ema = Ema(setup.module, recipe.train.ema, warmup=recipe.train.ema_warmup)
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
        if not is_anew:
            checkpoints.load_training(checkpoint, run)
        log_changed(checkpoint.meta.get("conditions", {}), setup)
        logger.info(f"resumed from {checkpoint.path}: step {state.step}, epoch {state.epoch}, batch {state.batch}")
    run.training.log_stage()
    if runtime.is_main:
        rewind_steps(folder, state.step)
        if state.history:
            write_history(folder, state.history)
        if state.validated:
            write_validations(folder, state.validated)
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


def _state(
    recipe: Recipe, folder: Path, checkpoint: Checkpoint | None, stages: Sequence[Stage]
) -> tuple[TrainState, bool]:
    """The checkpoint's state, or that of a beginning; and whether a stage begins with the checkpoint's weights and
    history alone, without its optimiser."""
    asked = recipe.train.stage or 1
    if checkpoint is not None:
        state = TrainState(**checkpoint.meta["state"])
        if not begins_again(recipe, checkpoint) and not _skips_to(asked, recipe, state, stages):
            return state, False
        _check_anew(recipe, folder, checkpoint, stages[asked - 1])
        logger.info(
            f"{stages[asked - 1].title or 'training'} begins with the weights and the history of {checkpoint.path} "
            f"(step {state.step}, in stage {state.stage}) and a new optimiser"
        )
        state.begin_stage(asked)
        return state, True
    if asked > 1:
        left = stage_folder(folder, asked - 1)
        logger.warning(
            f"train.stage={asked}: there is no {left}, so stage {asked} begins with "
            f"model.weights={recipe.model.weights}"
        )
    return TrainState(stage=asked), False


def _skips_to(asked: int, recipe: Recipe, state: TrainState, stages: Sequence[Stage]) -> bool:
    """Whether the stage `asked` begins although the one before it has not ended, from a checkpoint that is named."""
    if asked <= state.stage or recipe.train.resume in ("auto", "never"):
        return False
    steps, rule = state.step - state.stage_step, recipe.train.early_stop
    return asked > state.stage + 1 or not stages[state.stage - 1].has_ended(steps, state.validations, rule)


def _check_anew(recipe: Recipe, folder: Path, checkpoint: Checkpoint, stage: Stage) -> None:
    """Refuse what a stage can't begin with that does not follow on the checkpoint's own."""
    earlier = run_folder_of(checkpoint.path)
    if earlier is not None and earlier.resolve() == folder.resolve():
        raise ValueError(
            f"train.stage={stage.number} would begin anew in {folder}, over what its run has left of that stage and "
            "later ones: give another output=FOLDER"
        )
    if stage.carry:
        raise ValueError(
            f"train.stages.{stage.number - 1}.optimizer=carry takes over the moments of the end of the stage before, "
            f"which {checkpoint.path} is not: set optimizer=new to begin with its weights"
        )


def _check_begin(run: Run) -> None:
    """Refuse `train.stage` where the checkpoint is before it, or at its end; log where the stage has begun already."""
    train, state = run.setup.recipe.train, run.state
    asked, stage = train.stage, state.stage
    if asked is None:
        return
    if state.step > state.stage_step and stage >= asked:
        if stage == asked and run.stage_ended and train.resume not in ("auto", "never"):
            raise ValueError(
                f"train.stage={asked}, but {train.resume} is at the end of it: give its stage-{asked} to begin stage "
                f"{asked} again, or leave out train.stage to go on"
            )
        logger.info(
            f"train.stage={asked}: the run is in stage {stage} already and resumes there. To begin stage {asked} "
            "again, give train.resume=CHECKPOINT, the weights to begin with, and another output=FOLDER"
        )
    if stage < asked and not (stage == asked - 1 and run.stage_ended):
        raise ValueError(
            f"train.stage={asked}, but the run to resume is at step {state.step}, in stage {stage}: leave out "
            f"train.stage to resume it, or give another output=FOLDER to begin stage {asked}: with model.weights, or "
            f"with train.resume={run.folder} with what this run has learnt"
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
