"""What a stage trains with: the wrapped network, optimiser, loader, loss and augmentation."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from distcxr.data.augment import DeviceTransform, draw_parameters
from distcxr.data.loader import Loader
from distcxr.engine.setup import Setup
from distcxr.engine.stages import Stage
from distcxr.loss_building import build_loss
from distcxr.losses import LossFunction
from distcxr.models.depth import embedding_names, layer_depths
from distcxr.models.fewer_kernels import BatchCounts
from distcxr.models.freeze import set_trainable, training_mode
from distcxr.optim import build_optimizer

logger = logging.getLogger(__name__)


class Training:
    """All that is exchanged when a stage begins.

    Attributes:
        stage: the one that is being trained.
        model: the bare network as Accelerate prepared it; DDP with several ranks.
        optimizer: over the stage's parameters, as Accelerate prepared it.
        loader: the stage's images, augmented as it defines.
        loss: what the stage minimises; validation reports the recipe's own.
        transform: the stage's augmentation.
        batch_counts: of the network's BatchNorm layers.
    """

    stage: Stage
    model: nn.Module
    optimizer: Any
    loader: Loader
    loss: LossFunction
    transform: DeviceTransform
    batch_counts: BatchCounts

    def __init__(self, setup: Setup, stage: Stage) -> None:
        self._setup = setup
        self.batch_counts = BatchCounts(setup.module)
        self._enter(stage, {})

    def begin(self, stage: Stage) -> None:
        """Leave the stage so far and enter the next, which keeps its parameters' moments if the recipe asks for it."""
        moments = dict(self.optimizer.state) if stage.carry else {}
        accelerator = self._setup.runtime.accelerator
        if self.model is not self._setup.module:
            # Takes Accelerate's autocast off the bare network, or preparing it again would put a second one around it.
            accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        del self.model, self.optimizer
        accelerator.free_memory()  # it holds both, too: DDP's buckets, the moments of what is frozen now
        self._enter(stage, moments)

    def _enter(self, stage: Stage, moments: dict[Tensor, dict[str, Any]]) -> None:
        setup, recipe = self._setup, self._setup.recipe
        set_trainable(setup.module, stage.parameters)
        training_mode(setup.module, recipe.train.frozen_bn)
        optim = recipe.optim
        optimizer = build_optimizer(
            optim.name, setup.module.named_parameters(), lr=stage.base_lr, weight_decay=optim.weight_decay,
            betas=optim.betas, momentum=optim.momentum, nesterov=optim.nesterov,
            decay_all=optim.decay_all, layer_decay=optim.layer_decay or 1.0,
            undecayed=() if optim.decay_embeddings else embedding_names(setup.module),
            depths=None if optim.layer_decay is None else layer_depths(setup.module),
        )  # fmt: skip
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter in moments:
                    optimizer.state[parameter] = moments[parameter]
        self.stage = stage
        # Ranks measured statistics of their own so far; layers that are frozen from here on compute with them.
        setup.runtime.broadcast_buffers(setup.module)
        # After requires_grad is set: DDP reduces only what requires a gradient when it wraps.
        self.model, self.optimizer = setup.runtime.accelerator.prepare(setup.module, optimizer)
        self.transform = DeviceTransform(stage.augment, setup.transform.mean, setup.transform.std)
        self.loader = Loader(setup.index, stage.order, setup.reader, self._draw_parameters, recipe.metadata)
        self.loss = setup.loss
        if stage.loss != recipe.loss:
            train = setup.splits.train
            loss = build_loss(
                stage.loss, setup.index.targets_NC[train], setup.index.mask_NC[train], setup.index.findings
            )
            self.loss = loss.to(setup.runtime.device)

    def _draw_parameters(self, epoch: int, positions: NDArray[np.int64]) -> Tensor:
        return draw_parameters(self.stage.augment, seed=self._setup.recipe.seed, epoch=epoch, positions=positions)

    def log_stage(self) -> None:
        """Log which stage it is, how much of the network it trains, on how many images and for how long."""
        stage, module = self.stage, self._setup.module
        num_all = len(list(module.parameters()))
        values = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
        of = "all" if len(stage.parameters) == num_all else f"{len(stage.parameters)} of"
        begin = f"{stage.title}: " if stage.title else ""
        for note in stage.order.notes:
            logger.info(f"{begin}{note}")
        logger.info(
            f"{begin}{of} {num_all} parameters train ({values / 1e6:.2f} million numbers), lr {stage.base_lr:g}, "
            f"loss {stage.loss.name}, {len(stage.order.rows):,} images, {stage.horizon.epochs} x "
            f"{stage.horizon.steps_per_epoch} steps"
        )
