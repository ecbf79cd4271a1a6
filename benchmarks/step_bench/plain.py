"""Two plain loops: the smallest with the same precision, and the usual one."""

from __future__ import annotations

import torch
from torch.nn import functional

from step_bench.data import build_network, normalised
from step_bench.job import Job
from step_bench.meter import Meter

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}


def train(job: Job, meter: Meter) -> None:
    """Train until the meter ends."""
    meter.starts_building()
    (minimal if job.loop == "minimal" else usual)(job, meter)


def minimal(job: Job, meter: Meter) -> None:
    """Autocast and channels_last, and nothing else."""
    model = build_network(job.model, job.image_size, job.device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler(job.device, enabled=job.precision == "fp16")
    meter.facts["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    for images, labels in meter.batches(normalised(job, torch.channels_last)):
        with torch.autocast(job.device, DTYPES[job.precision], enabled=job.precision != "no"):
            loss = functional.binary_cross_entropy_with_logits(model(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


def usual(job: Job, meter: Meter) -> None:
    """Float32 and PyTorch's defaults, whatever the precision of the others."""
    torch.set_float32_matmul_precision("highest")  # PyTorch's default; convolutions use TF32 by default
    model = build_network(job.model, job.image_size, job.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    criterion = torch.nn.BCEWithLogitsLoss()
    meter.facts["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    losses = []
    for images, labels in meter.batches(normalised(job, torch.contiguous_format)):
        optimizer.zero_grad()
        loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
