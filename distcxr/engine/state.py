"""What a training run is made of (`Run`), and what of it survives a restart (`TrainState`)."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from distcxr.engine.preempt import StopRequest
from distcxr.engine.saver import Saver
from distcxr.engine.setup import Setup
from distcxr.engine.stages import Horizon, Stage
from distcxr.engine.training import Training
from distcxr.models.ema import Ema
from distcxr.runfolder.loss_spikes import NUM_BEFORE
from distcxr.tracking.terminal import Progress
from distcxr.tracking.tracker import Tracker


@dataclass
class TrainState:
    """Where training stands, in plain numbers; with the tensors of model and optimiser, all that a restart needs.

    Dropout is seeded by (seed, step, number of the micro-batch in the global batch), order and augmentation by (seed,
    epoch, position), so there is no random state to keep.
    """

    step: int = 0
    """Optimiser updates done, over all stages."""
    epoch: int = 0
    """Counted over all stages; one that a stage's end cut short counts."""
    batch: int = 0
    """With `epoch`, the cursor: global batches of the epoch already trained on."""
    stage: int = 1
    """The stage that is being trained, or has just ended."""
    stage_step: int = 0
    """`step` when it began."""
    ended: bool = False
    """Whether the last stage has ended."""
    validations: list[float | None] = field(default_factory=list)
    """Of this stage, by `eval.best_metric`, the higher the better; None where it is undefined."""
    epoch_loss: float = 0.0
    """Sum of the losses of this epoch's steps so far."""
    epoch_train_s: float = 0.0
    """Seconds this epoch has trained so far, evaluation left out."""
    num_unreadable: int = 0
    """Files of this epoch that could not be read, over all ranks."""
    num_skipped: int = 0
    """Updates of the run that `train.on_nan` left out."""
    epoch_skipped: int = 0
    """Those of this epoch."""
    best_score: float | None = None
    """The best validation of the run by `eval.best_metric`, the higher the better; the loss negated."""
    best_step: int | None = None
    owes_validation: bool = False
    """Whether the run was asked to stop in the validation at this step: it comes first when the run resumes."""
    last_val: dict[str, Any] = field(default_factory=dict)
    """The newest validation: `step`, `val_loss`, `val_auroc`."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """A row for every epoch, as in `history.csv`."""
    validated: list[dict[str, Any]] = field(default_factory=list)
    """A row for every validation of the run, as in `validations.csv`."""
    notes: list[str] = field(default_factory=list)
    """What was lost on the way and changes how the run ends, a sentence each: for its end and for its report."""

    def note(self, sentence: str) -> None:
        """Keep a sentence for the end of the run, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def advance(self, steps_per_epoch: int) -> None:
        """Count one update and move the cursor."""
        self.step += 1
        self.batch += 1
        if self.batch == steps_per_epoch:
            self.epoch, self.batch = self.epoch + 1, 0

    def begin_stage(self, number: int) -> None:
        """Enter stage `number` and put the cursor at the start of an epoch."""
        if self.batch:
            self.epoch += 1
        self.stage, self.stage_step, self.batch, self.validations = number, self.step, 0, []
        self.ended = self.owes_validation = False
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Count anew what is counted by epochs."""
        self.epoch_loss, self.epoch_train_s, self.num_unreadable, self.epoch_skipped = 0.0, 0.0, 0, 0


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run: what is fixed, then what moves while it trains, then its ties to the world outside.

    Attributes:
        stages: all of them, the first first.
        training: what the stage trains with.
        ema: the average that is evaluated in place of the weights that are trained.
        state: where training stands.
        steps: what waits to be written.
        saver: writes checkpoints beside the training.
    """

    setup: Setup
    folder: Path
    stages: tuple[Stage, ...]

    training: Training
    ema: Ema | None
    state: TrainState
    steps: StepLog

    saver: Saver
    stop: StopRequest
    tracker: Tracker | None
    """TensorBoard and services; on rank 0 alone."""
    progress: Progress | None
    """The terminal; on rank 0 alone."""

    @property
    def stage(self) -> Stage:
        """The stage that is being trained."""
        return self.training.stage

    @property
    def horizon(self) -> Horizon:
        """The stage's durations in steps."""
        return self.stage.horizon

    @property
    def lr(self) -> float:
        """Learning rate of the next update, of the head where layers have their own."""
        return self.stage.lr_at(self.state.step - self.state.stage_step, self.state.validations)

    @property
    def last_step(self) -> int:
        """Where this launch ends if no stage ends early."""
        left = sum(stage.horizon.total_steps for stage in self.stages[self.stage.number - 1 :])
        last = self.state.stage_step + left
        return min(last, self.setup.recipe.train.max_steps or last)

    @property
    def stage_ended(self) -> bool:
        """Whether the stage has no step left, or no longer helps."""
        steps, rule = self.state.step - self.state.stage_step, self.setup.recipe.train.early_stop
        return self.stage.has_ended(steps, self.state.validations, rule)

    @property
    def out_of_steps(self) -> bool:
        """Whether `train.max_steps` is reached."""
        return self.state.step >= (self.setup.recipe.train.max_steps or math.inf)

    @property
    def stopped(self) -> bool:
        """Whether the launch goes no further in this stage."""
        return self.stage_ended or self.out_of_steps

    def scheduled(self, every: int) -> bool:
        """Whether something that happens every so many steps of a stage, and at its end, happens now."""
        return (self.state.step - self.state.stage_step) % every == 0 or self.stage_ended

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps of a stage is due now: as scheduled, and at a stop."""
        return self.scheduled(every) or self.out_of_steps

    @contextmanager
    def evaluated_weights(self) -> Iterator[None]:
        """Have in the network the weights that are evaluated: the average, where the recipe asks for one."""
        if self.ema is not None:
            self.ema.swap()
        try:
            yield
        finally:
            if self.ema is not None:
                self.ema.swap()


class Pending(NamedTuple):
    """An update that waits to be written: its row, its number in the epoch, and what is on the device."""

    row: dict[str, Any]
    batch: int
    share: Tensor
    grad_norm: Tensor | None
    skipped: Tensor | None


@dataclass
class StepLog:
    """Updates that wait on the device until the next write, and where the time since the last one went."""

    pending: list[Pending] = field(default_factory=list)
    num_unreadable: int = 0
    """On this rank, since the last write."""
    data_s: float = 0.0
    """Waited for the loader since the last write."""
    started_s: float = 0.0
    unwritten: list[dict[str, Any]] = field(default_factory=list)
    """Rows that the disk did not take: they are written with the next ones."""
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=NUM_BEFORE))
    """Losses written last, which the next ones are compared with."""

    def start_window(self) -> None:
        """Begin to measure anew."""
        self.pending, self.num_unreadable, self.data_s, self.started_s = [], 0, 0.0, time.monotonic()

    def add(self, row: dict[str, Any], batch: int, outcome: tuple[Tensor, Tensor | None, Tensor | None]) -> None:
        """Keep a step's row, its global batch of the epoch, and the `Outcome` of its update, on the device."""
        self.pending.append(Pending(row, batch, *outcome))
