"""A loop in a process of its own: `python -m step_bench.worker READ_FD WRITE_FD`, started by `conduct.py`."""

from __future__ import annotations

import importlib
import logging
import sys
import traceback

import torch

from step_bench.job import Channel, Job
from step_bench.loops import CEILING, LOOPS
from step_bench.meter import Meter


def main() -> int:
    """Serve until the other end hangs up; the reason of a failure is the last message."""
    channel = Channel(*map(int, sys.argv[1:]))
    message = channel.receive()
    if message is None:
        return 0
    job = Job(**message)
    logging.basicConfig(level=logging.INFO)
    torch.set_num_threads(job.threads)
    # As a recipe has it, for all loops alike.
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        loop = importlib.import_module((LOOPS | {"ceiling": CEILING})[job.loop].module)
        meter = Meter(channel, torch.device(job.device))
        meter.facts["version"] = torch.__version__
        loop.train(job, meter)
    except BrokenPipeError:
        return 0
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        channel.send({"failed": f"{type(error).__name__}: {lines[0]}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
