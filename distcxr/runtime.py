"""The processes of a run: Accelerate set-up, who is which rank, seeding, logging.

Rank and world size are asked for here and in `metrics.gather` alone; everything else is told.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import platform
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs, InitProcessGroupKwargs
from rich.console import Console
from rich.logging import RichHandler
from torch import Tensor, nn

from distcxr.data.loaders.budget import thread_budget
from distcxr.data.order import hash64
from distcxr.recipe import Recipe

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Long enough for rank 0 to write a checkpoint to a slow disk, short enough that a lost rank does not cost the night.
COLLECTIVE_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class Runtime:
    """Where this process stands among the processes of the run."""

    accelerator: Accelerator
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device
    backend: str
    """`nccl`, `gloo`, or `none` for a single process."""

    @property
    def is_main(self) -> bool:
        """Rank 0: the one that writes files and speaks."""
        return self.rank == 0

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        """The sum of every rank's `tensor`, in place; no host sync on a GPU."""
        if self.world_size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def decided_by_main(self, decide: Callable[[], T]) -> T:
        """What `decide` returns on rank 0, on every rank; a ValueError there is raised on every rank, too.

        Pickled, but only ever between the processes of one run.
        """
        said: list[tuple[T | None, str | None]] = [(None, None)]
        if self.is_main:
            try:
                said[0] = (decide(), None)
            except ValueError as error:
                said[0] = (None, str(error))
        if self.world_size > 1:
            torch.distributed.broadcast_object_list(said, src=0, device=self.device)
        value, problem = said[0]
        if problem is not None:
            raise ValueError(problem)
        return cast(T, value)

    def done_by_all(self, work: Callable[[], T]) -> T:
        """What `work` returns on this rank; a ValueError on any rank is raised on every rank, the lowest one's.

        For what may be wrong on one node alone, such as its disk: the other ranks would wait for it until they find
        the connection closed, and bury its reason under their own.
        """
        value, problem = None, None
        try:
            value = work()
        except ValueError as error:
            problem = str(error)
        problems = [problem]
        if self.world_size > 1:
            problems *= self.world_size
            torch.distributed.all_gather_object(problems, problem)
        for said in problems:
            if said is not None:
                raise ValueError(said)
        return cast(T, value)

    def broadcast_buffers(self, module: nn.Module) -> None:
        """Give every rank rank 0's buffers: BatchNorm statistics drift apart after every step."""
        if self.world_size > 1:
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def wait_for_all(self) -> None:
        """Barrier."""
        self.accelerator.wait_for_everyone()

    def seed_step(self, seed: int, step: int, micro_step: int) -> None:
        """Seed dropout by what it is for, so that a resumed run needs no saved random state."""
        torch.manual_seed(int(hash64(seed, step, micro_step, self.rank)) >> 1)

    def close(self) -> None:
        """Leave the process group."""
        if self.world_size > 1:
            # DDP is in reference cycles and keeps the group: both would go with the interpreter. A group that is never
            # destroyed is known to end that with SIGABRT, after all is done (pytorch#190489).
            gc.collect()
            self.accelerator.end_training()
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


def start_runtime(recipe: Recipe) -> Runtime:
    """Join the other processes and set what the recipe says about precision.

    The recipe wins over the launcher's flags; a disagreement is logged.

    Raises:
        ValueError: a precision that the device does not have, or a launcher that started another number of
            processes than Accelerate sees.
    """
    _die_with_launcher()
    use_cpu = not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1")
    _check_device(recipe, use_cpu)
    for line in _overrule_launcher(recipe):
        logger.warning(line)
    accelerator = Accelerator(
        cpu=use_cpu,
        mixed_precision=recipe.train.precision,
        dynamo_backend="no",  # train.compile compiles the module itself, before DDP wraps it
        kwargs_handlers=[InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT), _exchange(recipe)],
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise ValueError(
            f"the launcher started WORLD_SIZE={launched} processes, but Accelerate sees {accelerator.num_processes}: "
            "each would train alone. On a machine without GPUs use "
            "`accelerate launch --multi_gpu --num_processes N launch.py ...` (`--cpu` starts one process)."
        )
    torch.set_float32_matmul_precision("high" if recipe.train.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = recipe.train.tf32
    torch.backends.cudnn.benchmark = True
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if use_cpu:
        # The launcher gives every process one thread; the cores are shared out among the ranks instead.
        torch.set_num_threads(thread_budget(local_world_size))
    return Runtime(
        accelerator=accelerator,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        local_rank=accelerator.local_process_index,
        local_world_size=local_world_size,
        device=accelerator.device,
        backend=torch.distributed.get_backend() if torch.distributed.is_initialized() else "none",
    )


def _exchange(recipe: Recipe) -> DistributedDataParallelKwargs:
    """How DDP exchanges gradients; Accelerate hands on only what differs from PyTorch's defaults."""
    hooks = {"none": DDPCommunicationHookType.NO, "bf16": DDPCommunicationHookType.BF16}
    return DistributedDataParallelKwargs(
        bucket_cap_mb=recipe.train.bucket_mb, comm_hook=hooks[recipe.train.compress_gradients]
    )


def _die_with_launcher() -> None:
    """Have the kernel end this process when its launcher dies.

    A launcher that is killed leaves its ranks running otherwise: they would go on writing into the run folder beside
    the run that was started in their place. Accelerate's launcher of a single process passes no signal on, it dies of
    it: SIGTERM lets that process save itself. Several ranks could not: they lose each other.
    """
    launched = "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ
    if launched and sys.platform == "linux":
        set_parent_death_signal = 1
        alone = os.environ.get("WORLD_SIZE", "1") == "1"
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM if alone else signal.SIGKILL)


def _check_device(recipe: Recipe, use_cpu: bool) -> None:
    precision = recipe.train.precision
    if use_cpu:
        if precision == "fp16":
            raise ValueError("train.precision=fp16 needs a GPU; on a CPU use bf16 or no")
        return
    # This rank's own device: asking for the default one would open a context on GPU 0 from every rank.
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    if capability < (7, 5) and (torch.version.cuda or "").startswith("13"):
        raise ValueError(
            f"{name} (compute capability {capability[0]}.{capability[1]}) has no kernels in CUDA 13 builds of "
            "PyTorch: install the CUDA 12 ones with `pip install -r requirements/cuda12.txt`"
        )
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(f"{name} has no bfloat16; use train.precision=fp16")


def _overrule_launcher(recipe: Recipe) -> list[str]:
    """Take back what the launcher set in the environment against the recipe; one line for each disagreement."""
    lines = []
    mixed = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if mixed not in ("no", recipe.train.precision):  # `no` is also what the launcher says when nobody asked
        lines.append(f"the launcher says mixed_precision={mixed}, the recipe train.precision={recipe.train.precision}")
    # This variable would override the code's own argument, and Accelerate would then divide every loss by it.
    accumulation = os.environ.pop("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if accumulation != "1":
        lines.append(
            f"the launcher says gradient_accumulation_steps={accumulation}, the recipe says "
            f"train.global_batch_size={recipe.train.global_batch_size}, from which accumulation follows"
        )
    dynamo = os.environ.pop("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if (dynamo != "no") != recipe.train.compile:
        if dynamo != "no":
            lines.append(f"the launcher says dynamo_backend={dynamo}, the recipe train.compile=false")
    return [f"{line}: the recipe wins" for line in lines]


def device_name(device: torch.device) -> str:
    """What the device is sold as."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def start_logging(console: Console) -> None:
    """Log to the terminal: everything from rank 0, errors from the others, with their rank.

    What the others warn of, rank 0 warns of, too: all ranks read the same labels and lists. A line that one rank of
    each node has to say is logged with `extra={"from_any_rank": True}`.
    """
    rank = int(os.environ.get("RANK", "0"))
    handler: logging.Handler
    if sys.stderr.isatty():
        handler = RichHandler(console=console, show_path=False, show_level=False, log_time_format="%H:%M:%S")
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(_formatter(rank))
    if rank > 0:
        handler.addFilter(lambda record: record.levelno >= logging.ERROR or hasattr(record, "from_any_rank"))
    handler.setLevel(logging.INFO)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("distcxr").setLevel(logging.INFO)


def log_to_file(path: Path) -> None:
    """Append rank 0's log to `path`."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_formatter(0))
    logging.getLogger().addHandler(handler)


def _formatter(rank: int) -> logging.Formatter:
    who = f"[rank {rank}] " if rank else ""
    return logging.Formatter(f"%(asctime)s {who}%(message)s", datefmt="%H:%M:%S")
