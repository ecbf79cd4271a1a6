"""Hands a loop its batches and, between two of them, measures what the program that started it asks for."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

import torch

from step_bench.job import Channel, Message
from step_bench.profiling import profiled

T = TypeVar("T")
HostClock = Callable[[], AbstractContextManager[list[float]]]
"""Gives a list that sums to the host's seconds in forward, backward and update while the context is open."""


class Meter:
    """A loop's clock. The loop runs as it always does, over `batches`; it never knows where a window begins."""

    def __init__(self, channel: Channel, device: torch.device) -> None:
        self.device = device
        self.facts: Message = {}
        """Of the loop, sent when it is ready."""
        self.host_clock: HostClock | None = None
        """For `parts`; ours alone has one."""
        self._channel = channel
        self._base_mb = 0.0

    def starts_building(self) -> None:
        """Call it before the network is made: what the process takes from here on is the loop's memory."""
        self._base_mb = _status_mb("VmRSS") if self.device.type == "cpu" else 0.0

    def batches(self, own: Sequence[T]) -> Generator[T]:
        """The loop's batches in turn, for as long as the other end asks."""
        on_gpu = self.device.type == "cuda"
        self._channel.send({"threads": torch.get_num_threads(), "on_gpu": on_gpu, **self.facts})
        number = 0

        def following() -> T:
            nonlocal number
            number += 1
            return own[number % len(own)]

        while (command := self._channel.receive()) is not None:
            steps = command["steps"]
            for _ in range(command["warm"]):
                yield following()
            self._wait()
            if command["do"] == "parts":
                assert self.host_clock is not None
                outside_s = 0.0
                with self.host_clock() as inside_s:
                    for _ in range(steps):
                        started_s = time.perf_counter()
                        yield following()
                        outside_s += time.perf_counter() - started_s
                        self._wait()  # before the next: a full queue would have the host wait anywhere
                found: Message = {"outside_ms": 1e3 * (outside_s - sum(inside_s)) / steps}
            elif command["do"] == "profile":
                with profiled(self.device, command.get("trace") and Path(command["trace"]), steps) as found:
                    for _ in range(steps):
                        yield following()
                    self._wait()
            else:
                started_s, cpu_s = time.perf_counter(), time.process_time()
                for _ in range(steps):
                    yield following()
                self._wait()
                found = {
                    "ms": 1e3 * (time.perf_counter() - started_s) / steps,
                    "cpu_ms": 1e3 * (time.process_time() - cpu_s) / steps,
                }
            self._channel.send(found | {"memory_mb": self._memory_mb()})

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _memory_mb(self) -> float:
        """Most memory so far in MB, and the device's memory that is not in use is given back, for the other loops."""
        if self.device.type == "cpu":
            return round(_status_mb("VmHWM") - self._base_mb, 1)
        most = torch.cuda.max_memory_allocated(self.device) / 1e6
        torch.cuda.empty_cache()
        return round(most, 1)


def _status_mb(key: str) -> float:
    """A figure of this process that Linux gives in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key + ":")).split()[1]) * 1024 / 1e6
