"""Stages on several ranks: what is newly trained is reduced, too."""

from __future__ import annotations

import weakref
from pathlib import Path

import tiny
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from distcxr.engine.fit import begin_next_stage, train_stage


def wrappers(module: nn.Module) -> int:
    """Functions that Accelerate put around the network's forward."""
    forward, found = module.forward, 0
    while hasattr(forward, "__wrapped__"):
        forward, found = forward.__wrapped__, found + 1
    return found


@tiny.worlds(2)
def test_weights_are_equal_on_all_ranks_after_each_stage(tmp_path: Path, world_size: int) -> None:
    """DDP reduces only what required a gradient when it wrapped: every stage has to wrap anew, and lets the old go."""
    if tiny.on_main(world_size):
        tiny.phantom(tmp_path)
    torch.distributed.barrier()
    run = tiny.build(
        tmp_path, f"output={tmp_path / 'run'}", "eval.splits=[]", "eval.every=100ep", "train.ema=0.5", tiny.BF16,
        "train.stages=[{trainable: [fc], epochs: 1}, {trainable: [layer3, layer4, fc], epochs: 1}, {epochs: 1}]",
    )  # fmt: skip
    before = {name: value.detach().clone() for name, value in run.setup.module.named_parameters()}
    while True:
        train_stage(run)
        assert isinstance(run.training.model, DistributedDataParallel)
        for name, value in run.setup.module.named_parameters():
            theirs = value.detach().clone()
            torch.distributed.broadcast(theirs, src=0)
            assert torch.equal(value, theirs), f"{name} differs after {run.stage.title}"
            assert torch.equal(value, before[name]) == (name not in run.stage.parameters), name
            before[name] = value.detach().clone()
        if run.state.ended:
            break
        old, num_wrappers = weakref.ref(run.training.model), wrappers(run.setup.module)
        begin_next_stage(run)
        assert old() is None and wrappers(run.setup.module) == num_wrappers > 0
    torch.distributed.barrier()
