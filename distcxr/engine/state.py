"""What a run is made of: what survives a restart (`TrainState`), how long it is (`Horizon`), and its parts (`Run`)."""

from __future__ import annotations

import csv
import logging
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distcxr.data.augment import DeviceTransform
from distcxr.data.batch import Batch
from distcxr.data.index import SampleIndex
from distcxr.data.loader import Loader, PixelReader
from distcxr.data.order import BatchPlan
from distcxr.data.splits import Splits
from distcxr.engine.views import through
from distcxr.recipe import Recipe
from distcxr.recipe.schema import to_steps
from distcxr.runtime import Runtime
from distcxr.schedule import lr_at
from distcxr.tracking.progress import Progress
from distcxr.tracking.tensorboard import Tracker

logger = logging.getLogger(__name__)


@dataclass
class TrainState:
    """Where training stands, in plain numbers; with the tensors of model and optimiser, all that a restart needs.

    Dropout is seeded by (seed, step, micro-step, rank), order and augmentation by (seed, epoch, position), so there
    is no random state to keep.
    """

    step: int = 0
    """Optimiser updates done."""
    epoch: int = 0
    batch: int = 0
    """With `epoch`, the cursor: global batches of the epoch already trained on."""
    epoch_loss: float = 0.0
    """Sum of the losses of this epoch's steps so far."""
    epoch_train_s: float = 0.0
    """Seconds this epoch has trained so far, evaluation left out."""
    num_unreadable: int = 0
    """Files of this epoch that could not be read, over all ranks."""
    best_auroc: float | None = None
    best_step: int | None = None
    last_val: dict[str, Any] = field(default_factory=dict)
    """The newest validation: `step`, `val_loss`, `val_auroc`."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """A row for every epoch, as in `history.csv`."""

    def advance(self, steps_per_epoch: int) -> None:
        """Count one update and move the cursor."""
        self.step += 1
        self.batch += 1
        if self.batch == steps_per_epoch:
            self.epoch, self.batch = self.epoch + 1, 0

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values."""
        return asdict(self)


@dataclass(frozen=True)
class Horizon:
    """All durations of a recipe in steps, resolved once."""

    steps_per_epoch: int
    total_steps: int
    """Of the schedule; `train.max_steps` does not change it."""
    last_step: int
    """Where this launch ends."""
    warmup_steps: int
    log_every: int
    eval_every: int
    save_every: int

    @classmethod
    def of(cls, recipe: Recipe, steps_per_epoch: int) -> Horizon:
        """Resolve the recipe's durations."""
        epochs = recipe.train.epochs
        total_steps = steps_per_epoch * epochs

        def steps(duration: str) -> int:
            return to_steps(duration, steps_per_epoch=steps_per_epoch, epochs=epochs)

        return cls(
            steps_per_epoch=steps_per_epoch,
            total_steps=total_steps,
            last_step=min(total_steps, recipe.train.max_steps or total_steps),
            warmup_steps=steps(recipe.schedule.warmup),
            log_every=max(1, steps(recipe.logging.every)),
            eval_every=max(1, steps(recipe.eval.every)),
            save_every=max(1, steps(recipe.checkpoint.every)),
        )

    def due(self, every: int, step: int) -> bool:
        """Whether something that happens every so many steps happens after `step`; the last step always counts."""
        return step % every == 0 or step == self.last_step


@dataclass(frozen=True)
class Evaluation:
    """What it takes to judge a model: shared by a training run and `--test`.

    Attributes:
        module: the bare network, without DDP.
        transform: uint8 batch to the network's input.
    """

    recipe: Recipe
    runtime: Runtime
    index: SampleIndex
    splits: Splits
    module: nn.Module
    transform: DeviceTransform
    reader: PixelReader
    plan: BatchPlan

    def inputs(self, batch: Batch, view: str | None = None) -> Tensor:
        """The network's input, float32 [B, C, T, T], for a batch that is on the device.

        Args:
            view: a name of `eval.tta`, for a batch with the identity's parameters.
        """
        transform, parameters = self.transform, batch.augment
        if view is not None:
            transform, parameters = through(view, transform, parameters)
        images = transform(batch.pixels, parameters)
        if self.recipe.train.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images


@dataclass(frozen=True)
class Run(Evaluation):
    """A training run: everything the loop needs, nothing it has to look up.

    Attributes:
        model: `module` as Accelerate prepared it; DDP with several ranks.
        state: the only part that changes by assignment.
    """

    folder: Path
    hashes: dict[str, str]
    """sha256 of labels, lists and splits by name."""
    model: nn.Module
    optimizer: Any
    train_loader: Loader
    horizon: Horizon
    state: TrainState
    steps: StepLog
    tracker: Tracker | None
    """TensorBoard's writer; on rank 0 alone."""
    progress: Progress | None
    """The terminal; on rank 0 alone."""

    @property
    def lr(self) -> float:
        """Learning rate of the next update."""
        return lr_at(
            self.state.step,
            name=self.recipe.schedule.name,
            base_lr=self.recipe.optim.lr,
            warmup_steps=self.horizon.warmup_steps,
            total_steps=self.horizon.total_steps,
            min_lr=self.recipe.schedule.min_lr,
        )

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps is due now."""
        return self.horizon.due(every, self.state.step)


@dataclass
class StepLog:
    """Losses that wait on the device until the next write, and where the time since the last one went."""

    pending: list[tuple[dict[str, Any], Tensor]] = field(default_factory=list)
    num_unreadable: int = 0
    """On this rank, since the last write."""
    data_s: float = 0.0
    """Waited for the loader since the last write."""
    started_s: float = 0.0

    def start_window(self) -> None:
        """Begin to measure anew."""
        self.pending, self.num_unreadable, self.data_s, self.started_s = [], 0, 0.0, time.monotonic()

    def add(self, row: dict[str, Any], loss: Tensor) -> None:
        """Keep a step's row; `loss` stays on the device."""
        self.pending.append((row, loss))


STEP_COLUMNS = ("step", "epoch", "loss", "lr", "img_per_s", "data_wait_pct", "memory_mb")


def rewind_steps_csv(path: Path, step: int) -> None:
    """Start `steps.csv`, or drop the rows after `step` that a resumed run will write again."""
    rows: list[list[str]] = []
    if path.exists():
        with path.open(newline="") as file:
            whole = [row for row in csv.reader(file) if len(row) == len(STEP_COLUMNS) and row[0].isdigit()]
        rows = [row for row in whole if int(row[0]) <= step]
    part = path.with_name(f".{path.name}.part")
    with part.open("w", newline="") as file:
        csv.writer(file).writerows([STEP_COLUMNS, *rows])
    part.replace(path)
