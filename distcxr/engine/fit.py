"""The training loop, and what it does at the steps where something is due."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from typing import NoReturn

from distcxr.data.batch import Batch
from distcxr.engine import checkpoint as checkpoints
from distcxr.engine.evaluate import Scores
from distcxr.engine.final_scores import Weights, draw_curves, score_splits
from distcxr.engine.image_sizes import look_at_images
from distcxr.engine.preempt import Interrupted, Preempted
from distcxr.engine.saving import begin_save, save_last, save_stage
from distcxr.engine.shown import final_scalars, show_training_images
from distcxr.engine.state import Run
from distcxr.engine.step import train_step, warm_up
from distcxr.engine.step_writing import append_rows, write_steps
from distcxr.engine.tuning import set_mode
from distcxr.engine.validate import validate
from distcxr.models.adapters import merge_adapters
from distcxr.runfolder import filenames
from distcxr.runfolder.history import mend_steps, write_history
from distcxr.runfolder.layout import best_folder, checkpoints_of
from distcxr.runfolder.whole import not_fatal
from distcxr.stall.signs import SIGNS
from distcxr.tracking.terminal import table_text

logger = logging.getLogger(__name__)


class UnreadableTrainingFile(ValueError):
    """A file that can't be read where `data.on_error=stop`; raised on the rank that met it, the others are ended."""


def fit(run: Run) -> dict[str, Scores]:
    """Train one stage after the other, then score the splits of `eval.splits`.

    Returns:
        The scores of every split in `eval.splits`.

    Raises:
        Preempted: the run was asked to stop, and is saved.
    """
    finish_looking = look_at_images(run)
    train_stage(run)
    while not (run.state.ended or run.out_of_steps):
        begin_next_stage(run)
        train_stage(run)
    finish_looking()
    return finish(run)


def train_stage(run: Run) -> None:
    """Train to the end of the stage, or to `train.max_steps`."""
    if run.state.owes_validation:
        end_pass(run)
    while not run.stopped:
        train_pass(run)
        end_pass(run)
    if run.stage_ended and run.setup.recipe.train.stages:
        save_stage(run)


def train_pass(run: Run) -> None:
    """Train to the next validation or to the epoch's end, from the cursor on."""
    horizon, state = run.horizon, run.state
    run.steps.start_window()
    with closing(updates(run)) as global_batches:
        for micro_batches in global_batches:
            if run.stop.agreed():
                leave(run)
            run.saver.raise_error()
            row = {"step": state.step + 1, "epoch": state.epoch, "lr": run.lr}
            run.steps.add(row, state.batch, train_step(run, micro_batches))
            state.advance(horizon.steps_per_epoch)
            if run.progress:
                run.progress.advance(state.step)
            if run.due(horizon.eval_every) or state.batch == 0:
                break  # training and validation share one reader
            if run.due(horizon.log_every):
                write_steps(run)  # the only host sync
            if run.due(horizon.save_every):
                write_steps(run)
                begin_save(run, last=True)
    write_steps(run)


def end_pass(run: Run) -> None:
    """Do what is due where a pass has ended: validate, close the epoch, save."""
    horizon, state = run.horizon, run.state
    try:
        improved = run.due(horizon.eval_every) and validate(run)
    except Interrupted:
        state.owes_validation = True
        leave(run)
    state.owes_validation = False
    state.ended = run.stage_ended and run.stage is run.stages[-1]
    if state.batch == 0 or run.stopped:
        close_epoch(run)
    begin_save(run, best=improved, last=run.due(horizon.save_every))


def leave(run: Run) -> NoReturn:
    """Save everything and end the launch, as the run was asked to."""
    write_steps(run)
    save_last(run)
    SIGNS.ending(run.state.step)
    runtime = run.setup.runtime
    runtime.wait_for_all()
    if runtime.is_main:
        run.stop.log_saved()
    if run.tracker:
        run.tracker.close()
    raise Preempted


def begin_next_stage(run: Run) -> None:
    """Enter the stage after this one."""
    with SIGNS.stage(run.state.step):
        run.state.begin_stage(run.state.stage + 1)
        run.training.begin(run.stages[run.state.stage - 1])
        run.steps.recent.clear()  # the stage may have another loss
        warm_up(run.setup, run.training)
    run.training.log_stage()


def updates(run: Run) -> Generator[list[Batch]]:
    """What is left of the cursor's epoch: for each update this rank's micro-batches, on the device."""
    setup, state = run.setup, run.state
    with closing(run.training.loader.epoch(state.epoch, state.batch)) as batches:
        while True:
            asked_s = time.monotonic()
            SIGNS.data(state.step + 1)
            group = list(islice(batches, setup.plan.accumulation))
            if not group:
                return
            for batch in group:
                _count_unreadable(run, batch)
            if state.batch == 0 and run.tracker and setup.recipe.logging.images:
                show_training_images(run, group[0])
            on_device = [batch.to(setup.runtime.device) for batch in group]
            run.steps.data_s += time.monotonic() - asked_s
            SIGNS.update(state.step + 1)
            yield on_device


def _count_unreadable(run: Run, batch: Batch) -> None:
    setup = run.setup
    for sample_id, reason in batch.unreadable:
        path = setup.index.files([sample_id])[0]
        if setup.recipe.data.on_error == "stop":
            raise UnreadableTrainingFile(f"{path} can't be read: {reason}. data.on_error=mask would train without it")
        logger.error(f"{path} can't be read: {reason}; trained with no known label")  # shown from any rank
    run.steps.num_unreadable += len(batch.unreadable)


def close_epoch(run: Run) -> None:
    """Write the epoch's row of `history.csv`; one cut short gets its row, too; after `max_steps` until it is whole."""
    state = run.state
    whole = state.batch == 0
    num_steps = run.horizon.steps_per_epoch if whole else state.batch
    num_made = num_steps - state.epoch_skipped
    epoch = state.epoch - 1 if whole else state.epoch
    val = state.last_val if state.last_val.get("step") == state.step else {}
    row = {
        "epoch": epoch,
        "stage": state.stage,
        "step": state.step,
        "train_loss": state.epoch_loss / num_made if num_made else None,
        "val_loss": val.get("val_loss"),
        "val_auroc": val.get("val_auroc"),
        "lr": max(group["lr"] for group in run.training.optimizer.param_groups),
        "img_per_s": round(num_steps * run.setup.plan.global_batch_size / max(state.epoch_train_s, 1e-9), 1),
        "train_s": round(state.epoch_train_s, 1),
    }
    state.history = [*(old for old in state.history if old["epoch"] != epoch), row]
    if whole:
        state.begin_epoch()
    if run.setup.runtime.is_main:
        with not_fatal(run.folder / filenames.HISTORY, "written whole after the next epoch"):
            write_history(run.folder, state.history)
        draw_curves(run.folder)


def finish(run: Run) -> dict[str, Scores]:
    """Score the weights and splits that the recipe's `eval` names and write their files."""
    SIGNS.ending(run.state.step)
    if run.progress:
        run.progress.close()
    run.saver.wait()
    setup, wanted, weights = run.setup, run.setup.recipe.eval, Weights(run.state.step, None)
    if setup.runtime.is_main:
        for problem in _spoilt_tables(run):
            logger.warning(problem)
            run.state.note(problem)
    if run.ema is not None:
        run.ema.swap()
    if wanted.splits and wanted.weights == "best":
        if best_is_there(run):
            best = checkpoints.open_checkpoint(best_folder(run.folder))
            checkpoints.load_weights(best, setup.module)
            weights = Weights(best.step, "val")
        else:
            logger.warning(f"no best by {wanted.best_metric} is there: the last weights are scored instead")
    if (lora := setup.recipe.model.lora) is not None:  # scored as they are tested, predicted with and exported
        merge_adapters(setup.module, lora.scale)
        set_mode(setup.module, setup.mode)
    if not wanted.splits:
        for note in run.state.notes:
            logger.warning(note)
    with run.stop.leaving_at_once():
        scores = score_splits(setup, run.folder, weights, wanted.splits, run.state.notes)
    if run.tracker:
        for split, found in scores.items():  # a table: curves of one point would crowd out the others
            table = table_text(found.report.table_rows(), width=None)
            run.tracker.text(split, f"```\n{table}\n```", weights.step or 0)
        run.tracker.scalars(final_scalars(scores), run.state.step)
        run.tracker.ended_well()
        run.tracker.close()
    return scores


def _spoilt_tables(run: Run) -> list[str]:
    """What is wrong with `steps.csv` at the end, a sentence each; what can be mended is."""
    append_rows(run, [])
    found = []
    if waiting := run.steps.unwritten:
        path = run.folder / filenames.STEPS
        found.append(
            f"{path} lacks steps {waiting[0]['step']} to {waiting[-1]['step']}: the disk did not take their rows."
        )
    spoilt = mend_steps(run.folder, run.state.step)
    return [*found, spoilt] if spoilt else found


def best_is_there(run: Run) -> bool:
    """Whether the best checkpoint can be read, made anew from another where that helps; all ranks call it.

    A loss is noted: the report has it.
    """
    state, folder = run.state, run.folder
    found = run.setup.runtime.decided_by_main(
        lambda: checkpoints.adopt_best(checkpoints_of(folder), asdict(state), folder)
    )
    if found.lost:
        state.note(found.lost)
    return found.is_there
