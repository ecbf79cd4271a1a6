"""Other heads and adapters under DDP: every parameter gets its gradient from all ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch

from distcxr.engine.fit import train_stage


@pytest.mark.slow
@tiny.worlds(2)
def test_heads_with_metadata_train_on_two_ranks(tmp_path: Path, world_size: int) -> None:
    if tiny.on_main(world_size):
        tiny.phantom(tmp_path)
    torch.distributed.barrier()
    for kind, lora, num_adapters in (("mlp", "null", 0), ("attention", "{rank: 2}", 36)):
        head = f"model.head={{kind: {kind}, hidden: [8], metadata: [age, sex, view]}}"
        # test_convnext's own head has a normalisation that attention does not pass: left in, DDP would wait for it.
        run = tiny.build(
            tmp_path, f"output={tmp_path / kind}", head, "model.name=test_convnext", f"model.lora={lora}",
            "train.epochs=1", "data.image_size=64",
        )  # fmt: skip
        train_stage(run)
        run.saver.close()
        run.setup.close()
        trained = [name for name, value in run.setup.module.named_parameters() if value.requires_grad]
        assert sum(".lora_" in name for name in trained) == num_adapters
        for name, value in run.setup.module.state_dict().items():
            theirs = [torch.zeros_like(value) for _ in range(2)]
            torch.distributed.all_gather(theirs, value)
            assert torch.equal(*theirs), name
