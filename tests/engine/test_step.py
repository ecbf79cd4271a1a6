"""One update has the gradient of one large batch, whatever the number of ranks and micro-batches."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import loss_references
import numpy as np
import pytest
import tiny
import torch
from torchvision.ops import sigmoid_focal_loss

from distcxr.data.batch import Batch
from distcxr.engine.fit import updates
from distcxr.engine.step import train_step
from distcxr.engine.whole_batch import scored_first
from distcxr.loss_building import build_loss
from distcxr.recipe.loss import Loss

# A ViT has no BatchNorm, the statistics of which are each rank's own without train.sync_bn.
PLAIN = ("model.name=test_vit", "data.image_size=160", "model.in_chans=1")


WEIGHTS = [0.5, 2.0, 3.0, 1.0, 1.5, 0.7, 2.5] * 2


def skew(run: tiny.Run) -> None:
    """Labels known very unevenly: the mean of the ranks' means would be far from the mean."""
    rows = np.arange(len(run.setup.index))
    unknown = np.random.default_rng(0).random(run.setup.index.mask_NC.shape) < (rows % 10 / 10)[:, None]
    run.setup.index.mask_NC[unknown] = 0


LOSSES: dict[str, dict[str, Any]] = {
    "bce": {},
    "bce, weighted and smoothed": {"weights": WEIGHTS, "label_smoothing": 0.1},
    "focal": {"name": "focal", "alpha": 0.25, "gamma": 2.0},
    "asymmetric": {"name": "asymmetric", "weights": WEIGHTS},
    "cross_entropy": {"name": "cross_entropy"},
    "auc_margin": {"name": "auc_margin", "weights": WEIGHTS},
    "partial_auc": {"name": "partial_auc", "margin": 0.5, "beta": 0.3},
    "combined": {
        "name": "combined",
        "parts": [{"name": "bce", "weights": WEIGHTS, "share": 0.5}, {"name": "asymmetric"}, {"name": "auc_margin"}],
    },
}


def mean_loss(spec: Loss, logits: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The loss of a whole batch by other people's code, or by the formulas of the papers."""
    known = mask.bool()
    if spec.name == "combined":
        parts = [Loss.model_validate(part.model_dump(exclude={"share"})) for part in spec.parts]
        shares = [part.share for part in spec.parts]
        means = [mean_loss(part, logits, targets, mask) for part in parts]
        return torch.stack([share * mean for share, mean in zip(shares, means, strict=True)]).sum()
    if spec.of_pairs:
        return loss_references.of_pairs(spec, logits, targets, mask)
    if spec.name == "cross_entropy":
        whole = known.all(dim=1)
        return torch.nn.functional.cross_entropy(logits[whole], targets[whole].argmax(dim=1))
    if spec.name == "focal":
        return sigmoid_focal_loss(logits[known], targets[known].float(), alpha=0.25, gamma=2.0, reduction="mean")
    if spec == Loss():
        return torch.nn.functional.binary_cross_entropy_with_logits(logits[known], targets[known].float())
    return loss_references.of_labels(spec, logits, targets, mask) / known.sum()


@pytest.mark.parametrize(
    ("world_size", "per_device"),
    [
        pytest.param(ranks, size, marks=pytest.mark.world_size(ranks), id=f"{ranks}-ranks-{size}")
        for ranks, size in ((1, 2), (2, 4), (4, 4), (4, 2))
    ],
)
def test_gradient_is_that_of_the_global_batch(tmp_path: Path, world_size: int, per_device: int) -> None:
    if tiny.on_main(world_size):
        tiny.phantom(tmp_path)
    torch.distributed.barrier()
    run = tiny.build(
        tmp_path, *PLAIN, f"output={tmp_path / 'run'}", f"train.per_device_batch_size={per_device}",
        "optim={name: sgd, lr: 1.0, weight_decay: 0, momentum: 0}", "schedule={name: constant, warmup: 0st}",
        "train.clip_norm=null", "train.global_batch_size=16",
    )  # fmt: skip
    skew(run)
    micro_batches = next(updates(run))
    assert len(micro_batches) * per_device * world_size == 16
    for name, keys in LOSSES.items():
        check_gradient(run, name, Loss.model_validate(keys), micro_batches, world_size)
    torch.distributed.barrier()


def check_gradient(run: tiny.Run, name: str, spec: Loss, micro_batches: list[Batch], world_size: int) -> None:
    index, train = run.setup.index, run.setup.splits.train
    run.training.loss = build_loss(spec, index.targets_NC[train], index.mask_NC[train], index.findings)
    if spec.name == "cross_entropy":
        micro_batches = [exclusive(batch) for batch in micro_batches]
    parameters = dict(run.setup.module.named_parameters())
    before = {key: value.detach().clone() for key, value in parameters.items()}
    share = train_step(run, micro_batches).share
    stepped = {key: before[key] - value.detach() for key, value in parameters.items()}

    # The whole global batch at once, by plain torch.
    with torch.no_grad():
        for key, value in parameters.items():
            value.copy_(before[key])
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
    positive = (targets * mask).sum(dim=0)
    assert spec.name == "cross_entropy" or ((positive == 0).any() and (positive > 1).any())
    loss = mean_loss(spec, run.setup.module(inputs), targets, mask)
    gradient = torch.autograd.grad(loss, list(parameters.values()))
    for (key, change), expected in zip(stepped.items(), gradient, strict=True):
        assert torch.allclose(change, expected, rtol=0, atol=1e-6), (name, key)
    assert any(expected.abs().max() > 1e-3 for expected in gradient), name
    total = run.setup.runtime.sum_over_ranks(share)
    assert abs(total.item() - loss.item()) < 1e-6, name


def exclusive(batch: Batch) -> Batch:
    """The same images with one finding each, and labels known of two images in three."""
    classes = torch.nn.functional.one_hot(batch.sample_id % batch.targets.shape[1], batch.targets.shape[1])
    known = (batch.sample_id % 3 > 0).to(torch.uint8)[:, None].expand_as(batch.mask)
    return replace(batch, targets=classes.to(torch.uint8), mask=known)


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


def test_warm_up_and_scores_before_training_leave_no_trace(tmp_path: Path) -> None:
    """The scores are those that training then computes, dropout and BatchNorm included."""
    tiny.phantom(tmp_path)
    from distcxr.models.factory import build_model

    run = tiny.build(tmp_path, f"output={tmp_path / 'run'}", "train.per_device_batch_size=8", "model.drop_rate=0.5")
    numbered = list(enumerate(next(updates(run))))
    first = scored_first(run.setup, run.training, 0, numbered)
    torch.manual_seed(run.setup.recipe.seed)
    fresh = build_model("test_resnet", library="timm", num_classes=14, in_chans=1, weights="none")
    for name, value in run.setup.module.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name
    assert all(parameter.grad is None for parameter in run.setup.module.parameters())
    for (number, batch), logits in zip(numbered, first, strict=True):
        run.setup.runtime.seed_step(run.setup.recipe.seed, 0, number)
        again = run.setup.logits(run.training.model, batch, transform=run.training.transform)
        assert again.requires_grad and torch.equal(again, logits) and logits.std() > 0


@tiny.worlds(2)
def test_sync_bn_without_gpus_says_so(tmp_path: Path, world_size: int) -> None:
    if tiny.on_main(world_size):
        tiny.phantom(tmp_path)
    torch.distributed.barrier()
    with pytest.raises(ValueError, match=r"train.sync_bn=true needs GPUs"):
        tiny.build(tmp_path, f"output={tmp_path / 'run'}", "train.sync_bn=true")
    torch.distributed.barrier()
