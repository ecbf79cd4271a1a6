"""Trained networks shown images that are in no dataset, within a program that may not be ours.

    checkpoint ──► Member: network on its devices, transform, views ──┐
    files ──► FileReader ──► Setup of these files ────────────────────┴─► logits, heat maps

Pixels, precision, weights and views are those of `--test`, and so is the code that makes logits of them; what `--test`
has besides is other ranks, splits and labels.

Shapes: B batch, N images, C findings, H, W of an image, T side of the network's input.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from distcxr.data.augment import DeviceTransform, evaluation_window, without_augmentation
from distcxr.data.index import SampleIndex
from distcxr.data.order import BatchPlan
from distcxr.data.pixels.own_reader import OwnReader, ReadGrey, grey_reader
from distcxr.data.readers.budget import thread_budget
from distcxr.data.readers.file_reader import FileReader
from distcxr.data.splits import Splits
from distcxr.device import arithmetic_of
from distcxr.engine.checkpoint import Checkpoint
from distcxr.engine.evaluate import Outputs, compute_alone, logits_of
from distcxr.engine.opening import load_network
from distcxr.engine.setup import Setup, memory_format
from distcxr.explain.gradcam import gradcam
from distcxr.losses import LossFunction, binary_logits
from distcxr.own_parts import open_parts
from distcxr.recipe import Recipe
from distcxr.runtime import alone

_NO_ROWS = np.empty(0, dtype=np.int64)
_EXPLAINED_AT_ONCE = 16
"""Images of a batch of heat maps: each takes a map as large as the input for every finding."""


@dataclass(frozen=True)
class Member:
    """One checkpoint's network, ready to be shown images.

    Attributes:
        recipe: the checkpoint's, with the views and the precision that it is used with.
        modules: by device, the bare network in evaluation mode.
        transform: uint8 batch to the network's input, without augmentation.
    """

    checkpoint: Checkpoint
    recipe: Recipe
    transform: DeviceTransform
    modules: dict[torch.device, nn.Module] = field(default_factory=dict)

    @property
    def batch_size(self) -> int:
        """Images of a batch where `--test` runs in one process: other sizes can change a logit's last bits."""
        train = self.recipe.train
        return train.per_device_batch_size or train.global_batch_size

    @property
    def read_grey(self) -> ReadGrey:
        """Who makes grey pixels of a file."""
        return grey_reader(self.recipe.data)

    def on(self, device: torch.device) -> nn.Module:
        """The network on a device; made there when it is first wanted."""
        if device not in self.modules:
            self.modules[device] = copy.deepcopy(next(iter(self.modules.values()))).to(device)
        return self.modules[device]

    @contextmanager
    def setup(
        self, index: SampleIndex, files: Sequence[str], device: torch.device, batch: int, num_devices: int = 1
    ) -> Iterator[Setup]:
        """What evaluates the network on these files, on one of several devices at work."""
        size, threads = self.recipe.data.image_size, thread_budget(num_devices)
        pinned = device.type == "cuda"
        read_grey = self.read_grey
        reader = FileReader(
            files, size, num_threads=threads if threads > 1 else 0, pin_memory=pinned,
            own=read_grey if isinstance(read_grey, OwnReader) else None,
        )  # fmt: skip
        with closing(reader):
            yield Setup(
                recipe=self.recipe, runtime=alone(device, self.recipe.train.precision), index=index,
                splits=Splits(_NO_ROWS, _NO_ROWS, _NO_ROWS, {}), hashes={}, module=self.on(device),
                transform=self.transform, reader=reader, plan=BatchPlan(batch, batch),
                loss=LossFunction(self.recipe.loss),
            )  # fmt: skip


def open_member(
    checkpoint: Checkpoint, device: torch.device, tta: Sequence[str] | None, precision: str | None
) -> Member:
    """A checkpoint's network on a device.

    Args:
        tta, precision: what its thresholds were chosen with; None takes the recipe's. A precision that the device does
            not have becomes float32.
    """
    recipe = checkpoint.recipe
    views = recipe.eval.tta if tta is None else list(tta)
    precision = available_precision(precision or recipe.train.precision, device)
    recipe = recipe.model_copy(
        update={
            "eval": recipe.eval.model_copy(update={"tta": views}),
            "train": recipe.train.model_copy(update={"precision": precision}),
        }
    )
    open_parts(recipe.own_functions(), recipe.sources, only="data.reader")
    # Layers begin with random weights, and the program's own numbers are not ours, nor is its default device.
    with torch.random.fork_rng([]), torch.device("cpu"):
        module = load_network(checkpoint)
    module = module.eval().to(device).to(memory_format=memory_format(recipe))  # type: ignore[call-overload]
    mean, std = tuple(checkpoint.meta["mean"]), tuple(checkpoint.meta["std"])
    transform = DeviceTransform(without_augmentation(recipe.augment), mean, std)
    return Member(checkpoint, recipe, transform, {device: module})


def available_precision(wanted: str, device: torch.device) -> str:
    """The precision, or `no` where the device does not have it."""
    if device.type == "cpu":
        return "no" if wanted == "fp16" else wanted
    with torch.cuda.device(device):
        return "no" if wanted == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False) else wanted


def devices_of(name: str | None) -> list[torch.device]:
    """The devices that a name means: `cpu`, `cuda` for every visible GPU, `cuda:1`; None takes what is there.

    Raises:
        ValueError: there is no such device here.
    """
    num = torch.cuda.device_count() if torch.cuda.is_available() else 0
    every = [torch.device("cuda", number) for number in range(num)]
    if name is None:
        return every or [torch.device("cpu")]
    chosen = {"cpu": [torch.device("cpu")], "cuda": every} | {str(device): [device] for device in every}
    if not chosen.get(name):
        raise ValueError(f"there is no device {name!r} here: there is {', '.join(map(str, ['cpu', *every]))}")
    return chosen[name]


def member_logits(
    member: Member, index: SampleIndex, files: Sequence[str], devices: Sequence[torch.device], batch: int,
    tick: Callable[[int], None],
) -> tuple[Outputs, dict[int, list[str]]]:  # fmt: skip
    """A network's logits of files, and what is unusual of them by row.

    Several devices take a share of whole batches each, so the batches are those of one device.

    Args:
        tick: called with the number of images before each batch of them, from several threads.
    """
    num_batches = -(-len(files) // batch)
    used = list(devices[:num_batches])
    bounds = [min(len(files), number * num_batches // len(used) * batch) for number in range(len(used) + 1)]
    shares = [np.arange(first, end) for first, end in pairwise(bounds)]

    def share(device: torch.device, rows: NDArray[np.int64]) -> tuple[Outputs, dict[int, list[str]]]:
        with member.setup(index, files, device, batch, len(used)) as setup:
            logits = logits_of(setup, member.recipe.eval.tta)
            sizes = [len(rows[start : start + batch]) for start in range(0, len(rows), batch)]
            found = compute_alone(setup, rows, logits, lambda number: tick(sizes[number]))
            assert isinstance(setup.reader, FileReader)
            return found, setup.reader.remarks

    for device in used:
        member.on(device)
    with arithmetic_of(member.recipe):
        if len(used) == 1:
            return share(used[0], shares[0])
        with ThreadPoolExecutor(len(used)) as pool:
            parts = list(pool.map(share, used, shares))
    outputs = Outputs(
        np.concatenate([found.rows for found, _ in parts]),
        np.concatenate([found.values_NK for found, _ in parts]),
        tuple(one for found, _ in parts for one in found.unreadable),
    )
    return outputs, {row: texts for _, remarks in parts for row, texts in remarks.items()}


def member_heat(
    member: Member, index: SampleIndex, files: Sequence[str], wanted: Sequence[Sequence[int]], device: torch.device
) -> Iterator[tuple[int, dict[int, NDArray[np.float32]]]]:
    """Heat maps of each file that can be read, in order: its row, and by column of `wanted[row]` a map of what was
    loaded, float32 [S, S]; what evaluation crops away is 0."""
    size = member.recipe.data.image_size
    start, side = evaluation_window(size, member.recipe.augment)
    explained = partial(binary_logits, member.recipe.loss.name)
    batch_size = min(member.batch_size, _EXPLAINED_AT_ONCE)
    rows = np.array([row for row, columns in enumerate(wanted) if columns], dtype=np.int64)
    with member.setup(index, files, device, batch_size) as setup, closing(setup.batches(rows)) as batches:
        for batch in batches:
            on_device = batch.to(device)
            ids = batch.sample_id.tolist()
            columns = sorted({column for row in ids for column in wanted[row]})
            with arithmetic_of(member.recipe):
                heat = gradcam(
                    setup.module, setup.inputs(on_device), columns, metadata=on_device.metadata, explained=explained,
                    relative=True,
                ).cpu()  # fmt: skip
            bad = {row for row, _ in batch.unreadable}
            for at, row in enumerate(ids):
                if row not in bad:
                    maps = {}
                    for column in wanted[row]:
                        maps[column] = np.zeros((size, size), dtype=np.float32)
                        inside = heat[at, columns.index(column)].numpy()
                        maps[column][start : start + side, start : start + side] = inside
                    yield row, maps


def heat_of_image(heat_SS: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """A heat map of the square that was loaded, as one of the whole image: float32 [H, W]."""
    image = Image.fromarray(heat_SS).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.float32)
