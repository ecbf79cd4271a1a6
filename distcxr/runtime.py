"""The processes of a run: Accelerate set-up, who is which rank, seeding.

Only this module, `process_group` and `metrics.gather` ask for rank and world size; all others take them as arguments.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs
from torch import Tensor, nn

from distcxr import process_group
from distcxr.data.order import hash64
from distcxr.data.readers.budget import thread_budget
from distcxr.determinism import set_deterministic
from distcxr.device import check_device, keep_freed_memory, use_arithmetic
from distcxr.launcher_flags import check_asked, overrule, too_many_for_cores
from distcxr.processes import end_with_launcher
from distcxr.recipe import Recipe
from distcxr.stall.watch import use_flight_recorder

logger = logging.getLogger(__name__)
T = TypeVar("T")

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}


@dataclass(frozen=True)
class Runtime:
    """This process's rank, device and precision, and what it exchanges with the other processes of the run."""

    trainer: Accelerator | None
    """Accelerate's object; None for a process that only evaluates, within another program (`alone`)."""
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device
    backend: str
    """`nccl`, `gloo`, or `none` for a single process."""
    compute_dtype: torch.dtype
    """What the network's layers compute in where their precision may be reduced."""

    @property
    def accelerator(self) -> Accelerator:
        """What wraps the network and steps the optimiser; of a run's processes alone."""
        assert self.trainer is not None
        return self.trainer

    def autocast(self) -> AbstractContextManager[object]:
        """Where the network's layers run in `compute_dtype`: what `accelerator.autocast` does for the recipe."""
        full = self.compute_dtype == torch.float32
        return nullcontext() if full else torch.autocast(self.device.type, self.compute_dtype)

    def with_precision(self, precision: str) -> Runtime:
        """The same processes, for a network of another `train.precision`."""
        return replace(self, compute_dtype=_DTYPES[precision])

    @property
    def is_main(self) -> bool:
        """Rank 0: the one that writes files and logs."""
        return self.rank == 0

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        """The sum of every rank's `tensor`, in place; no host sync on a GPU."""
        return self.begin_sum(tensor)()

    def begin_sum(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Begin to sum every rank's `tensor`, in place, beside what follows; the result's call waits for the sum and
        returns it, without a host sync on a GPU."""
        return process_group.begin_sum(tensor) if self.world_size > 1 else lambda: tensor

    def decided_by_main(self, decide: Callable[[], T]) -> T:
        """What `decide` returns on rank 0, on every rank; a ValueError there is raised on every rank, too.

        Pickled, but only ever between the processes of one run.
        """
        outcome: list[tuple[T | None, str | None]] = [(None, None)]
        if self.is_main:
            try:
                outcome[0] = (decide(), None)
            except ValueError as error:
                outcome[0] = (None, str(error))
        if self.world_size > 1:
            process_group.wait_for_all()  # what rank 0 does may take longer than a collective waits
            torch.distributed.broadcast_object_list(outcome, src=0, device=self.device)
        value, problem = outcome[0]
        if problem is not None:
            raise ValueError(problem)
        return cast(T, value)

    def done_by_all(self, work: Callable[[], T]) -> T:
        """What `work` returns on this rank; a ValueError on any rank is raised on every rank, the lowest one's.

        For what may be wrong on one node alone, such as its disk: the other ranks would wait for it until they find
        the connection closed, and report that instead.
        """
        value, problem = None, None
        try:
            value = work()
        except ValueError as error:
            problem = str(error)
        problems = [problem]
        if self.world_size > 1:
            problems *= self.world_size
            process_group.wait_for_all()  # a large copy to one node's disk takes longer than a collective waits
            torch.distributed.all_gather_object(problems, problem)
        for problem in problems:
            if problem is not None:
                raise ValueError(problem)
        return cast(T, value)

    def broadcast_buffers(self, module: nn.Module) -> None:
        """Give every rank rank 0's buffers: BatchNorm statistics drift apart after every step."""
        if self.world_size > 1:
            process_group.broadcast_from_main(list(module.buffers()))

    def wait_for_all(self) -> None:
        """Return once every rank is here, however long that takes; the device continues its queued work."""
        if self.world_size > 1:
            process_group.wait_for_all()

    @contextmanager
    def main_of_machine_first(self) -> Iterator[None]:
        """Have one process of every machine go through the block before the others do."""
        if self.local_rank > 0:
            self.wait_for_all()
        yield
        if self.local_rank == 0:
            self.wait_for_all()

    def seed_step(self, seed: int, step: int, micro_batch: int) -> None:
        """Seed dropout by what it is for, so that a resumed run needs no saved random state.

        Args:
            micro_batch: its number in the global batch, `BatchPlan.micro_batch`: where micro-batches are of one size,
                any number of ranks has the same dropout masks.
        """
        torch.manual_seed(int(hash64(seed, step, micro_batch, 0)) >> 1)

    def close(self) -> None:
        """Leave the process group, once all ranks are here."""
        if self.world_size > 1:
            self.accelerator.free_memory()  # it holds DDP
            process_group.leave()


def start_runtime(recipe: Recipe) -> Runtime:
    """Join the other processes and apply the recipe's precision.

    The recipe wins over the launcher's flags; a disagreement is logged.

    Raises:
        ValueError: a precision that the device does not have, or a launcher that started another number of
            processes than Accelerate sees.
    """
    end_with_launcher()
    set_deterministic(recipe.train.deterministic)
    use_cpu = not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1")
    device = torch.device("cpu") if use_cpu else process_group.own_device()
    check_device(recipe, device)
    process_group.join(device, process_group.collective_timeout(recipe.train.stall_s))
    use_flight_recorder(process_group.write_flight_record)
    check_asked()
    for line in overrule(recipe):
        logger.warning(line)
    # Else it gives DDP the rank as the GPU's number, which is wrong where each rank sees one GPU alone.
    os.environ["ACCELERATE_BYPASS_DEVICE_MAP"] = "true"
    accelerator = Accelerator(
        cpu=use_cpu,
        mixed_precision=recipe.train.precision,
        dynamo_backend="no",  # train.compile compiles the module itself, before DDP wraps it
        kwargs_handlers=[_exchange(recipe)],
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise ValueError(
            f"the launcher started WORLD_SIZE={launched} processes, but Accelerate sees {accelerator.num_processes}: "
            "each would train alone. On a machine without GPUs use "
            "`accelerate launch --multi_gpu --num_processes N launch.py ...` (`--cpu` starts one process)."
        )
    use_arithmetic(recipe)
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if use_cpu:
        # The launcher gives every process one thread; the cores are shared out among the ranks instead.
        torch.set_num_threads(thread_budget(local_world_size))
        keep_freed_memory()
        if shared := too_many_for_cores(local_world_size, len(os.sched_getaffinity(0))):
            logger.warning(shared)
    return Runtime(
        trainer=accelerator,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        local_rank=accelerator.local_process_index,
        local_world_size=local_world_size,
        device=accelerator.device,
        backend=torch.distributed.get_backend() if torch.distributed.is_initialized() else "none",
        compute_dtype=_DTYPES[recipe.train.precision],
    )


def alone(device: torch.device, precision: str) -> Runtime:
    """This process by itself, within a program that is not ours: it joins nobody and changes no setting."""
    return Runtime(
        trainer=None, rank=0, world_size=1, local_rank=0, local_world_size=1, device=device, backend="none",
        compute_dtype=_DTYPES[precision],
    )  # fmt: skip


def _exchange(recipe: Recipe) -> DistributedDataParallelKwargs:
    """How DDP exchanges gradients; Accelerate hands on only what differs from PyTorch's defaults.

    Buffers are left alone: in training BatchNorm measures what it computes with, and evaluation, checkpoints and stages
    that freeze it take rank 0's statistics, which no broadcast would change. A gradient is written into its bucket and
    read from there: with the broadcast, that saves 727 copies a step of DenseNet-121.
    """
    hooks = {"none": DDPCommunicationHookType.NO, "bf16": DDPCommunicationHookType.BF16}
    return DistributedDataParallelKwargs(
        broadcast_buffers=False, gradient_as_bucket_view=True, bucket_cap_mb=recipe.train.bucket_mb,
        comm_hook=hooks[recipe.train.compress_gradients],
    )  # fmt: skip
