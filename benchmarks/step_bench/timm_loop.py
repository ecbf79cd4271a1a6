"""A loop as timm's train.py has it, of timm's parts."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from functools import partial

import timm
import torch
from timm.data.loader import PrefetchLoader
from timm.loss import BinaryCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, NativeScaler
from torch import Tensor

from step_bench.data import MEAN, STD, build_network, make_batches
from step_bench.job import Job
from step_bench.meter import Meter
from step_bench.plain import DTYPES

logger = logging.getLogger(__name__)
LOG_EVERY = 50


def train(job: Job, meter: Meter) -> None:
    """Train until the meter ends."""
    meter.starts_building()
    meter.facts["version"] = timm.__version__
    device = torch.device(job.device)
    model = build_network(job.model, job.image_size, job.device).to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-4, weight_decay=0.01)
    scheduler, _ = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=300, warmup_epochs=5, warmup_lr=1e-5, step_on_epochs=False,
        updates_per_epoch=5000,
    )  # fmt: skip
    loss_fn = BinaryCrossEntropy(smoothing=0.0).to(device)
    autocast = nullcontext if job.precision == "no" else partial(torch.autocast, job.device, DTYPES[job.precision])
    scaler = NativeScaler(device=job.device) if job.precision == "fp16" else None
    meter.facts["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    # Its data sets give uint8 in three channels; the loader normalises them on the device, a batch ahead.
    colour = [(pixels.expand(-1, 3, -1, -1).contiguous(), labels.float()) for pixels, labels in make_batches(job)]
    loader = PrefetchLoader(meter.batches(colour), mean=MEAN, std=STD, device=device)

    losses, data_time, update_time = AverageMeter(), AverageMeter(), AverageMeter()
    model.train()
    optimizer.zero_grad()
    data_started_s = update_started_s = time.time()
    num_updates, num_samples = 0, 0
    images: Tensor
    for images, targets in loader:
        data_time.update(time.time() - data_started_s)
        images = images.contiguous(memory_format=torch.channels_last)
        with autocast():
            loss = loss_fn(model(images), targets)
        if scaler is not None:
            scaler(loss, optimizer, parameters=model.parameters())
        else:
            loss.backward()
            optimizer.step()
        losses.update(loss.item(), len(images))
        num_samples += len(images)
        num_updates += 1
        optimizer.zero_grad()
        now_s = time.time()
        update_time.update(now_s - update_started_s)
        update_started_s = now_s
        if num_updates % LOG_EVERY == 0:
            rates = [group["lr"] for group in optimizer.param_groups]
            logger.info(
                f"{num_updates}: loss {losses.val:.4g} ({losses.avg:.4g}), {update_time.avg:.3f} s, "
                f"{num_samples / update_time.sum:.1f} img/s, lr {sum(rates) / len(rates):.3e}, data {data_time.avg:.3f}"
            )
        scheduler.step_update(num_updates=num_updates, metric=losses.avg)
        data_started_s = time.time()
