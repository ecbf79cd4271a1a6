"""Starts a worker for each loop and has them take turns, window by window, so that whatever else the machine does in
a moment touches all of them alike."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from step_bench.environments import Python
from step_bench.job import Case, Channel, Job, Message, to_message

START_TIMEOUT_S, ANSWER_TIMEOUT_S = 600.0, 600.0
WARM_UPS = 3  # steps before anything is timed: cuDNN's choice of kernels, compilation
CPU_WINDOW_S, GPU_WINDOW_S = 1.5, 1.0
MOST_STEPS = 100
PROFILE_STEPS = 2
BENCHMARKS = Path(__file__).parents[1]


class LoopFailed(Exception):
    """A loop can't be measured; the message is its reason."""


@dataclass
class Measured:
    """What came of a loop.

    Attributes:
        ms: of a step, by round; all loops that did not fail have as many.
        cpu_ms: of a step, by round: all threads of the process.
        facts: what the worker sent when it was ready.
        traced: what the profiler found.
        failed: why there is nothing.
    """

    loop: str
    mode: str
    note: str = ""
    facts: Message = field(default_factory=dict)
    ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    steps: int = 0
    memory_mb: float = 0.0
    outside_ms: float | None = None
    traced: Message = field(default_factory=dict)
    failed: str | None = None

    @property
    def name(self) -> str:
        """As it is shown."""
        return self.loop if self.mode == "eager" else f"{self.loop} {self.mode}"


class Worker:
    """A process that holds a loop between two of its steps."""

    def __init__(self, python: Python, job: Job, log: Path) -> None:
        self._log = log
        to_worker, from_us = os.pipe()
        to_us, from_worker = os.pipe()
        paths = [str(BENCHMARKS), str(BENCHMARKS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(job.threads)}
        command = [python.path, "-m", "step_bench.worker", str(to_worker), str(from_worker)]
        with log.open("w") as stream:
            self._process = subprocess.Popen(
                command, env=environment, pass_fds=(to_worker, from_worker), stdin=subprocess.DEVNULL, stdout=stream,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
        os.close(to_worker)
        os.close(from_worker)
        self._channel = Channel(to_us, from_us)
        self._job = job

    def start(self) -> None:
        """Have it build its loop; it answers when that is ready."""
        self.send(to_message(self._job))

    def send(self, message: Message) -> None:
        """Raises LoopFailed where the process has died."""
        try:
            self._channel.send(message)
        except BrokenPipeError:
            raise LoopFailed(self._last_lines()) from None

    def answer(self, timeout_s: float = ANSWER_TIMEOUT_S) -> Message:
        """Wait for the next message.

        Raises:
            LoopFailed: the loop failed, died, or took longer.
        """
        if not select.select([self._channel], [], [], timeout_s)[0]:
            raise LoopFailed(f"no answer within {timeout_s:.0f} s")
        message = self._channel.receive()
        if message is None:
            raise LoopFailed(self._last_lines())
        if "failed" in message:
            raise LoopFailed(message["failed"])
        return message

    def ask(self, **command: object) -> Message:
        """Send a command and wait for its answer."""
        self.send(command)
        return self.answer()

    def close(self) -> None:
        """End the process."""
        self._channel.close()  # which ends its loop
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _last_lines(self) -> str:
        """How the process ended, and the last line of its output."""
        self.close()
        status = self._process.returncode
        how = f"signal {-status}" if status < 0 else f"status {status}"
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f"its process ended with {how}: {lines[-1] if lines else 'no output'}"


def measure(
    case: Case,
    entries: Sequence[tuple[str, str, Python]],
    job: Callable[[str, str], Job],
    *,
    work: Path,
    steps: int | None,
    windows: int,
    deadline_s: float,
    trace: Callable[[str], Path] | None,
    log: Callable[[str], None],
) -> list[Measured]:
    """Measure the loops of a case in turns.

    Args:
        entries: loop, mode and interpreter of each; `ceiling` can be among them.
        job: of a loop in a mode.
        work: folder for logs, one a loop.
        steps: of a window; None takes as many as fill a few seconds.
        deadline_s: of the monotonic clock: no window begins that would end later, but for the first of each.
        trace: file for the trace of the loop that is so named; None profiles on GPUs alone, for launches.
    """
    results = [Measured(loop, mode, python.note) for loop, mode, python in entries]
    workers: dict[int, Worker] = {}

    def attempt(number: int, call: Callable[[Worker, Measured], None]) -> None:
        if results[number].failed is None:
            try:
                call(workers[number], results[number])
            except LoopFailed as error:
                results[number].failed = str(error)
                log(f"{case}: {results[number].name} left out: {error}")
                workers.pop(number).close()

    try:
        for number, (loop, mode, python) in enumerate(entries):
            file = work / f"{results[number].name.replace(' ', '-')}.log"
            workers[number] = Worker(python, job(loop, mode), file)
        order = range(len(entries))
        for number in order:  # all start at the same time: that is not measured
            attempt(number, lambda worker, _: worker.start())
        for number in order:
            attempt(number, _begin)
        _check_networks(results)
        for number in order:
            attempt(number, lambda worker, measured: _size(worker, measured, steps))
        longest_s = 0.0
        for turn in range(windows):
            begun_s = time.monotonic()
            if turn and begun_s + longest_s > deadline_s:
                log(f"{case}: {turn} of {windows} windows, for the time is up")
                break
            for number in order if turn % 2 == 0 else reversed(order):  # a drift of the machine cancels
                attempt(number, _window)
            longest_s = max(longest_s, time.monotonic() - begun_s)
        for number in order:
            attempt(number, lambda worker, measured: _look_inside(worker, measured, trace))
    finally:
        for worker in workers.values():
            worker.close()
    return results


def _begin(worker: Worker, measured: Measured) -> None:
    measured.facts = worker.answer(START_TIMEOUT_S)


def _size(worker: Worker, measured: Measured, steps: int | None) -> None:
    """Warm up, and choose how many steps a window has."""
    first = worker.ask(do="window", warm=WARM_UPS, steps=1)
    window_ms = 1e3 * (GPU_WINDOW_S if measured.facts["on_gpu"] else CPU_WINDOW_S)
    measured.steps = steps or max(2, min(MOST_STEPS, round(window_ms / first["ms"])))


def _window(worker: Worker, measured: Measured) -> None:
    found = worker.ask(do="window", warm=1, steps=measured.steps)
    measured.ms.append(found["ms"])
    measured.cpu_ms.append(found["cpu_ms"])
    measured.memory_mb = found["memory_mb"]


def _look_inside(worker: Worker, measured: Measured, trace: Callable[[str], Path] | None) -> None:
    """What would disturb a window: the parts of a step on the host's clock, and the profiler."""
    if measured.loop == "ceiling":
        return
    if measured.loop == "ours":
        measured.outside_ms = worker.ask(do="parts", warm=1, steps=measured.steps)["outside_ms"]
    if trace is not None or measured.facts["on_gpu"]:
        file = str(trace(measured.name)) if trace else None
        measured.traced = worker.ask(do="profile", warm=1, steps=PROFILE_STEPS, trace=file)


def _check_networks(results: Sequence[Measured]) -> None:
    """Refuse to compare loops that train another network or have other threads."""
    for key in ("parameters", "threads"):
        found = {one.name: one.facts[key] for one in results if key in one.facts}
        if len(set(found.values())) > 1:
            raise RuntimeError(f"the loops differ in their {key}, so they can't be compared: {found}")
