"""A run leaves its process group while the interpreter is alive: gloo's threads must not outlive it."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import tiny
import torch


def wrapped() -> int:
    """DDP modules that are alive; each keeps the process group."""
    return sum(isinstance(one, torch.nn.parallel.DistributedDataParallel) for one in gc.get_objects())


@pytest.mark.world_size(2)
def test_nothing_holds_the_process_group_when_a_run_is_closed(tmp_path: Path) -> None:
    if tiny.on_main(2):
        tiny.phantom(tmp_path)
    torch.distributed.barrier()
    run = tiny.build(tmp_path, f"output={tmp_path / 'run'}")
    runtime = run.setup.runtime
    run.setup.close()
    del run
    seen: list[int] = []
    destroy = torch.distributed.destroy_process_group
    torch.distributed.destroy_process_group = lambda *_: seen.append(wrapped())
    try:
        runtime.close()
    finally:
        torch.distributed.destroy_process_group = destroy
    assert seen and not any(seen)
