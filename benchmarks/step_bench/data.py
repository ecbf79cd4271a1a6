"""The same images, labels and network for every loop."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn

from step_bench.job import NUM_BATCHES, NUM_FINDINGS, Job

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SIZED = ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14")
_PREVALENCE = 0.05


def make_batches(job: Job) -> list[tuple[Tensor, Tensor]]:
    """Grey pixels uint8 [B, 1, S, S] and labels uint8 [B, C] on the device, whatever loop asks."""
    generator = torch.Generator().manual_seed(0)
    shape = (job.batch, 1, job.image_size, job.image_size)
    return [
        (
            torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(job.device),
            (torch.rand(job.batch, NUM_FINDINGS, generator=generator) < _PREVALENCE).byte().to(job.device),
        )
        for _ in range(NUM_BATCHES)
    ]


def normalised(job: Job, memory_format: torch.memory_format) -> list[tuple[Tensor, Tensor]]:
    """The same as a network takes it: float32 [B, 3, S, S] in that layout, and labels float32 [B, C]."""
    mean, std = (torch.tensor(values, device=job.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return [
        (((pixels / 255 - mean) / std).contiguous(memory_format=memory_format), labels.float())
        for pixels, labels in make_batches(job)
    ]


def build_network(model: str, image_size: int, device: str) -> nn.Module:
    """torchvision's network with random weights, on the device, in training mode."""
    size = {"image_size": image_size} if model in _SIZED else {}
    network: nn.Module = torchvision.models.get_model(model, weights=None, num_classes=NUM_FINDINGS, **size)
    return network.to(device)
