"""Other heads under DDP: every parameter gets its gradient from all ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch

from distcxr.engine.fit import fit


@pytest.mark.slow
@tiny.worlds(2)
@pytest.mark.parametrize("kind", ["mlp", "attention"])
def test_a_head_with_metadata_trains_on_two_ranks(tmp_path: Path, world_size: int, kind: str) -> None:
    if tiny.on_main(world_size):
        tiny.phantom(tmp_path)
    torch.distributed.barrier()
    head = f"model.head={{kind: {kind}, hidden: [8], metadata: [age, sex, view]}}"
    # test_convnext's own head has a normalisation that attention does not pass: left in, DDP would wait for it.
    run = tiny.build(
        tmp_path, f"output={tmp_path / 'run'}", head, "model.name=test_convnext", "train.epochs=1", "eval.splits=[]",
        "data.image_size=64",
    )  # fmt: skip
    fit(run)
    run.setup.close()
    for name, value in run.setup.module.state_dict().items():
        theirs = [torch.zeros_like(value) for _ in range(2)]
        torch.distributed.all_gather(theirs, value)
        assert torch.equal(*theirs), name
