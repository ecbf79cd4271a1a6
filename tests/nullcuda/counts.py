"""What a program has asked of the null CUDA, read from inside that program."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

_CATEGORIES = ("launches", "copies", "fills", "syncs", "collectives", "events", "allocations", "refused calls")


class Counts(dict[str, dict[str, int]]):
    """How often, by category and name.

    Categories: `launches` (kernels; a call of cuBLAS, cuDNN or NCCL counts as one), `copies` and `copied bytes`
    (`H2D pinned`, `D2H pageable`, `D2D`, ...), `fills`, `syncs` (calls in which the host waits for the device),
    `collectives` and `collective bytes`, `events`, `allocations`, `device N` (calls that need a context on device N),
    `ignored calls`, `refused calls`.
    """

    def total(self, category: str, name: str = "") -> int:
        """Of a category, or of those in it that begin with `name`."""
        return sum(number for one, number in self.get(category, {}).items() if one.startswith(name))

    def devices(self) -> list[int]:
        """The devices that were used."""
        return sorted(int(category.split()[1]) for category in self if category.startswith("device "))

    def table(self, most: int = 12) -> str:
        """Totals by category, each with its commonest names."""
        lines = []
        for category in (*_CATEGORIES, *(f"device {device}" for device in self.devices())):
            names = sorted(self.get(category, {}).items(), key=lambda item: -item[1])
            if names:
                lines.append(f"{self.total(category):8,d} {category}")
            lines += [f"{'':8} {number:8,d}  {name[:140]}" for name, number in names[:most]]
            if len(names) > most:
                lines.append(f"{'':8} {sum(number for _, number in names[most:]):8,d}  {len(names) - most} others")
        return "\n".join(lines)


def read() -> Counts:
    """The counts since the program began, or since `reset`."""
    library = _library()
    library.null_cuda_counts.restype = ctypes.c_char_p
    counts = Counts()
    for line in library.null_cuda_counts().decode().splitlines():
        category, name, number = line.split("\t")
        counts.setdefault(category, {})[name] = int(number)
    return counts


def reset() -> None:
    """Begin anew."""
    _library().null_cuda_reset()


def during(work: Callable[[], object]) -> Counts:
    """What `work` asks for; of all threads, and the counts so far are forgotten."""
    reset()
    work()
    return read()


def _library() -> ctypes.CDLL:
    """What this process was started with, by LD_PRELOAD."""
    return ctypes.CDLL(None)
