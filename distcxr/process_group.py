"""The process group of a run: joining and leaving it, waiting for ranks, sums, broadcasts. Only `runtime` uses it."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import check_cuda_p2p_ib_support
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store
from torch.distributed.rendezvous import rendezvous

from distcxr.processes import STORE_VARIABLE

_LEAST_TIMEOUT = timedelta(minutes=10)
_FLIGHT_RECORDER = "TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"

BACKEND_VARIABLE = "DISTCXR_BACKEND"
"""`gloo` in the environment has ranks on GPUs exchange tensors through their host, so that several may share a GPU."""

LONGEST_WAIT_S = 3 * 3600.0
"""Of ranks for a rank that works on the host: a copy of 100 GB at 10 MB/s. Then the missing ranks are named."""

_numbers = itertools.count()  # of the waits of this process; a key of the store is used once
_LONGEST_PAUSE_S = 0.2
_FAREWELL_S = 30.0
_NOTE_EVERY_S = 600.0

_LOST = ("Connection closed by peer", "Connection reset by peer", "gloo/transport", "Broken pipe")
"""In the messages of gloo, which raises a RuntimeError for anything."""

logger = logging.getLogger(__name__)


def own_device() -> torch.device:
    """This rank's GPU, made the current one. Where each rank sees one GPU alone, that one; where there are more ranks
    on a machine than GPUs, they share them."""
    index = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)  # a rank that asks for the default one would open a context on GPU 0
    return device


def collective_timeout(stall_s: float | None) -> timedelta:
    """How long a collective may take, in which ranks only exchange tensors: whatever takes a rank longer is waited for
    on the host. Ten minutes, and longer than a stall may last, after which the run ends with better words."""
    return max(_LEAST_TIMEOUT, timedelta(seconds=2 * (stall_s or 0.0)))


def join(device: torch.device, timeout: timedelta = _LEAST_TIMEOUT) -> None:
    """Join the ranks that the launcher started; nothing to do for a single process.

    Not left to Accelerate, which names no device to NCCL, so that a barrier guesses it, and hands on no time-out that
    equals a default of its own.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ or dist.is_initialized():
        return
    backend = os.environ.get(BACKEND_VARIABLE) or ("nccl" if device.type == "cuda" else "gloo")
    if backend not in ("nccl", "gloo"):
        raise ValueError(f"{BACKEND_VARIABLE}={backend}: give nccl or gloo")
    if backend == "nccl":
        if not any(name in os.environ for name in _FLIGHT_RECORDER):
            os.environ[_FLIGHT_RECORDER[1]] = "2000"  # collectives that it keeps in mind
        if not check_cuda_p2p_ib_support():  # of some consumer cards, without which Accelerate refuses them
            os.environ |= {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"} | os.environ
        dist.init_process_group(backend, timeout=timeout, device_id=device, **_store(timeout))
    else:
        dist.init_process_group(backend, timeout=timeout, **_store(timeout))


def _store(timeout: timedelta) -> dict[str, Any]:
    """Arguments for the store for which rank 0 has inherited a socket, and for one of this attempt alone where a
    launcher of one machine has restarted its ranks; none otherwise.

    Accelerate's launcher keeps one store for all attempts. In it ranks would find addresses of ranks that have ended
    (pytorch's "connectFullMesh failed", or a hang), and everybody to have arrived where all wait for each other. On
    several machines launchers may differ in their count; their c10d rendezvous makes a new store each time.
    """
    if inherited := os.environ.pop(STORE_VARIABLE, None):
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        store = dist.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world_size, is_master=rank == 0, timeout=timeout,
            master_listen_fd=int(inherited) if rank == 0 else None,
        )  # fmt: skip
        return {"store": store, "rank": rank, "world_size": world_size}
    attempt, ranks = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), os.environ["WORLD_SIZE"]
    if attempt == "0" or os.environ.get("LOCAL_WORLD_SIZE") != ranks:
        return {}
    store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    return {"store": PrefixStore(f"attempt_{attempt}", store), "rank": rank, "world_size": world_size}


def wait_for_all() -> None:
    """Return once every rank has called it as often as this one.

    Through the store that the launcher joined the ranks with. A collective would end after its time-out, and NCCL's
    would keep the GPU busy meanwhile. Ranks that die are the launcher's to notice, which ends the others.

    Raises:
        RuntimeError: a rank did not come within `LONGEST_WAIT_S`; names it.
    """
    _arrive(f"distcxr/{next(_numbers)}")


def leave() -> None:
    """Wait for every rank, then leave the group: rank 0 last, as its process may hold the store."""
    name = f"distcxr/{next(_numbers)}"
    _arrive(name)
    store, rank, others = _get_default_store(), dist.get_rank(), dist.get_world_size() - 1
    if rank > 0:
        store.add(f"{name}/left", 1)
    else:
        _poll(lambda: store.add(f"{name}/left", 0) == others, at_most_s=_FAREWELL_S)
    # DDP is in reference cycles and keeps the group: both would go with the interpreter. A group that is never
    # destroyed is known to end that with SIGABRT, after all is done (pytorch#190489).
    gc.collect()
    dist.destroy_process_group()


def write_flight_record(path: Path) -> bool:
    """Write NCCL's flight record, the newest collectives and how far each came; False where there is no NCCL.

    Raises:
        OSError, RuntimeError: it can't be written, or not be read.
    """
    if not dist.is_initialized() or dist.get_backend() != "nccl":
        return False
    path.write_bytes(torch._C._distributed_c10d._dump_nccl_trace())  # type: ignore[attr-defined]
    return True


def begin_sum(tensor: Tensor) -> Callable[[], Tensor]:
    """Begin to sum every rank's `tensor`, in place; the result's call waits for the sum and returns it.

    With NCCL it is the device's stream that waits, not the host.
    """
    work = dist.all_reduce(tensor, async_op=True)
    assert work is not None

    def wait() -> Tensor:
        work.wait()
        return tensor

    return wait


def broadcast_from_main(tensors: list[Tensor]) -> None:
    """Give every rank rank 0's tensors, in one exchange a dtype."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        same = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in same])
        dist.broadcast(flat, src=0)
        parts = torch.split(flat, [tensor.numel() for tensor in same])
        torch._foreach_copy_(same, [part.view(tensor.shape) for part, tensor in zip(parts, same, strict=True)])


def _arrive(name: str) -> None:
    store, world_size, started_s = _get_default_store(), dist.get_world_size(), time.monotonic()
    store.set(f"{name}/rank {dist.get_rank()}", "")
    if store.add(f"{name}/arrived", 1) == world_size:
        store.set(f"{name}/complete", "")
    while not _poll(lambda: store.check([f"{name}/complete"]), at_most_s=min(_NOTE_EVERY_S, LONGEST_WAIT_S)):
        missing = [rank for rank in range(world_size) if not store.check([f"{name}/rank {rank}"])]
        waited_s = time.monotonic() - started_s
        shown = f"rank {', '.join(map(str, missing))} for {waited_s / 60:.0f} minutes"
        if waited_s >= LONGEST_WAIT_S:
            raise RuntimeError(f"waited for {shown}; the longest wait is {LONGEST_WAIT_S / 60:.0f}")
        logger.info(f"waiting for {shown}")


def _poll(done: Callable[[], bool], at_most_s: float) -> bool:
    """Call `done` until it is true or time is up; its last result. A wait in the store would hold up signals."""
    pause_s, started_s = 0.001, time.monotonic()
    while not (is_done := done()) and time.monotonic() - started_s < at_most_s:
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
    return is_done


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error means that another process is gone or silent, and not that this one did something wrong."""
    if isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _LOST)
