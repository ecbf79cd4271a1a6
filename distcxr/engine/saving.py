"""Writing checkpoints beside the training, which waits only while the state is copied to host memory.

    update boundary ──► Snapshot: one copy of the state ──► a thread: files ──► flushed ──► renamed
                        (training waits)                    (training continues)

The thread is `saver.py`'s: one at most. A kill at any moment leaves the checkpoints that were whole by then.

With CUDA the copy goes to pinned memory beside the device's work, and not even the copy is waited for.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from distcxr.engine.checkpoint import CheckpointError, open_checkpoint
from distcxr.engine.conditions import conditions
from distcxr.engine.divergence import remedies
from distcxr.engine.stages import Stage
from distcxr.engine.state import Run
from distcxr.recipe import Recipe
from distcxr.runfolder.history import seal_steps, steps_size
from distcxr.runfolder.layout import (
    all_folders,
    best_folder,
    checkpoint_being_written,
    checkpoints_of,
    last_folder,
    last_folders,
    size_of,
    stage_folder,
)  # fmt: skip
from distcxr.runfolder.manifest import MODEL, TRAINED, TRAINING
from distcxr.runfolder.storage import StorageError, free_bytes, in_units
from distcxr.stall.signs import SIGNS

logger = logging.getLogger(__name__)

_BESIDE_TENSORS = 1 << 16  # bytes of a checkpoint that are no tensors: names, headers, checkpoint.json
_PER_TENSOR = 512
_MOST_COUNTED = 10


@dataclass(frozen=True)
class Snapshot:
    """All that a checkpoint holds, in host memory and nobody else's.

    Attributes:
        meta: what is known of `checkpoint.json` so far.
        evaluated, trained: weights and buffers by name; `trained` is None where they are the same.
        training: of optimiser and GradScaler.
        steps_size: bytes of `steps.csv`, the rows of which up to here belong to the checkpoint.
        copied: on a GPU, the end of the copy.
    """

    meta: dict[str, Any]
    evaluated: dict[str, Tensor]
    trained: dict[str, Tensor] | None
    training: dict[str, Any]
    steps_size: int
    copied: torch.cuda.Event | None

    @property
    def num_bytes(self) -> int:
        """What its files take on the disk, and a little more."""
        tensors = _tensors([self.evaluated, self.trained or {}, self.training])
        return _on_disk(sum(tensor.nbytes for tensor in tensors), len(tensors))


def begin_save(run: Run, *, best: bool = False, last: bool = False) -> None:
    """Begin to write `best` and `last-<step>` from rank 0; returns once the state is copied.

    When a `last` is whole, all but the newest `checkpoint.keep` of them are removed. Called at an update boundary; the
    other ranks do not wait.

    Raises:
        StorageError, ValueError: of the save before, as from `Saver.wait`.
    """
    targets = [best_folder(run.folder)] if best else []
    targets += [last_folder(run.folder, run.state.step)] if last else []
    _begin(run, targets)


def save_last(run: Run) -> None:
    """Write `last-<step>`, as `begin_save`, and wait for it."""
    begin_save(run, last=True)
    _wait(run)


def save_best(run: Run) -> None:
    """Write `best`, in place of the one before, and wait for it."""
    begin_save(run, best=True)
    _wait(run)


def save_stage(run: Run) -> None:
    """Write `stage-<n>` at the end of stage n, unless a launch before this one has; waits for it."""
    folder = stage_folder(run.folder, run.stage.number)
    if run.setup.runtime.is_main:
        try:
            if open_checkpoint(folder).step == run.state.step:
                return
        except CheckpointError:
            pass
    _begin(run, [folder])
    _wait(run)


def _wait(run: Run) -> None:
    with SIGNS.checkpoint(run.state.step):
        run.saver.wait()


def _begin(run: Run, targets: Sequence[Path]) -> None:
    if not targets or not run.setup.runtime.is_main:
        return
    with SIGNS.checkpoint(run.state.step):
        run.saver.wait()  # before the copy: there is never more than one
        snapshot, folder, keep = _snapshot(run), run.folder, run.setup.recipe.checkpoint.keep

    def write() -> None:
        for target in targets:
            _write(snapshot, folder, target, advice=lambda: remedies(run))
            if target == best_folder(folder):
                logger.info(f"saved best, of step {snapshot.meta['state']['step']}: {target}")
        for old in last_folders(folder)[keep:]:
            shutil.rmtree(old, ignore_errors=True)

    run.saver.begin(write)


def _snapshot(run: Run) -> Snapshot:
    """Copy all that goes into a checkpoint, at an update boundary. Only this holds up training."""
    setup, state = run.setup, run.state
    meta = {
        "findings": list(setup.index.findings),
        "mean": list(setup.transform.mean),
        "std": list(setup.transform.std),
        "world_size": setup.runtime.world_size,
        "conditions": conditions(setup),
        "recipe": setup.recipe.model_dump(mode="json"),
        "state": asdict(state),
        "hashes": setup.hashes,
    }
    scaler = setup.runtime.accelerator.scaler
    training = {"optimizer": run.training.optimizer.state_dict(), "scaler": scaler.state_dict() if scaler else {}}
    trained = None if run.ema is None else _copy(dict(setup.module.state_dict()))
    with nullcontext() if run.ema is None else run.evaluated_weights():
        evaluated = _copy(dict(setup.module.state_dict()))
    training, copied = _copy(training), None
    if setup.runtime.device.type == "cuda":
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
    return Snapshot(meta, evaluated, trained, training, steps_size(run.folder), copied)


def _copy(value: Any) -> Any:
    """Nested dicts, lists and tuples with a copy of every tensor, laid out as it is; on a GPU it has only begun."""
    if isinstance(value, Tensor):
        value = value.detach()
        if value.device.type != "cuda":
            return value.clone()
        return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
    if isinstance(value, dict):
        return {key: _copy(entry) for key, entry in value.items()}
    return type(value)(map(_copy, value)) if isinstance(value, list | tuple) else value


def _write(snapshot: Snapshot, run_folder: Path, target: Path, advice: Callable[[], str]) -> None:
    """Write a checkpoint's files; runs beside the training.

    Args:
        advice: against a divergence.

    Raises:
        StorageError: the disk is too full, or does not take them.
        ValueError: the weights are not finite.
    """
    if snapshot.copied is not None:
        snapshot.copied.synchronize()
    weights = {MODEL: snapshot.evaluated} | ({TRAINED: snapshot.trained} if snapshot.trained else {})
    for tensors in weights.values():
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise ValueError(
                    f"the weights are not finite after step {snapshot.meta['state']['step']}: training has diverged. "
                    f"{advice()}"
                )
            tensors[name] = tensor.contiguous()  # safetensors refuses channels_last; the other layout is freed
    meta = snapshot.meta | {"tables": seal_steps(run_folder, snapshot.steps_size)}
    with checkpoint_being_written(target, meta, snapshot.num_bytes) as part:
        for file_name, tensors in weights.items():
            save_file(tensors, part / file_name, metadata={"format": "pt"})
        with (part / TRAINING).open("wb") as file:  # by itself torch.save would hide the system's reason
            torch.save(snapshot.training, file)


def most_at_once(recipe: Recipe, stages: Sequence[Stage]) -> int:
    """Checkpoints that a run's disk has to hold: the `checkpoint.keep` newest, the best, one a stage, and one that is
    being written. Of more than ten newest, which means all, ten count: the run may end long before.
    """
    saves = sum(math.ceil(stage.horizon.total_steps / stage.horizon.save_every) for stage in stages)
    return min(recipe.checkpoint.keep, saves, _MOST_COUNTED) + len(recipe.train.stages) + 2


def check_room(run: Run) -> None:
    """Refuse to train where the checkpoints that will be there at once don't fit on the disk.

    Raises:
        StorageError: with the bytes needed and free.
    """
    if not run.setup.runtime.is_main:
        return
    num = most_at_once(run.setup.recipe, run.stages)
    each, free = _estimate(run), free_bytes(run.folder)
    there = sum(size_of(folder) for folder in all_folders(run.folder))
    needed = num * each - there
    if free is not None and free < needed:
        raise StorageError(
            f"{checkpoints_of(run.folder)}: the checkpoints of this run do not fit on the disk: {num} of "
            f"{in_units(each)} at once, so {in_units(needed)} more needed, {in_units(free)} free. Free some, lower "
            "checkpoint.keep, or give another output=FOLDER"
        )


def _estimate(run: Run) -> int:
    """Bytes of a checkpoint of the run, before an optimiser has any state."""
    optim, module = run.setup.recipe.optim, run.setup.module
    moments = (1 if optim.momentum else 0) if optim.name == "sgd" else 2
    sizes = {name: parameter.nbytes for name, parameter in module.named_parameters()}
    trained = max(sum(sizes[name] for name in stage.parameters) for stage in run.stages)
    tensors = _tensors(dict(module.state_dict()))
    copies = 1 if run.ema is None else 2
    num = len(tensors) * copies + len(sizes) * (moments + 1)
    return _on_disk(copies * sum(tensor.nbytes for tensor in tensors) + moments * trained, num)


def _on_disk(num_bytes: int, num_tensors: int) -> int:
    return num_bytes + _PER_TENSOR * num_tensors + _BESIDE_TENSORS


def _tensors(value: Any) -> list[Tensor]:
    """Every tensor in nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return [value]
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for entry in entries for tensor in _tensors(entry)]
