"""Opening a dataset and a network together: what `--test`, the verbs of the command line and a training run share.

recipe ──► Dataset ──┐
recipe, checkpoint ──┴─► Setup: network on the device, reader, normalisation, loss
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from importlib import import_module

import numpy as np
import torch
from rich.console import Console
from torch import nn

from distcxr.data.augment import DeviceTransform, input_side, without_augmentation
from distcxr.data.augment.grey_levels import channel_statistics
from distcxr.data.dataset import Dataset, open_dataset
from distcxr.data.loader import PixelReader
from distcxr.data.metadata import check_metadata, metadata_width
from distcxr.data.order import BatchPlan, shuffled
from distcxr.data.pixels.decode import load_kernels
from distcxr.data.readers.choose import choose_reader
from distcxr.determinism import log_deterministic
from distcxr.engine.checkpoint import Checkpoint, load_weights
from distcxr.engine.compatible import check_findings
from distcxr.engine.setup import Setup, memory_format
from distcxr.logs import start_logging
from distcxr.loss_building import build_loss, check_exclusive
from distcxr.models.adapters import add_adapters
from distcxr.models.factory import build_model
from distcxr.models.foundation import trained_statistics, warn_of_statistics
from distcxr.models.recomputed import recompute_blocks
from distcxr.own_parts import open_parts
from distcxr.recipe import Recipe
from distcxr.recipe.augmentation import Statistics
from distcxr.runtime import Runtime, start_runtime

logger = logging.getLogger(__name__)

Adapt = Callable[[Recipe, Checkpoint, Dataset], tuple[Recipe, Checkpoint | None]]
"""(recipe, checkpoint, the recipe's dataset) -> for `build_setup`: a recipe, and the checkpoint to load, if any."""

_STATISTICS_IMAGES = 512


@contextmanager
def opened(recipe: Recipe, checkpoint: Checkpoint, adapt: Adapt) -> Generator[Setup]:
    """All it takes to evaluate a checkpoint on a recipe's dataset: the process joins the others, and leaves at the end.

    Args:
        adapt: `compatible.as_tested` or `embeddings.as_embedder`.

    Raises:
        ValueError: data that can't be read, or a checkpoint that does not fit them or the recipe.
    """
    start_logging(Console(stderr=True))
    runtime = start_runtime(recipe)
    dataset = open_dataset(recipe)
    adapted, loaded = adapt(recipe, checkpoint, dataset)
    plan = evaluation_plan(adapted, runtime)
    with closing(build_setup(adapted, loaded, runtime, dataset, plan)) as setup:
        yield setup
    runtime.close()


def batch_plan(recipe: Recipe, runtime: Runtime) -> BatchPlan:
    """How the recipe's global batch is shared out among the ranks."""
    total = recipe.train.global_batch_size
    return BatchPlan(
        global_batch_size=total,
        per_device_batch_size=recipe.train.per_device_batch_size or max(1, total // runtime.world_size),
        world_size=runtime.world_size,
        rank=runtime.rank,
    )


def evaluation_plan(recipe: Recipe, runtime: Runtime) -> BatchPlan:
    """As many images at once as training has on that many ranks, but on any number of them: no batch is shared out."""
    train, world_size = recipe.train, runtime.world_size
    size = train.per_device_batch_size or -(-train.global_batch_size // world_size)
    return BatchPlan(
        global_batch_size=size * world_size, per_device_batch_size=size, world_size=world_size, rank=runtime.rank
    )


def build_network(recipe: Recipe, findings: Sequence[str], weights: str = "none") -> nn.Module:
    """The recipe's network for these findings, on the CPU, in training mode; errors as `factory.build_model`'s."""
    model = recipe.model
    open_parts(recipe.own_functions(), recipe.sources, only="model.")
    return build_model(
        model.name, library=model.library, num_classes=len(findings), in_chans=model.in_chans,
        image_size=input_side(recipe.data.image_size, recipe.augment), weights=weights, drop_rate=model.drop_rate,
        drop_path=model.drop_path, head=model.head, num_metadata=metadata_width(recipe.metadata),
        num_views=recipe.data.num_views, new_head=model.new_head, findings=findings,
    )  # fmt: skip


def load_network(checkpoint: Checkpoint) -> nn.Module:
    """A checkpoint's network with its weights, on the CPU, in training mode."""
    module = build_network(checkpoint.recipe, checkpoint.meta["findings"])
    load_weights(checkpoint, module)
    return module


def build_setup(
    recipe: Recipe, checkpoint: Checkpoint | None, runtime: Runtime, dataset: Dataset, plan: BatchPlan, *,
    trains: bool = False,
) -> Setup:  # fmt: skip
    """Network, reader and transform on the device; with the checkpoint's weights and statistics where there is one.

    Args:
        plan: `batch_plan` where it trains, `evaluation_plan` elsewhere.
        trains: whether the network has the adapters of `model.lora`, or what they have learnt merged; and whether its
            blocks are recomputed, where the recipe asks for it.
    """
    check_metadata(dataset.index, dataset.splits.train, recipe.model.head.metadata)
    import_module("numba")  # in the block ranks go one after the other
    with runtime.main_of_machine_first():  # one process of a machine compiles
        load_kernels()
    open_parts(recipe.own_functions(), recipe.sources, only="data.reader")
    reader = runtime.done_by_all(
        lambda: choose_reader(
            recipe.data, dataset.index, max_batch_size=plan.per_device_batch_size * recipe.data.num_views,
            device=runtime.device, local_world_size=runtime.local_world_size, first_rows=dataset.splits.train,
            decided_by_main=runtime.decided_by_main,
        )
    )  # fmt: skip
    torch.manual_seed(recipe.seed)
    index, train = dataset.index, dataset.splits.train
    if recipe.model.library != "python":
        import_module(recipe.model.library)
    with runtime.main_of_machine_first():  # one process of a machine downloads weights
        module = build_network(recipe, index.findings, "none" if checkpoint else recipe.model.weights)
    if trains and recipe.model.lora is not None:
        add_adapters(
            module, recipe.model.lora, network=recipe.model.name,
            in_chans=recipe.model.in_chans * recipe.data.num_views,
            side=input_side(recipe.data.image_size, recipe.augment), seed=recipe.seed,
        )  # fmt: skip
    if checkpoint:
        check_findings(checkpoint, index.findings)
        load_weights(checkpoint, module)
        mean, std = tuple(checkpoint.meta["mean"]), tuple(checkpoint.meta["std"])
    else:
        choice, model = recipe.augment.normalize, recipe.model
        measured = None
        if choice == "dataset":
            measured = runtime.decided_by_main(lambda: _measure(dataset, reader, plan.per_device_batch_size))
        if choice == "weights":
            mean, std = trained_statistics(model.weights, model.library, model.name, in_chans=model.in_chans)
        else:
            mean, std = channel_statistics(choice, in_chans=model.in_chans, measured=measured)
            warn_of_statistics(model.weights, mean, std)
    if recipe.loss.name == "cross_entropy":
        for split in ("train", "val", "test"):
            rows = dataset.splits.rows(split)
            check_exclusive(split, index.findings, index.targets_NC[rows], index.mask_NC[rows], index.file_names(rows))
    open_parts(recipe.own_functions(), recipe.sources, only="loss.")
    loss = build_loss(recipe.loss, index.targets_NC[train], index.mask_NC[train], index.findings)
    if trains and recipe.train.gradient_checkpointing:
        recompute_blocks(module, recipe.model.name)
    return Setup(
        recipe=recipe, runtime=runtime, index=index, splits=dataset.splits, hashes=dataset.hashes,
        reader=reader, plan=plan, loss=loss.to(runtime.device),
        module=module.to(runtime.device).to(memory_format=memory_format(recipe)),  # type: ignore[call-overload]
        transform=DeviceTransform(without_augmentation(recipe.augment), mean, std),
    )  # fmt: skip


def _measure(dataset: Dataset, reader: PixelReader, batch_size: int) -> Statistics:
    """Mean and std of grey values in [0, 1] over up to 512 training images, always the same ones."""
    rows = dataset.splits.train
    chosen = rows[shuffled(np.arange(min(len(rows), _STATISTICS_IMAGES)), len(rows), seed=0, epoch=0)]
    parts = [chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size)]
    count, total, squares = 0, 0.0, 0.0
    for pixels, unreadable in reader.read(parts):
        bad = [position for position, _ in unreadable]
        kept = np.delete(pixels.cpu().numpy(), bad, axis=0) / 255.0
        count, total, squares = count + kept.size, total + float(kept.sum()), squares + float((kept**2).sum())
    if not count:
        raise ValueError("augment.normalize=dataset: none of the training images chosen for it can be read")
    mean = total / count
    std = max(squares / count - mean**2, 0.0) ** 0.5
    logger.info(f"training images: mean {mean:.4f}, std {std:.4f} ({len(chosen)} measured)")
    return Statistics(mean=mean, std=max(std, 1e-3))


def log_start(recipe: Recipe, runtime: Runtime, dataset: Dataset) -> None:
    """Log what is read, and who computes where."""
    for line in dataset.describe():
        logger.info(line)
    logger.info(
        f"world size {runtime.world_size} ({runtime.backend}), device {runtime.device}, "
        f"precision {recipe.train.precision}"
    )
    if recipe.train.deterministic:
        log_deterministic()
