"""One update has the gradient of one large batch, whatever the number of ranks and micro-batches."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torchvision.ops import sigmoid_focal_loss

from distcxr.engine.fit import updates
from distcxr.engine.step import train_step

# A ViT has no BatchNorm, the statistics of which are each rank's own without train.sync_bn.
PLAIN = ("model.name=test_vit", "data.image_size=160", "model.in_chans=1")


def skew(run: tiny.Run) -> None:
    """Labels known very unevenly: the mean of the ranks' means would be far from the mean."""
    rows = np.arange(len(run.setup.index))
    unknown = np.random.default_rng(0).random(run.setup.index.mask_NC.shape) < (rows % 10 / 10)[:, None]
    run.setup.index.mask_NC[unknown] = 0


def mean_loss(name: str, logits: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The loss of a whole batch by other people's code."""
    if name == "cross_entropy":
        whole = mask.bool().all(dim=1)
        return torch.nn.functional.cross_entropy(logits[whole], targets[whole].argmax(dim=1))
    known = mask.bool()
    if name == "focal":
        return sigmoid_focal_loss(logits[known], targets[known].float(), alpha=0.25, gamma=2.0, reduction="mean")
    return torch.nn.functional.binary_cross_entropy_with_logits(logits[known], targets[known].float())


@pytest.mark.parametrize("per_device", [4, 2])
@tiny.worlds(1, 2, 4)
def test_gradient_is_that_of_the_global_batch(tmp_path: Path, world_size: int, per_device: int) -> None:
    check_gradient(tmp_path, world_size, per_device, "bce")


@pytest.mark.parametrize("name", ["focal", "cross_entropy"])
@tiny.worlds(2)
def test_gradient_of_other_losses_is_that_of_the_global_batch(tmp_path: Path, world_size: int, name: str) -> None:
    check_gradient(tmp_path, world_size, 4, name)


LOSSES = {
    "bce": (),
    "focal": ("loss={name: focal, alpha: 0.25, gamma: 2.0}",),
    "cross_entropy": (
        "loss={name: cross_entropy}", "data.findings=[No Finding, Infiltration]",
        "data.where.findings=[No Finding, Infiltration]",
    ),
}  # fmt: skip


def check_gradient(tmp_path: Path, world_size: int, per_device: int, name: str) -> None:
    if tiny.on_main(world_size):
        tiny.phantom(tmp_path)
    torch.distributed.barrier()
    run = tiny.build(
        tmp_path, *PLAIN, f"output={tmp_path / 'run'}", f"train.per_device_batch_size={per_device}",
        "optim={name: sgd, lr: 1.0, weight_decay: 0, momentum: 0}", "schedule={name: constant, warmup: 0st}",
        "train.clip_norm=null", "train.global_batch_size=16", *LOSSES[name],
    )  # fmt: skip
    skew(run)
    before = {name: value.detach().clone() for name, value in run.setup.module.named_parameters()}
    micro_batches = next(updates(run))
    assert len(micro_batches) * per_device * world_size == 16
    share = train_step(run, micro_batches).share
    stepped = {name: before[name] - value.detach() for name, value in run.setup.module.named_parameters()}

    # The whole global batch at once, by plain torch.
    with torch.no_grad():
        for parameter, value in run.setup.module.named_parameters():
            value.copy_(before[parameter])
    parts: list[list[torch.Tensor]] = []
    for batch in micro_batches:
        parts.append([run.setup.inputs(batch, transform=run.training.transform), batch.targets, batch.mask])
    mine = [torch.cat(column) for column in zip(*parts, strict=True)]
    gathered = []
    for column in mine:
        pieces = [torch.empty_like(column) for _ in range(world_size)]
        torch.distributed.all_gather(pieces, column)
        gathered.append(torch.cat(pieces))
    inputs, targets, mask = gathered
    assert len(inputs) == 16 and 0 < mask.sum() < mask.numel()
    loss = mean_loss(name, run.setup.module(inputs), targets, mask)
    gradient = torch.autograd.grad(loss, list(run.setup.module.parameters()))
    for (parameter, _), expected in zip(run.setup.module.named_parameters(), gradient, strict=True):
        assert torch.allclose(stepped[parameter], expected, rtol=0, atol=1e-6), parameter
    total = run.setup.runtime.sum_over_ranks(share)
    assert abs(total.item() - loss.item()) < 1e-6
    torch.distributed.barrier()


def test_lr_follows_the_step_not_the_ranks(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    run = tiny.build(tmp_path, f"output={tmp_path / 'run'}")
    seen = []
    for micro_batches in updates(run):
        train_step(run, micro_batches)
        seen.append(run.training.optimizer.param_groups[0]["lr"])
        run.state.advance(run.horizon.steps_per_epoch)
    assert seen[:2] == [pytest.approx(5e-4), pytest.approx(1e-3)]
    assert all(later < earlier for earlier, later in pairwise(seen[1:]))


def test_warm_up_leaves_no_trace(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    from distcxr.models.factory import build_model

    run = tiny.build(tmp_path, f"output={tmp_path / 'run'}")
    torch.manual_seed(run.setup.recipe.seed)
    fresh = build_model("test_resnet", library="timm", num_classes=14, in_chans=1, weights="none")
    for name, value in run.setup.module.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name
    assert all(parameter.grad is None for parameter in run.setup.module.parameters())


@tiny.worlds(2)
def test_sync_bn_without_gpus_says_so(tmp_path: Path, world_size: int) -> None:
    if tiny.on_main(world_size):
        tiny.phantom(tmp_path)
    torch.distributed.barrier()
    with pytest.raises(ValueError, match=r"train.sync_bn=true needs GPUs"):
        tiny.build(tmp_path, f"output={tmp_path / 'run'}", "train.sync_bn=true")
    torch.distributed.barrier()
