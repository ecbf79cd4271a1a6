"""For tests that hold a GPU against the CPU of the same machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture
def leave_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Called, it has everything that this test builds from then on built on the CPU.

    Accelerate keeps the device of the first runtime for the life of the process, unless all of its state is dropped.
    """

    def leave() -> None:
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        AcceleratorState._reset_state(reset_partial_state=True)

    yield leave
    AcceleratorState._reset_state(reset_partial_state=True)
