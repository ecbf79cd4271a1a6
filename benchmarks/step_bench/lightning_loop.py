"""A loop of Lightning's Trainer."""

from __future__ import annotations

from collections.abc import Iterator

import lightning
import torch
from torch import Tensor
from torch.nn import functional

from step_bench.data import build_network, normalised
from step_bench.job import Job
from step_bench.meter import Meter

PRECISIONS = {"bf16": "bf16-mixed", "fp16": "16-mixed", "no": "32-true"}


class Module(lightning.LightningModule):
    """The network, its loss and its optimiser."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return functional.binary_cross_entropy_with_logits(self.network(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


class Batches:
    """The meter's batches, with a length: without one, Lightning looks a batch ahead for the end."""

    def __init__(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._batches

    def __len__(self) -> int:
        return 10**9


def train(job: Job, meter: Meter) -> None:
    """Train until the meter ends."""
    meter.starts_building()
    meter.facts["version"] = lightning.__version__
    network = build_network(job.model, job.image_size, job.device).to(memory_format=torch.channels_last)
    meter.facts["parameters"] = sum(parameter.numel() for parameter in network.parameters())
    trainer = lightning.Trainer(
        accelerator="gpu" if job.device == "cuda" else "cpu", devices=1, precision=PRECISIONS[job.precision],
        max_epochs=1, barebones=True, benchmark=True, default_root_dir=job.output,
    )  # fmt: skip
    trainer.fit(Module(network), Batches(meter.batches(normalised(job, torch.channels_last))))
