"""Measures cases in turns, one window each and over again, so that a busy moment of the machine touches all of them."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import multiprocessing
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from loader_bench.cases import Case, Task
from loader_bench.rank import Window, serve

ANSWER_TIMEOUT_S = 600.0
WARM_UPS = 2  # passes over the rows: a cache checks each the first time and maps its pages the second
COLD_BATCHES = 32  # of a cold cache: reading all of it from a disk in random order could take minutes
_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


class CaseFailed(Exception):
    """A case can't be measured here; the message is the last line of the reason."""


@dataclass
class Measured:
    """What was measured of a case.

    Attributes:
        base_mb: memory of the processes before they opened anything, libraries loaded.
        first_pass: of cases that work on rows, the window in which each row was read for the first time, per rank.
        windows: of each window after that, one `Window` for each rank.
        resident: share of the bytes that were still in memory after they were dropped, worst window; cold cases alone.
        failed: why there is nothing.
    """

    case: Case
    base_mb: float = 0.0
    first_batch_s: float = 0.0
    first_pass: list[Window] = field(default_factory=list)
    windows: list[list[Window]] = field(default_factory=list)
    resident: float = 0.0
    failed: str | None = None

    def img_per_s(self) -> list[float]:
        """Of each window, the ranks' sum."""
        return [sum(part.images / part.seconds for part in parts) for parts in self.windows]

    def core_ms(self) -> float:
        """Median CPU time of an image, all ranks and their children, in milliseconds."""
        return statistics.median(
            1e3 * sum(part.cpu_seconds for part in parts) / sum(part.images for part in parts) for parts in self.windows
        )

    def memory_mb(self) -> float:
        """Largest memory of all ranks together."""
        return max(sum(part.memory_mb for part in parts) for parts in self.windows)


class _Running:
    """The processes of a case."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        context = multiprocessing.get_context("spawn")
        self.barrier = barrier = context.Barrier(len(tasks))  # kept: its name vanishes with the last one who knows it
        self.pipes: list[Connection] = []
        self.processes: list[BaseProcess] = []
        for task in tasks:
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(task, theirs, barrier))
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def ask(self, *command: object) -> None:
        for pipe in self.pipes:
            pipe.send(command)

    def answers(self) -> list[object]:
        """One answer of each rank, or `CaseFailed`."""
        received = []
        for pipe in self.pipes:
            if not pipe.poll(ANSWER_TIMEOUT_S):
                raise CaseFailed(f"no answer in {ANSWER_TIMEOUT_S:.0f} s")
            try:
                received.append(pipe.recv())
            except (EOFError, OSError):
                raise CaseFailed("its process died; out of memory, perhaps, or out of /dev/shm") from None
        reasons = [answer for answer in received if isinstance(answer, str)]
        for reason in sorted(reasons, key=lambda text: "BrokenBarrierError" in text):  # the cause before its echo
            raise CaseFailed(reason.strip().splitlines()[-1])
        return received

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()  # ends `serve`
        for process in self.processes:
            process.join(timeout=20)
            if process.is_alive():
                process.kill()
                process.join()


def measure(
    group: Sequence[Case],
    tasks: Callable[[Case], list[Task]],
    *,
    num_windows: int,
    drop: Callable[[Case], list[str]],
    log: Callable[[str], None],
) -> list[Measured]:
    """Measure the cases of a group in turns.

    Args:
        tasks: the task of each rank of a case.
        drop: files to drop from the page cache before a window of a cold case.
        log: gets a line for each case that fails.
    """
    results = [Measured(case) for case in group]
    with _alive(group, tasks) as running:

        def attempt(number: int, work: Callable[[_Running, Measured], None]) -> None:
            if results[number].failed is None:
                try:
                    work(running[number], results[number])
                except (CaseFailed, OSError) as error:
                    results[number].failed = str(error)
                    log(f"{group[number]}: left out: {error}")
                    running[number].close()

        for number in range(len(group)):  # all import their libraries at the same time: that is not measured
            attempt(number, _wait_ready)
        for number, case in enumerate(group):
            attempt(number, partial(_open, drop(case)))
        for turn in range(-WARM_UPS, num_windows):
            for number, case in enumerate(group):
                if turn >= 0 or (case.kind.rows and case.page_cache == "warm"):
                    attempt(number, partial(_measure_window, drop(case), *window_batches(case, tasks(case)[0])))
                if turn == -1 and results[number].windows:
                    results[number].first_pass = results[number].windows[0]
                    results[number].windows.clear()
    return results


def window_batches(case: Case, task: Task) -> tuple[int, int]:
    """How many batches are thrown away before a window, and how many it counts.

    It counts whole rounds of the files, so every case sees every file equally often whatever it holds ready, and at
    least 32 images a thread, and four batches where it reads ahead, so that what is under way at either end weighs
    little.
    """
    cold = case.page_cache == "cold"
    discard = 0 if cold else case.kind.ahead * case.threads + case.kind.ahead_more
    if case.kind.rows:
        batches = max(1, task.num_rows // case.ranks // task.batch_size)
        # Warm is every row read just before, off the clock: a virtual machine's host takes idle memory away meanwhile.
        return (0, min(batches, COLD_BATCHES)) if cold else (discard + batches, batches)
    round_ = len(task.files) // task.batch_size
    if cold:
        return 0, round_  # a second round would be warm
    least = max(4 * case.threads if case.kind.ahead else 1, 32 * case.threads // task.batch_size)
    return discard, round_ * max(case.kind.rounds, -(-least // round_))


def _wait_ready(process: _Running, result: Measured) -> None:
    result.base_mb = sum(float(str(memory)) for memory in process.answers())


def _open(files: list[str], process: _Running, result: Measured) -> None:
    if files:
        drop_pages(files)
    process.ask("open")
    result.first_batch_s = max(float(str(seconds)) for seconds in process.answers())


def _measure_window(files: list[str], discard: int, batches: int, process: _Running, result: Measured) -> None:
    if files:
        result.resident = max(result.resident, drop_pages(files))
    process.ask("window", discard, batches)
    parts = [part for part in process.answers() if isinstance(part, Window)]
    assert len(parts) == len(process.pipes)
    result.windows.append(parts)


@contextlib.contextmanager
def _alive(group: Sequence[Case], tasks: Callable[[Case], list[Task]]) -> Iterator[list[_Running]]:
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))  # inherited: threads are the case's, not a library's
    running: list[_Running] = []
    try:
        running.extend(_Running(tasks(case)) for case in group)
        yield running
    finally:
        for process in running:
            process.close()
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def drop_pages(files: Sequence[str]) -> float:
    """Ask the system to forget the files' pages; the share of their bytes that it kept all the same."""
    kept = total = 0
    for file in files:
        with open(file, "rb") as stream:
            os.fdatasync(stream.fileno())  # a page that was never written to the disk is not dropped
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            pages, of = resident_pages(stream.fileno())
        kept, total = kept + pages, total + of
    return kept / max(total, 1)


def resident_pages(descriptor: int) -> tuple[int, int]:
    """Pages of a file that are in memory, and all its pages."""
    size = os.fstat(descriptor).st_size
    if size == 0:
        return 0, 0
    num = -(-size // mmap.PAGESIZE)
    state = (ctypes.c_ubyte * num)()
    with mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as pages:
        here = ctypes.c_char.from_buffer(pages)  # private and writable only so that ctypes takes its address
        failed = ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(here)), ctypes.c_size_t(size), state)
        del here
    return (num, num) if failed else (sum(value & 1 for value in state), num)
