"""A loop in the shape of torchvision's references/classification."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, field

import torch
import torchvision
from torch import Tensor

from step_bench.data import build_network, normalised
from step_bench.job import Job
from step_bench.meter import Meter
from step_bench.plain import DTYPES

logger = logging.getLogger(__name__)
LOG_EVERY = 10


@dataclass
class Smoothed:
    """A figure's last values and its mean over all."""

    recent: deque[float] = field(default_factory=lambda: deque(maxlen=20))
    total: float = 0.0
    count: int = 0

    def update(self, value: float, num: int = 1) -> None:
        self.recent.append(value)
        self.total += value * num
        self.count += num

    def __str__(self) -> str:
        return f"{torch.tensor(list(self.recent)).median().item():.4f} ({self.total / self.count:.4f})"


def train(job: Job, meter: Meter) -> None:
    """Train until the meter ends."""
    meter.starts_building()
    meter.facts["version"] = torchvision.__version__
    model = build_network(job.model, job.image_size, job.device)
    criterion = torch.nn.BCEWithLogitsLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    scaler = torch.amp.GradScaler(job.device) if job.precision == "fp16" else None
    meter.facts["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    logged = {name: Smoothed() for name in ("loss", "lr", "right", "all right", "img/s", "time", "data")}
    ended_s = time.time()
    for step, (images, labels) in enumerate(meter.batches(normalised(job, torch.contiguous_format))):
        logged["data"].update(time.time() - ended_s)
        started_s = time.time()
        images, labels = images.to(job.device), labels.to(job.device)
        with torch.autocast(job.device, DTYPES[job.precision], enabled=job.precision != "no"):
            logits = model(images)
            loss = criterion(logits, labels)
        optimizer.zero_grad()
        if scaler is not None:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        else:
            loss.backward()
            optimizer.step()
        right, all_right = accuracy(logits, labels)
        logged["loss"].update(loss.item())
        logged["lr"].update(optimizer.param_groups[0]["lr"])
        logged["right"].update(right.item(), len(images))
        logged["all right"].update(all_right.item(), len(images))
        logged["img/s"].update(len(images) / (time.time() - started_s))
        logged["time"].update(time.time() - ended_s)
        if step % LOG_EVERY == 0:
            logger.info(f"{step}: {', '.join(f'{name} {figure}' for name, figure in logged.items())}")
        ended_s = time.time()


def accuracy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Percent of findings that are right, and of images with all findings right: what top 1 and 5 are for classes."""
    with torch.inference_mode():
        right = (logits > 0) == (labels > 0.5)
        return 100 * right.float().mean(), 100 * right.all(1).float().mean()
