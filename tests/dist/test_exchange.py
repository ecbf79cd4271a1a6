"""How ranks exchange gradients: `train.bucket_mb` and `train.compress_gradients` in the running engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch

from distcxr.engine.fit import updates
from distcxr.engine.step import train_step

# The step is lr times the gradient; the image of the step is what the exchange made of it.
PLAIN_SGD = (
    "optim={name: sgd, lr: 1.0, weight_decay: 0, momentum: 0}", "schedule={name: constant, warmup: 0st}",
    "train.clip_norm=null",
)  # fmt: skip


def one_step(folder: Path, name: str, *overrides: str) -> tuple[dict[str, str], bool, torch.Tensor]:
    """DDP's logging data, whether its first bucket is PyTorch's own, and the change of the weights."""
    run = tiny.build(folder, f"output={folder / name}", *PLAIN_SGD, *overrides)
    before = torch.cat([parameter.detach().clone().flatten() for parameter in run.setup.module.parameters()])
    train_step(run, next(updates(run)))
    after = torch.cat([parameter.detach().flatten() for parameter in run.setup.module.parameters()])
    model = run.training.model
    assert isinstance(model, torch.nn.parallel.DistributedDataParallel)
    run.setup.close()
    return model._get_ddp_logging_data(), model.bucket_bytes_cap_default, after - before


@pytest.mark.world_size(2)
def test_bucket_size_and_bfloat16_reach_ddp_and_defaults_are_pytorchs(tmp_path: Path) -> None:
    if tiny.on_main(2):
        tiny.phantom(tmp_path)
    torch.distributed.barrier()
    own, is_own, step = one_step(tmp_path, "a")
    assert is_own and own["bucket_cap_bytes"] == 25 * 2**20 and own.get("comm_hook", "") == ""
    large, is_own, same = one_step(tmp_path, "b", "train.bucket_mb=50")
    assert not is_own and large["bucket_cap_bytes"] == 50 * 2**20
    sizes = [[int(size) for size in data["rebuilt_bucket_sizes"].split(",")] for data in (own, large)]
    assert len(sizes[0]) == 2 and 2**20 <= sizes[0][0] < 2 * 2**20  # the first bucket holds 1 MiB
    assert sizes[1] == [sum(sizes[0])]
    assert torch.allclose(same, step, atol=1e-6)
    halved, _, rounded = one_step(tmp_path, "c", "train.compress_gradients=bf16")
    assert "bf16_compress" in halved["comm_hook"]
    apart = (rounded - step).norm() / step.norm()
    assert 1e-4 < apart < 2**-7  # rounded to 8 bits, and no further
