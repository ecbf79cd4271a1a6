"""What all entries share: an `Entry`, its mutated inputs by number, and a worker process that names what it died of.

An input is a pure function of (seed, entry, number), so a crash is replayed without having been saved, and a saved one
without the seed. A worker shares the number that it is at with its parent. So a segfault, a hang in compiled code and
a process killed for memory are attributed to an input, as an exception is.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import mmap
import os
import resource
import select
import signal
import struct
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType

MEMORY_BYTES = 2 << 30
"""What one input may take beyond what the process has: a 16-bit RGBA image of `MAX_PIXELS` is 0.5 GB."""
INPUT_S = 20.0
"""Seconds of CPU time that one input may take before it counts as a hang; a stuck machine's clock proves nothing."""
SILENCE_S = 120.0
"""Seconds without a new input before the parent ends a worker that its own timer can't interrupt."""


class Hang(BaseException):
    """An input took longer than `INPUT_S`. No product code catches it."""


@dataclass(frozen=True)
class Entry:
    """A reader of untrusted bytes.

    Attributes:
        name: of the entry, and of the folder of what it died of.
        seeds: valid inputs, made once a process; called before any limit is set.
        mutate: an input made from those; all its randomness from the `Random`.
        run: reads an input, and returns or raises one of `allowed`.
        allowed: the errors that the product documents for this entry; subclasses count.
        share: of inputs, beside an entry with 1: less for slow ones.
        sentence: what the message of such an error must contain, such as the file's name; None for any text.
    """

    name: str
    seeds: Callable[[], Sequence[bytes]]
    mutate: Callable[[Sequence[bytes], Random], bytes]
    run: Callable[[bytes], None]
    allowed: tuple[type[Exception], ...]
    sentence: Callable[[], str] | None = None
    share: float = 1.0


@dataclass
class Finding:
    """An input that broke the contract, and how."""

    entry: str
    number: int
    what: str
    data: bytes


@dataclass
class Result:
    """What became of the inputs of one entry."""

    inputs: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    peak_mb: float = 0.0
    findings: list[Finding] = field(default_factory=list)


def make_input(entry: Entry, seeds: Sequence[bytes], seed: int, number: int) -> bytes:
    """The input of that number: the first are the seeds themselves."""
    if number < len(seeds):
        return seeds[number]
    return entry.mutate(seeds, Random(f"{seed}/{entry.name}/{number}"))


def check(entry: Entry, data: bytes) -> bool:
    """Run one input; whether it was refused. Raises what breaks the contract."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's and numpy's, about files of this kind
        try:
            entry.run(data)
        except entry.allowed as error:
            message = str(error)
            if not message.strip():
                raise AssertionError(f"a {type(error).__name__} without a sentence") from error
            if entry.sentence is not None and entry.sentence() not in message:
                raise AssertionError(f"the message does not name {entry.sentence()}: {message[:300]}") from error
            return True
    return False


@contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Raises `Hang` in Python code that runs for longer."""

    def ring(_: int, __: FrameType | None) -> None:
        raise Hang(f"more than {seconds:g} s of CPU time")

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def limit_memory() -> None:
    """Refuse this process more than `MEMORY_BYTES` beyond what it has mapped."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


_STATE = struct.Struct("<qqdd")  # number under way, refused so far, slowest in seconds, peak growth in MB


def run_entry(entry: Entry, seed: int, numbers: range, most_findings: int = 20) -> Result:
    """Run inputs in forked workers; after a death the next worker resumes behind the input that caused it."""
    seeds = entry.seeds()
    result, started, first = Result(), time.monotonic(), numbers.start
    shared = mmap.mmap(-1, mmap.PAGESIZE)
    while first < numbers.stop and len(result.findings) < most_findings:
        shared[: _STATE.size] = _STATE.pack(first - 1, 0, 0.0, 0.0)
        reason = _in_worker(entry, seeds, seed, range(first, numbers.stop), shared)
        at, refused, slowest_s, peak_mb = _STATE.unpack(shared[: _STATE.size])
        result.refused += refused
        result.slowest_s, result.peak_mb = max(result.slowest_s, slowest_s), max(result.peak_mb, peak_mb)
        if reason is not None:
            result.findings.append(Finding(entry.name, at, reason, make_input(entry, seeds, seed, max(at, 0))))
        first = at + 1 if reason is not None else numbers.stop
    result.inputs, result.seconds = first - numbers.start, time.monotonic() - started
    return result


def _in_worker(entry: Entry, seeds: Sequence[bytes], seed: int, numbers: range, shared: mmap.mmap) -> str | None:
    """None where all inputs kept the contract, else how the one in `shared` broke it."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _work(entry, seeds, seed, numbers, shared, writer)
    os.close(writer)
    at, heard, message = -2, time.monotonic(), b""
    try:
        while True:
            ready, _, _ = select.select([reader], [], [], 1.0)
            if ready:
                if not (piece := os.read(reader, 1 << 16)):
                    break
                message += piece
            (now,) = struct.unpack_from("<q", shared)
            if now != at:
                at, heard = now, time.monotonic()
            elif time.monotonic() - heard > SILENCE_S:
                os.kill(pid, signal.SIGKILL)
                message = f"hang: no answer in {SILENCE_S:g} s, not even to its timer".encode()
                break
    finally:
        os.close(reader)
        _, status = os.waitpid(pid, 0)
    if message:
        return message.decode(errors="replace")
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return None if os.WEXITSTATUS(status) == 0 else f"the process ended with exit code {os.WEXITSTATUS(status)}"


def _work(entry: Entry, seeds: Sequence[bytes], seed: int, numbers: range, shared: mmap.mmap, writer: int) -> None:
    """The worker: never returns."""
    code = 0
    refused, slowest_s, peak = 0, 0.0, _peak_kb()
    before_kb = peak
    try:
        faulthandler.enable(file=writer)
        logging.disable(logging.CRITICAL)
        gc.freeze()
        limit_memory()
        for number in numbers:
            shared[: _STATE.size] = _STATE.pack(number, refused, slowest_s, (peak - before_kb) / 1024)
            data = make_input(entry, seeds, seed, number)
            started = time.process_time()
            with cpu_limit(INPUT_S):
                refused += check(entry, data)
            slowest_s, peak = max(slowest_s, time.process_time() - started), _peak_kb()
        shared[: _STATE.size] = _STATE.pack(numbers.stop - 1, refused, slowest_s, (peak - before_kb) / 1024)
    except BaseException:
        os.write(writer, traceback.format_exc()[-20_000:].encode(errors="replace"))
        code = 1
    os._exit(code)


def _peak_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
