"""Markers: `world_size(n)` runs a test in n gloo processes, `gpu` needs a CUDA device, `slow` takes over 10 s."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest
import torch

WORLD_TIMEOUT_S = 240
_FORKSERVER = multiprocessing.get_context("forkserver")
_FORKSERVER.set_forkserver_preload(  # what ranks import, which costs each of them more than it computes
    [
        "torch",
        "torch.distributed",
        "torch.utils.tensorboard",
        "torchvision",
        "accelerate",
        "timm",
        "pandas",
        "jinja2",
        "pytest",
        "distcxr.cli",
        "distcxr.data.readers.torch_reader",
        "distcxr.data.pixels.kernels",
        "distcxr.engine.build",
        "distcxr.engine.fit",
        "distcxr.phantom.writing",
        "distcxr.report.page",
    ]
)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "world_size(n): run the test's body in n processes joined by gloo")
    config.addinivalue_line("markers", "gpu: needs a CUDA device")
    config.addinivalue_line("markers", "slow: takes more than about 10 s")
    if "DISTCXR_TESTS_PHANTOMS" not in os.environ:  # xdist's workers and the ranks inherit tiny.py's folder
        os.environ["DISTCXR_TESTS_PHANTOMS"] = folder = tempfile.mkdtemp(prefix="distcxr-phantoms-")
        config.add_cleanup(lambda: shutil.rmtree(folder))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and this machine has none")


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a `world_size(n)` test in n processes; it fails when any rank fails, is silent or sees another world."""
    marker = pyfuncitem.get_closest_marker("world_size")
    if marker is None:
        return None
    (world_size,) = marker.args
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    name = pyfuncitem.originalname
    errors = _run_world(world_size, pyfuncitem.path, name, arguments)
    if errors:
        pytest.fail("\n".join(errors), pytrace=False)
    return True


@pytest.fixture(scope="session")
def in_world() -> Callable[..., None]:
    """Runs a function of a test's file in a world: `(world_size, function, ...)`. For tests that need several."""

    def run(world_size: int, function: Callable[..., None], **arguments: Any) -> None:
        errors = _run_world(world_size, Path(function.__code__.co_filename), function.__name__, arguments)
        if errors:
            pytest.fail("\n".join(errors), pytrace=False)

    return run


def _run_world(world_size: int, file: Path, function: str, arguments: dict[str, Any]) -> list[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    workers, pipes = [], []
    for rank in range(world_size):
        receiver, sender = _FORKSERVER.Pipe(duplex=False)
        worker = _FORKSERVER.Process(
            target=_rank_main, args=(rank, world_size, port, file, function, arguments, sender)
        )
        worker.start()
        sender.close()
        workers.append(worker)
        pipes.append(receiver)
    errors, waiting = [], dict(zip(pipes, range(world_size), strict=True))
    deadline = time.monotonic() + WORLD_TIMEOUT_S
    while waiting:
        ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            errors += [
                f"rank {rank} of {world_size} did not finish in {WORLD_TIMEOUT_S} s" for rank in waiting.values()
            ]
            break
        for pipe in ready:
            rank = waiting.pop(pipe)  # type: ignore[arg-type]
            try:
                error = pipe.recv()  # type: ignore[union-attr]
            except EOFError:
                error = "the process died"
            if error is not None:
                errors.append(f"rank {rank} of {world_size}: {error}")
        if errors:  # the others may wait for this rank for ever: give them a moment to report their reason, too
            deadline = min(deadline, time.monotonic() + 5)
    for worker in workers:
        worker.join(timeout=0 if errors else 30)
        worker.kill()
        worker.join()
    return errors


def _rank_main(
    rank: int, world_size: int, port: int, file: Path, function: str, arguments: dict[str, Any], sender: Connection
) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1",
    )  # fmt: skip
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # a reader may have started the server, with the job's signals held
    try:
        torch.set_num_threads(1)
        torch.distributed.init_process_group("gloo")
        assert torch.distributed.get_world_size() == world_size
        sys.path.insert(0, str(Path(__file__).parent))
        spec = importlib.util.spec_from_file_location(f"world_{file.stem}", file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        getattr(module, function)(**arguments)
        torch.distributed.barrier()
        sender.send(None)
    except BaseException:
        sender.send(traceback.format_exc())
        os._exit(1)  # a tidy shutdown would wait for ranks that are stuck
    torch.distributed.destroy_process_group()
