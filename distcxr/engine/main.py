"""The two things `launch.py` does: train a recipe, or test a checkpoint."""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

from rich.console import Console

from distcxr.engine.build import batch_plan, build_evaluation, build_run, check_unseen, open_dataset, world_line
from distcxr.engine.checkpoint import check_testable, open_checkpoint
from distcxr.engine.evaluate import evaluate
from distcxr.engine.fit import UnreadableTrainingFile, fit, write_scores
from distcxr.engine.folder import make_writable, run_folder_of
from distcxr.recipe import Recipe
from distcxr.runtime import Runtime, start_logging, start_runtime

logger = logging.getLogger(__name__)


def run(recipe: Recipe, recipe_name: str, test: Path | None) -> int:
    """Join the other processes, then train, or test the checkpoint `test`.

    Returns:
        0, or 2 for a user's mistake, which is logged without a traceback.
    """
    console = Console(stderr=True)
    start_logging(console)
    try:
        runtime = start_runtime(recipe)
        if test is None:
            train(recipe, recipe_name, runtime, console)
        else:
            score_test_split(recipe, test, runtime)
        runtime.close()
        return 0
    except UnreadableTrainingFile as error:  # this rank's alone
        return _leave(2, f"error: {error}")
    except ValueError as error:  # most often every rank's: rank 0 says it and the launcher ends the others meanwhile
        if int(os.environ.get("RANK", "0")) > 0:
            time.sleep(5)
        return _leave(2, f"error: {error}")
    except Exception:
        logger.exception("not expected:")
        return _leave(1, "this process failed, see above")


def _leave(code: int, message: str) -> int:
    """End a failed process. With several ranks at once: a tidy exit would wait for collectives that never come."""
    logger.error(message)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)
    return code


def train(recipe: Recipe, recipe_name: str, runtime: Runtime, console: Console) -> None:
    """Train, score, and say where everything is."""
    training = build_run(recipe, recipe_name, runtime, console)
    try:
        fit(training)
    finally:
        training.reader.close()
        if training.progress:
            training.progress.close()
    logger.info(f"run folder: {training.folder}")
    logger.info(f"curves and pictures: tensorboard --logdir {training.folder / 'tensorboard'}")


def score_test_split(recipe: Recipe, checkpoint_path: Path, runtime: Runtime) -> None:
    """Score the recipe's test split with a checkpoint's weights; the files go to `output`, or to the run folder."""
    checkpoint = open_checkpoint(checkpoint_path)
    check_testable(checkpoint, recipe)
    name = checkpoint.path.name
    # What the run itself reported, from its best weights, stays.
    folder = recipe.output or run_folder_of(checkpoint) / ("." if name == "best" else f"test_{name}")
    logger.info(world_line(recipe, runtime))
    dataset = open_dataset(recipe)
    check_unseen(checkpoint, dataset)
    runtime.decided_by_main(lambda: make_writable(folder))
    for line in dataset.describe():
        logger.info(line)
    testing = build_evaluation(recipe, runtime, dataset, batch_plan(recipe, runtime), checkpoint)
    try:
        scores = evaluate(testing, "test")
    finally:
        testing.reader.close()
    write_scores(testing, folder, "test", scores, checkpoint.step)
    logger.info(f"written: {folder / 'metrics_test.json'}, {folder / 'predictions_test.csv'}")
