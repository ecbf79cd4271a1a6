"""The device's upper limit: repeated products of large matrices."""

from __future__ import annotations

import torch

from step_bench.job import Job
from step_bench.meter import Meter
from step_bench.plain import DTYPES

SIDES = {"cuda": 8192, "cpu": 2048}


def train(job: Job, meter: Meter) -> None:
    """Multiply until the meter ends."""
    side, dtype = SIDES[job.device], DTYPES[job.precision]
    meter.starts_building()
    meter.facts["flop"] = 2 * side**3
    a, b = (torch.randn(side, side, device=job.device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    for _ in meter.batches([None]):
        torch.mm(a, b, out=out)
