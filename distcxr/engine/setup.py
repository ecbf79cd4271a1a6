"""What evaluates a model, and what a training run has that never changes: data, network, reader and precision.

A view of test-time augmentation is made as training's augmentation is, on the device and after loading, so it is the
same with every loader.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distcxr.data.augment import DeviceTransform, identity_parameters
from distcxr.data.batch import Batch
from distcxr.data.index import SampleIndex
from distcxr.data.loader import Loader, PixelReader
from distcxr.data.order import BatchPlan, EvalOrder
from distcxr.data.splits import Splits
from distcxr.losses import LossFunction
from distcxr.models.heads import last_map, pooled_features
from distcxr.recipe import Recipe
from distcxr.runtime import Runtime

Mode = Literal["eager", "compiled", "graphs"]
"""How the network's layers run: as written, compiled, or replayed as CUDA graphs."""


def memory_format(recipe: Recipe) -> torch.memory_format:
    """How the network's weights and images lie in memory."""
    return torch.channels_last if recipe.train.channels_last else torch.contiguous_format


class View(NamedTuple):
    """What a view changes: keys of the recipe's `augment` that switch it on, and the parameter that it sets."""

    spec: dict[str, Any]
    column: str
    value: float


VIEWS = {
    "flip": View({"flip": 1.0}, "flip", 1.0),
    "zoom": View({"scale": (1.1, 1.1)}, "scale", 1.1),
    "rotate_left": View({"rotate_deg": 5.0}, "rotate_deg", 5.0),
    "rotate_right": View({"rotate_deg": 5.0}, "rotate_deg", -5.0),
}
"""By the names of `eval.tta`."""


def through(view: str, transform: DeviceTransform, parameters: Tensor) -> tuple[DeviceTransform, Tensor]:
    """The transform and parameters, float32 [B, P], that show the images of a batch through a view.

    Args:
        transform: of the plain image; whether training flips or turns makes no difference to the view.
        parameters: the identity's.
    """
    spec, column, value = VIEWS[view]
    changed = identity_parameters(1, **{column: value}).to(parameters.device, non_blocking=True)
    return replace(transform, spec=transform.spec.model_copy(update=spec)), changed.expand(len(parameters), -1)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What it takes to evaluate a model: shared by a training run, `--test` and the verbs.

    Attributes:
        hashes: sha256 of labels, lists and splits by name.
        module: the bare network, without DDP.
        transform: uint8 batch to the network's input, without augmentation.
        plan: how batches are shared out among the ranks.
        loss: the recipe's, which evaluation reports.
        mode: how the network runs, as `tuning.set_mode` has set it.
    """

    recipe: Recipe
    runtime: Runtime
    index: SampleIndex
    splits: Splits
    hashes: dict[str, str]
    module: nn.Module
    transform: DeviceTransform
    reader: PixelReader
    plan: BatchPlan
    loss: LossFunction
    mode: Mode = "eager"

    def close(self) -> None:
        """End the reader's workers."""
        self.reader.close()

    def batches(self, rows: NDArray[np.int64], *, alone: bool = False) -> Generator[Batch]:
        """Plain images of the index rows `rows`, in this order: this rank's share of them, or `alone` all of them."""
        size = self.plan.per_device_batch_size
        plan = BatchPlan(global_batch_size=size, per_device_batch_size=size) if alone else self.plan
        loader = Loader(self.index, EvalOrder(rows, plan), self.reader, _plain, self.recipe.metadata)
        return loader.epoch(0)

    def inputs(
        self,
        batch: Batch,
        view: str | None = None,
        transform: DeviceTransform | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """The network's input, `dtype` [B, C, T, T], for a batch that is on the device; [B, 2C, T, T] with laterals.

        Args:
            view: a name of `eval.tta`, for a batch with the identity's parameters.
            transform: in place of evaluation's: a stage's, which augments.
        """
        transform, parameters = transform or self.transform, batch.augment
        if view is not None:
            transform, parameters = through(view, transform, parameters)
        return transform(batch.pixels, parameters, dtype, memory_format(self.recipe))

    def logits(
        self, model: nn.Module, batch: Batch, view: str | None = None, transform: DeviceTransform | None = None
    ) -> Tensor:
        """Float32 logits [B, C] of `model`, which is `module` or what wraps it; the rest as for `inputs`.

        Only the network computes with few bits: its input is made in float32 and rounded once, to what the network's
        first layer would round it to.
        """
        images = self.inputs(batch, view, transform, self.runtime.compute_dtype)
        with self.runtime.autocast():
            if self.mode == "eager":
                return self.call(model, images, batch)
            return self._call_compiled(model, images, batch)

    def features(self, batch: Batch) -> Tensor:
        """What `module` makes of a batch before any head, float32 [B, D]; computed with as few bits as logits are."""
        images = self.inputs(batch, dtype=self.runtime.compute_dtype)
        with self.runtime.autocast():
            return pooled_features(self.module, images).float()

    def maps(self, batch: Batch) -> Tensor:
        """The last feature map before pooling, float32 [B, N, K]; computed as features are."""
        images = self.inputs(batch, dtype=self.runtime.compute_dtype)
        with self.runtime.autocast():
            return last_map(self.module, images).float()

    def call(self, model: nn.Module, images: Tensor, batch: Batch) -> Tensor:
        """Float32 logits [B, C] for images that `inputs` made, in the precision that surrounds the call."""
        logits: Tensor = model(images, batch.metadata) if self.recipe.metadata else model(images)
        return logits.float()

    def _call_compiled(self, model: nn.Module, images: Tensor, batch: Batch) -> Tensor:
        """The same with every batch filled up to one size: another size would be compiled anew."""
        num, lacking = len(images), self.plan.per_device_batch_size - len(images)
        if lacking:
            rows = torch.arange(self.plan.per_device_batch_size, device=images.device).clamp(max=num - 1)
            images = images[rows].contiguous(memory_format=memory_format(self.recipe))
            batch = replace(batch, metadata=batch.metadata[rows])
        if self.mode == "graphs":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        logits = self.call(model, images, batch)[:num]
        return logits.clone() if self.mode == "graphs" else logits  # the next replay writes into the same memory


def _plain(_: int, positions: NDArray[np.int64]) -> Tensor:
    return identity_parameters(len(positions))
