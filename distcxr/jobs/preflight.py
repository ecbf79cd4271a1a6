"""`distcxr check RECIPE`: what would stop a run, spoil it or slow it down, found before it starts.

recipe ──► labels, splits ──► every file decoded ──► plan of batches ──► a few real updates ──► disk, limits, duration
"""

from __future__ import annotations

import re
import resource
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from distcxr.data.dataset import Dataset, open_dataset
from distcxr.data.laterals import with_laterals
from distcxr.data.order import BatchPlan, shuffled
from distcxr.data.pixels.decode import decode_grey
from distcxr.data.pixels.image_bytes import Locate, UnreadableImage, read_file
from distcxr.data.pixels.own_reader import grey_reader
from distcxr.data.pixels.remarks import remarks
from distcxr.data.quarantine import find_unreadable, read_quarantine
from distcxr.data.readers.budget import thread_budget
from distcxr.data.readers.torch_reader import SmallSharedMemory, check_shared_memory
from distcxr.data.splits import NAMES, findings_without_positives
from distcxr.data.store.pack_format import open_pack, pack_folder
from distcxr.data.store.store_files import shown_size
from distcxr.engine.own_functions import check_functions, with_sources
from distcxr.engine.rehearsal import Rehearsal, rehearse
from distcxr.engine.saving import most_at_once
from distcxr.engine.stages import Stage, plan_stages
from distcxr.jobs.check import check_packages
from distcxr.own_parts import PartError, blamed
from distcxr.recipe import Recipe
from distcxr.runtime import start_runtime

Verdict = Literal["ok", "warning", "error"]
SAMPLE = 1000
"""Images that are decoded where not all of them are."""

_LOOKED_AT = 32
_FEW_OPEN_FILES = 4096  # torch's workers hold one per batch that they hand over, and a process per GPU has several
_RUN_S = 10.0  # of a rank: what starting, closing and scoring at the end take at least


@dataclass(frozen=True)
class Line:
    """One thing that was checked."""

    about: str
    message: str
    verdict: Verdict = "ok"


@dataclass
class Preflight:
    """Checks of one recipe, in the order of a run; each is made when its lines are asked for.

    Attributes:
        recipe: resolved.
        processes: ranks that the run will have on this machine.
        sample: how many images are decoded; None for all.
        report: called with the images decoded so far and in all.
        unreadable: reason by path of the images that can't be read; filled while the lines are asked for.
        listed: the same of those that the recipe's quarantine file names already.
    """

    recipe: Recipe
    processes: int
    sample: int | None
    report: Callable[[int, int], None]
    unreadable: dict[str, str] = field(default_factory=dict)
    listed: dict[str, str] = field(default_factory=dict)

    def lines(self) -> Iterator[Line]:
        """All checks; one that fails ends those that build on it."""
        try:
            self.recipe = with_sources(self.recipe)
        except PartError as error:
            yield Line("own parts", str(error), "error")
            return
        try:
            check_packages(self.recipe)
        except ValueError as error:
            yield Line("packages", str(error), "error")
            return
        for key, name in self.recipe.own_functions().items():
            yield Line("own parts", f"{key}={name}, SHA-256 {self.recipe.sources[key]}")
        try:
            dataset = open_dataset(self.recipe)
            check_functions(self.recipe, dataset)
        except PartError as error:
            yield Line("own parts", str(error), "error")
            return
        except ValueError as error:
            if blamed(error):
                raise  # its traceback shows where
            yield Line("data", str(error), "error")
            return
        if self.recipe.data.quarantine is not None:
            self.listed = read_quarantine(self.recipe.data.quarantine, dataset.labels)
        yield from _data(dataset)
        yield self._files(dataset)
        if self.recipe.data.source == "png" and self.recipe.data.reader is None:
            yield from _looks(dataset, self.recipe.data.image_size)
        try:
            plan = BatchPlan(
                global_batch_size=(total := self.recipe.train.global_batch_size),
                per_device_batch_size=self.recipe.train.per_device_batch_size or max(1, total // self.processes),
                world_size=self.processes,
            )
            stages = plan_stages(self.recipe, dataset.index, dataset.splits.train, plan)
        except ValueError as error:
            yield Line("batches", str(error), "error")
            return
        num_steps = sum(stage.horizon.total_steps for stage in stages)
        num_steps = min(num_steps, self.recipe.train.max_steps or num_steps)
        rates = ", then ".join(dict.fromkeys(f"{stage.base_lr:g}" for stage in stages))
        yield Line(
            "batches",
            f"{plan.global_batch_size} images an update = {plan.per_device_batch_size} per device x "
            f"{plan.accumulation} accumulation x {plan.world_size} ranks; {num_steps:,} updates, "
            f"{self.recipe.optim.name} with lr {rates}",
        )
        try:
            measured = self._rehearsed(dataset, stages, plan)
        except (ValueError, torch.OutOfMemoryError) as error:
            if blamed(error) and isinstance(error, ValueError):
                raise
            yield Line("network", _why(error, plan), "error")
            return
        except SmallSharedMemory as error:
            yield Line("/dev/shm", str(error), "error")
            return
        yield from self._network(measured, plan, num_steps, dataset, stages)
        yield self._disk(measured, stages)
        yield _open_files()

    def _files(self, dataset: Dataset) -> Line:
        if self.recipe.data.source == "npz":
            return Line("files", "the images are arrays of one file, which was read")
        index, rows = dataset.index, _in_splits(dataset)
        chosen = rows
        if self.sample is not None and self.sample < len(rows):
            chosen = rows[shuffled(np.arange(self.sample), len(rows), seed=0, epoch=0)]
        locate: Locate = index.files
        if self.recipe.data.source == "pack":
            try:
                locate = open_pack(pack_folder(dataset.data, index.root), index).parts
            except ValueError as error:
                return Line("files", str(error), "error")
        self.unreadable |= find_unreadable(
            index,
            locate,
            chosen,
            thread_budget(1),
            lambda done: self.report(done, len(chosen)),
            grey_reader(self.recipe.data),
        )
        of = f"{len(chosen):,} of {len(rows):,} images" if len(chosen) < len(rows) else f"all {len(rows):,} images"
        if not self.unreadable:
            return Line("files", f"{of} decoded")
        share = len(self.unreadable) / len(chosen)
        return Line("files", f"{of} decoded; {len(self.unreadable):,} ({share:.2%}) can't be read", "warning")

    def _rehearsed(self, dataset: Dataset, stages: tuple[Stage, ...], plan: BatchPlan) -> Rehearsal:
        train = self.recipe.train.model_copy(update={"per_device_batch_size": plan.per_device_batch_size})
        recipe = self.recipe.model_copy(update={"train": train})
        return rehearse(recipe, dataset, stages, start_runtime(recipe))

    def _network(
        self, measured: Rehearsal, plan: BatchPlan, num_steps: int, dataset: Dataset, stages: Sequence[Stage]
    ) -> Iterator[Line]:
        yield Line("network", f"{self.recipe.model.name}, {measured.num_parameters / 1e6:.1f} million parameters")
        on_gpu = torch.cuda.is_available()
        needed = measured.memory_bytes * (1 if on_gpu else plan.world_size)
        share = needed / measured.memory_limit_bytes
        where = "of the GPU's" if on_gpu else "of this machine's"
        yield Line(
            "memory",
            f"{shown_size(needed)} {where} {shown_size(measured.memory_limit_bytes)}",
            "ok" if share < 0.9 else "warning",
        )
        if measured.shared_memory_bytes:
            yield self._shared_memory(measured)
        step_s = measured.micro_step_s * plan.accumulation
        read_s = plan.global_batch_size / measured.read_img_per_s
        validations = sum(stage.horizon.total_steps // stage.horizon.eval_every for stage in stages)
        total_s = num_steps * max(step_s, read_s) + _RUN_S
        total_s += validations * self._validation_s(measured, plan, dataset)
        yield Line(
            "speed",
            f"an update takes {step_s:.2g} s to compute and its images {read_s:.2g} s to read, on this machine",
            "ok" if read_s < 1.1 * step_s else "warning",
        )
        yield Line("duration", f"about {_shown_s(total_s)}, {plan.world_size * total_s / 3600:.2g} device hours")

    def _shared_memory(self, measured: Rehearsal) -> Line:
        """Of all ranks: each has its own workers where the recipe gives their number, or they share the cores."""
        needed = measured.shared_memory_bytes * (self.processes if self.recipe.data.num_workers else 1)
        try:
            check_shared_memory(needed)
        except SmallSharedMemory as error:
            return Line("/dev/shm", str(error), "error")
        return Line("/dev/shm", f"batches that workers hand over take at most {shown_size(needed)}")

    def _validation_s(self, measured: Rehearsal, plan: BatchPlan, dataset: Dataset) -> float:
        """Seconds of a validation: a forward pass takes about a third of both, for each view of an image."""
        images = len(dataset.splits.val) * (1 + len(self.recipe.eval.tta))
        compute_s = images / plan.per_device_batch_size / plan.world_size * measured.micro_step_s / 3
        return max(compute_s, len(dataset.splits.val) / measured.read_img_per_s)

    def _disk(self, measured: Rehearsal, stages: Sequence[Stage]) -> Line:
        needed = most_at_once(self.recipe, stages) * measured.state_bytes
        folder = (self.recipe.output or Path()).absolute()
        there = next(path for path in (folder, *folder.parents) if path.is_dir())
        free = shutil.disk_usage(there).free
        message = f"checkpoints take {shown_size(needed)}, {shown_size(free)} are free in {there}"
        return Line("disk", message, "ok" if needed < free else "error")


def _data(dataset: Dataset) -> Iterator[Line]:
    yield Line("data", f"{dataset.index.root}: {len(dataset.index):,} images; no patient is in two splits")
    for line in dataset.describe():
        yield Line("labels", line)
    for name in NAMES[1:]:
        if absent := findings_without_positives(dataset.index, dataset.splits.rows(name)):
            yield Line("labels", f"no {name} image shows {', '.join(absent)}: they have no AUROC there", "warning")


def _looks(dataset: Dataset, size: int) -> Iterator[Line]:
    """What is unusual of a few images, each kind of remark once: decoded they all are, and may be nearly black."""
    rows = _in_splits(dataset)
    few = rows[shuffled(np.arange(min(_LOOKED_AT, len(rows))), len(rows), seed=1, epoch=0)]
    found: dict[str, list[str]] = {}
    for file in dataset.index.files(few):
        try:
            data = read_file(file)[0]
            for remark in remarks(data, decode_grey(data), size):
                found.setdefault(re.sub(r"\d+", "0", remark), []).append(remark)
        except UnreadableImage:  # those are counted where all are decoded
            continue
    for same in found.values():
        yield Line("images", f"{len(same)} of {len(few)} looked at: {same[0]}", "warning")


def _in_splits(dataset: Dataset) -> NDArray[np.int64]:
    rows = np.concatenate([dataset.splits.rows(name) for name in NAMES])
    return rows if dataset.index.lateral is None else np.unique(with_laterals(dataset.index, rows))


def _why(error: Exception, plan: BatchPlan) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"{plan.per_device_batch_size} images of a device do not fit the GPU's memory: lower "
            f"train.per_device_batch_size (global_batch_size stays {plan.global_batch_size}, in more parts)"
        )
    return str(error)


def _open_files() -> Line:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft < _FEW_OPEN_FILES
    advice = f"; raise them with ulimit -n {min(hard, 65536)}" if few and hard > soft else ""
    return Line("open files", f"at most {soft:,} in a process{advice}", "warning" if soft < 1024 else "ok")


def _shown_s(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
