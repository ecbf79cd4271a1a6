"""Image files decoded in worker processes of a torch DataLoader: the reader that runs anywhere.

    requests ──► _Feed (main process) ──► workers: file names in, uint8 pixels out ──► Pixels, in the order asked

A worker is sent file names and holds no table, so its memory does not grow with the data set. The workers live as
long as the reader; each `read` hands them another list of requests.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from distcxr import processes
from distcxr.data.loader import Pixels, Request
from distcxr.data.pixels.decode import load_kernels
from distcxr.data.pixels.image_bytes import Locate, Source, UnreadableImage
from distcxr.data.pixels.own_reader import ReadGrey, decode_file
from distcxr.data.pixels.resize import resize_grey
from distcxr.data.readers.semaphores import SemaphoreNames

logger = logging.getLogger(__name__)

_Item = tuple[int, Sequence[Source]]  # which `read` call wants them, the files
_Answer = tuple[Tensor, list[tuple[int, str]]]

# SLURM and Ctrl-C send these to every process of a job. The main process decides what they mean and then stops its
# workers; a worker that dies of one takes away the moment in which a preempted run saves its state.
_JOB_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
_LOOK_EVERY_S = 2.0
_TIMEOUT_S = 60.0  # for one batch
_DIED = "a decoding worker died, killed from outside or out of memory"
_SHM = Path("/dev/shm")


class SmallSharedMemory(RuntimeError):
    """/dev/shm has no room for the batches in flight."""


class StalledWorkers(RuntimeError):
    """A batch took longer than a healthy worker and disk ever take."""


class ReaderDied(RuntimeError):
    """A worker process ended in the middle of its work."""


class TorchReader:
    """A `PixelReader` on torch's DataLoader.

    Workers come from a fork server that has torch imported: forking the training process itself is unsafe once it
    runs CUDA or gloo threads, and plain spawn would import torch anew in each worker. A worker re-imports the main
    script, so that keeps its heavy imports inside functions.

    Batches travel through /dev/shm. Each `read` first checks that those in flight fit there, because otherwise a
    worker dies of a bus error.
    """

    def __init__(
        self,
        locate: Locate,
        image_size: int,
        *,
        num_workers: int,
        prefetch: int = 2,
        pin_memory: bool,
        read_grey: ReadGrey = decode_file,
    ) -> None:
        """Start the fork server, which imports torch beside what the caller does; the workers start with the first
        `read`. Without any, `num_workers` 0, the calling process decodes, with nothing read ahead; each of them works
        `prefetch` requests ahead."""
        assert num_workers >= 0 and prefetch >= 1
        if num_workers:
            _start_fork_server()
        load_kernels()
        self.where = (
            f"images are decoded on the CPU by {num_workers} worker process{'es' * (num_workers > 1)}"
            if num_workers
            else "images are decoded on the CPU in the calling process"
        )
        self._num_workers, self._prefetch = num_workers, prefetch
        self._locate, self._pin_memory = locate, pin_memory
        self._dataset = _Decoder(image_size, num_workers, read_grey)
        self._semaphores = SemaphoreNames()
        self._feed = _Feed(locate, self.shared_memory_bytes)
        self._loader: DataLoader[_Answer] | None = None
        self._batches: Iterator[_Answer] | None = None
        self._reading = False

    def read(self, requests: Iterable[Request]) -> Generator[Pixels]:
        """Pixels of each request, in order. Runs at most `prefetch * num_workers` requests ahead.
        Raises StalledWorkers: a batch took longer than a minute; names the workers and their states. RuntimeError:
        a worker died, or /dev/shm is too small."""
        assert not self._reading, "one read at a time: use up or close the one before"
        self._reading = True
        try:
            yield from self._read_in_workers(requests) if self._num_workers else self._read_here(requests)
        finally:
            self._reading = False

    def shared_memory_bytes(self, batch_size: int) -> int:
        """What the batches in flight take in /dev/shm at once."""
        in_flight = self._prefetch * self._num_workers + 1 if self._num_workers else 0
        return in_flight * batch_size * self._dataset.image_size**2

    def close(self) -> None:
        """Stop the workers; a later `read` would start new ones."""
        atexit.unregister(self.close)
        batches: Any = self._batches
        self._loader = self._batches = None
        if batches is not None:
            self._dataset.wanted += 1
            batches._shutdown_workers()
            for worker in batches._workers:  # stuck on a dead file system, perhaps: they hold SIGTERM back
                worker.kill()

    def _read_here(self, requests: Iterable[Request]) -> Generator[Pixels]:
        for request in requests:
            pixels, unreadable = self._dataset[int(self._dataset.wanted), self._locate(request)]
            yield Pixels(pixels.pin_memory() if self._pin_memory else pixels, tuple(unreadable))

    def _read_in_workers(self, requests: Iterable[Request]) -> Generator[Pixels]:
        try:
            self._start(requests)
            while (answer := self._next()) is not None:
                if self._semaphores.names and bool(self._dataset.started.all()):
                    self._semaphores.remove()
                pixels, unreadable = answer
                yield Pixels(pixels, tuple(unreadable))
        except GeneratorExit:
            self._dataset.wanted += 1  # the workers skip what nobody wants any more
            self._feed.requests = iter(())
            while self._batches is not None and self._next() is not None:
                pass
            raise
        except BaseException:
            self.close()  # some workers hold answers that nobody will take: the next read starts afresh
            raise

    def _start(self, requests: Iterable[Request]) -> None:
        self._feed.requests, self._feed.wanted_by = iter(requests), int(self._dataset.wanted)
        if self._loader is None:
            self._dataset.started.zero_()
            self._loader = DataLoader(
                self._dataset,
                batch_size=None,
                sampler=self._feed,
                num_workers=self._num_workers,
                prefetch_factor=self._prefetch,
                pin_memory=self._pin_memory,
                timeout=_LOOK_EVERY_S,
                multiprocessing_context="forkserver",
                persistent_workers=True,
                collate_fn=_as_it_is,
                worker_init_fn=_prepare_worker,
                generator=torch.Generator(),  # of its own: the loader takes a seed from it, and dropout's must not move
            )
        with _job_signals_held():  # the fork server inherits this
            try:
                with self._semaphores.made():
                    self._batches = iter(self._loader)
            except (OSError, EOFError) as error:  # the fork server is gone
                raise ReaderDied(f"{_DIED}: {error}") from error
        atexit.unregister(self.close)  # of an earlier read
        atexit.register(self.close)  # before multiprocessing's own exit, which would wait for the workers

    def _next(self) -> _Answer | None:
        """The next answer, None after the last.

        The loader's own time limit is short, because it notices a dead worker only when that has passed; one that is
        merely slow is asked again.
        """
        assert self._batches is not None
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            try:
                return next(self._batches, None)
            except (OSError, EOFError) as error:  # it died while it handed an answer over
                raise ReaderDied(f"{_DIED}: {error}") from error
            except RuntimeError as error:
                if "exited unexpectedly" in str(error):
                    raise ReaderDied(f"{_DIED}: {error}") from error
                if "timed out" not in str(error):
                    raise
                if time.monotonic() > deadline:
                    raise StalledWorkers(f"images of a batch not read in {_TIMEOUT_S:g} s: {self._states()}") from None

    def _states(self) -> str:
        batches: Any = self._batches
        pids = [worker.pid for worker in batches._workers]
        return ", ".join(f"worker process {pid} is {processes.state(pid) or 'gone'}" for pid in pids)


class _Decoder(Dataset[_Answer]):
    """Runs in the workers: file names to pixels."""

    def __init__(self, image_size: int, num_workers: int, read_grey: ReadGrey) -> None:
        self.image_size, self.read_grey = image_size, read_grey
        # In shared memory, which workers have started.
        self.started = torch.zeros(num_workers, dtype=torch.bool)
        self.started.share_memory_()  # type: ignore[no-untyped-call]
        # In shared memory, the number of the `read` call that still wants its answers.
        self.wanted = torch.zeros((), dtype=torch.int64)
        self.wanted.share_memory_()  # type: ignore[no-untyped-call]

    def __getitem__(self, item: _Item) -> _Answer:
        wanted_by, files = item
        pixels = torch.zeros(len(files), 1, self.image_size, self.image_size, dtype=torch.uint8)
        pixels_BHW = pixels.numpy()[:, 0]
        unreadable = []
        for position, file in enumerate(files):
            if int(self.wanted) != wanted_by:
                return pixels[:0], []
            try:
                pixels_BHW[position] = resize_grey(self.read_grey(file), self.image_size)
            except UnreadableImage as error:
                unreadable.append((position, str(error)))
        return pixels, unreadable


class _Feed:
    """The loader's sampler: whatever requests the current `read` was given, pulled one by one."""

    def __init__(self, locate: Locate, shared_memory_bytes: Callable[[int], int]) -> None:
        self.requests: Iterator[Request] = iter(())
        self.wanted_by = 0
        self._locate, self._shared_memory_bytes = locate, shared_memory_bytes

    def __iter__(self) -> Iterator[_Item]:
        checked = False
        while (request := next(self.requests, None)) is not None:
            if not checked:
                check_shared_memory(self._shared_memory_bytes(len(request)))
                checked = True
            yield self.wanted_by, self._locate(request)


def check_shared_memory(needed: int) -> None:
    """Raises SmallSharedMemory: /dev/shm has fewer bytes free than that."""
    if _SHM.is_dir() and shutil.disk_usage(_SHM).free < needed:
        raise SmallSharedMemory(
            f"{_SHM} has {shutil.disk_usage(_SHM).free / 2**20:.0f} MiB free and the workers need "
            f"{needed / 2**20:.0f}: use fewer workers (data.num_workers), data.prefetch=1 or a smaller batch, or give "
            "the container more shared memory (docker run --shm-size)"
        )


def _as_it_is(answer: Any) -> Any:
    return answer


def _start_fork_server() -> None:
    """Start it, unless it runs, without waiting for what it imports: seconds in which this process does other work."""
    # The list holds for the whole process: leave one that somebody else has set.
    if forkserver._forkserver._preload_modules == ["__main__"]:  # type: ignore[attr-defined]
        forkserver.set_forkserver_preload(["torch", __name__, "distcxr.data.pixels.kernels"])
    with _job_signals_held():  # it inherits this
        forkserver.ensure_running()


def _prepare_worker(number: int) -> None:
    """Hold the job's signals back, die with the training process, and let it know that the worker has started.

    torch's own watchdog looks whether the fork server lives, which lives as long as its workers do.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _JOB_SIGNALS)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    load_kernels()
    info: Any = get_worker_info()
    info.dataset.started[number] = True


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _job_signals_held() -> Iterator[None]:
    """Hold the job's signals back in this thread and what it starts; they arrive afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _JOB_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
