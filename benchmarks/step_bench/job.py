"""A worker's job, and the pipe between it and the program that started it.

Nothing here or in the loops of others imports distcxr: their environments need not have it.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

NUM_FINDINGS = 14
NUM_BATCHES = 2
"""Different batches that a loop takes in turn."""

Message = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """What all loops of a comparison have in common; `precision` as in `train.precision`."""

    model: str
    precision: str
    batch: int
    image_size: int

    def __str__(self) -> str:
        return f"{self.model}, {self.image_size} px, batch {self.batch}, {_NAMES[self.precision]}"


_NAMES = {"bf16": "bf16", "fp16": "fp16", "no": "float32"}


@dataclass(frozen=True)
class Job:
    """One loop's part in a comparison.

    Attributes:
        loop: a name of `loops.LOOPS`, or `ceiling`.
        mode: of `ours`: a name of `loops.MODES`.
        device: `cpu` or `cuda`.
        threads: of the CPU, for torch.
        data: folder of phantom images, for `ours`.
        output: folder of its own, not there yet.
    """

    loop: str
    mode: str
    model: str
    precision: str
    batch: int
    image_size: int
    device: str
    threads: int
    data: str
    output: str


class Channel:
    """JSON, a line each way: another environment's Python takes part, and nothing is unpickled."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read = os.fdopen(read_fd, encoding="utf-8")
        self._write = os.fdopen(write_fd, "w", encoding="utf-8")

    def send(self, message: Message) -> None:
        """Raises BrokenPipeError where the other end has gone."""
        self._write.write(json.dumps(message) + "\n")
        self._write.flush()

    def receive(self) -> Message | None:
        """The next message; None where the other end has gone."""
        line = self._read.readline()
        return json.loads(line) if line else None

    def fileno(self) -> int:
        """For `select`; at most one message is under way at a time, so none waits in this end's buffer."""
        return self._read.fileno()

    def close(self) -> None:
        for stream in (self._write, self._read):
            try:
                stream.close()
            except BrokenPipeError:  # what was not sent: nobody reads it
                continue


def to_message(job: Job) -> Message:
    """As `Channel.send` takes it."""
    return asdict(job)
