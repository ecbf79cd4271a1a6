"""The two things `launch.py` does: train a recipe, or test checkpoints."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console

from distcxr.data.readers.torch_reader import ReaderDied, StalledWorkers
from distcxr.determinism import without_kernel
from distcxr.engine.build import build_run
from distcxr.engine.external import score_elsewhere
from distcxr.engine.fit import UnreadableTrainingFile, fit
from distcxr.engine.preempt import Preempted, savable, signals_noted
from distcxr.engine.testing import score_test_split
from distcxr.error_file import FULL_MEMORY, is_full_memory, is_left_by_first_rank, write_error_file
from distcxr.exit_codes import ENVIRONMENT, LOST_RANK, STALLED, UNEXPECTED, USER
from distcxr.interrupt import end_by_interrupt
from distcxr.logs import start_logging
from distcxr.own_parts import blamed
from distcxr.process_group import is_lost_peer
from distcxr.processes import collector_paused
from distcxr.recipe import Recipe
from distcxr.runfolder.storage import of_the_disk
from distcxr.runtime import Runtime, start_runtime
from distcxr.stall.watch import account_of_stall_elsewhere, give_up_stalled
from distcxr.tracking.tracker import tensorboard_command

logger = logging.getLogger(__name__)


def run(
    recipe: Recipe, recipe_name: str, test: Sequence[Path], on: tuple[Mapping[str, Recipe], str] | None = None
) -> int:
    """Join the other processes, then train, or test the checkpoints `test` where there are any.

    Args:
        on: other data sets to test each of them on, recipes by name, and the split.

    Returns:
        0, or one of `exit_codes`: a user's mistake and a disk's failure are logged without a traceback. A single
        process that was saved because of Ctrl-C ends by that signal instead; of several ranks it is their launcher
        that does.
    """
    console = Console(stderr=True)
    start_logging(console)
    try:
        runtime = start_runtime(recipe)
        if on is not None:
            score_elsewhere(recipe, test, *on, runtime)
        elif test:
            score_test_split(recipe, test, runtime)
        else:
            train(recipe, recipe_name, runtime, console)
        runtime.close()
        return 0
    except Preempted as stop:
        runtime.close()
        if stop.by_interrupt and runtime.world_size == 1:
            end_by_interrupt()
        return 0
    except UnreadableTrainingFile as error:  # on this rank alone
        return _leave(USER, str(error))
    except StalledWorkers as error:
        give_up_stalled()
        return _leave(STALLED, str(error))
    except ValueError as error:  # most often every rank's: rank 0 reports it, and the launcher ends the others
        if is_left_by_first_rank(within_s=15):
            time.sleep(5)  # in most cases the launcher's signal comes before: one that came earlier may be lost
            write_error_file(str(error))
            os._exit(USER)
        return _leave_part(error) if blamed(error) else _leave(USER, str(error))
    except Exception as error:
        if sentence := of_the_disk(error):
            return _leave(ENVIRONMENT, sentence)
        if is_lost_peer(error):
            logger.debug("lost another rank:", exc_info=True)
            if account := account_of_stall_elsewhere():
                return _leave(STALLED, account)
            return _leave(
                LOST_RANK,
                "another rank has ended or can't be reached; its own message has the reason, and the same command "
                "resumes from the newest checkpoint",
            )
        if isinstance(error, torch.OutOfMemoryError):
            return _leave(ENVIRONMENT, f"the GPU's memory is full: lower train.per_device_batch_size ({_first(error)})")
        if is_full_memory(error):
            return _leave(ENVIRONMENT, FULL_MEMORY)
        if sentence := without_kernel(error):
            return _leave(USER, sentence)
        if isinstance(error, ReaderDied):
            return _leave(ENVIRONMENT, f"{error}. The same command resumes from the newest checkpoint")
        if blamed(error):
            return _leave_part(error)
        logger.exception("unexpected failure:")
        return _leave(UNEXPECTED, f"{type(error).__name__}: {error}; the traceback is above")


def _leave_part(error: Exception) -> int:
    """End with the traceback of an error in a user's own part, and a sentence that names it."""
    logger.exception("failure in your own part:")
    return _leave(USER, f"{type(error).__name__}: {_first(error)}; {blamed(error)}; the traceback is above")


def _first(error: Exception) -> str:
    return str(error).partition(". ")[0]


def _leave(code: int, message: str) -> int:
    """End a failed process. With several ranks at once: a tidy exit would wait for collectives that never come."""
    logger.error(f"error: {message}", extra={"is_in_error_file": True})
    write_error_file(message)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)
    return code


@signals_noted()
def train(recipe: Recipe, recipe_name: str, runtime: Runtime, console: Console) -> None:
    """Train, score, and log where everything is.

    Raises:
        Preempted: asked to end early; everything is saved.
    """
    with collector_paused():
        training = build_run(recipe, recipe_name, runtime, console)
    try:
        with savable():
            fit(training)
    except Preempted:
        raise
    except BaseException:
        if training.tracker:
            training.tracker.close()  # the last points on the curves show why
        raise
    finally:
        training.saver.close()
        training.setup.close()
        if training.progress:
            training.progress.close()
    logger.info(f"run folder: {training.folder}")
    logger.info(f"curves and pictures: {tensorboard_command(training.folder)}")
