"""Other heads and adapters under DDP: every parameter gets its gradient from all ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch

from distcxr.engine.fit import train_stage


@pytest.mark.slow
@tiny.worlds(2)
@pytest.mark.parametrize("kind", ["mlp", "attention"])
def test_a_head_with_metadata_trains_on_two_ranks(tmp_path: Path, world_size: int, kind: str) -> None:
    if tiny.on_main(world_size):
        tiny.phantom(tmp_path)
    torch.distributed.barrier()
    head = f"model.head={{kind: {kind}, hidden: [8], metadata: [age, sex, view]}}"
    # test_convnext's own head has a normalisation that attention does not pass: left in, DDP would wait for it.
    lora = "model.lora={rank: 2}" if kind == "attention" else "model.lora=null"
    run = tiny.build(
        tmp_path, f"output={tmp_path / 'run'}", head, "model.name=test_convnext", "train.epochs=1", "eval.splits=[]",
        "data.image_size=64", lora,
    )  # fmt: skip
    train_stage(run)
    trained = [name for name, value in run.setup.module.named_parameters() if value.requires_grad]
    assert sum(".lora_" in name for name in trained) == (36 if kind == "attention" else 0)
    run.setup.close()
    for name, value in run.setup.module.state_dict().items():
        theirs = [torch.zeros_like(value) for _ in range(2)]
        torch.distributed.all_gather(theirs, value)
        assert torch.equal(*theirs), name
