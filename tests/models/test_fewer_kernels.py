"""Fewer kernels, the same numbers: BatchNorm's counters, raised together, and DenseNet's joined feature maps."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import nn

from distcxr.models.fewer_kernels import BatchCounts
from distcxr.models.joined_maps import JoinedDenseBlock, join_maps


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.BatchNorm2d(3), nn.BatchNorm2d(3, momentum=None), nn.BatchNorm2d(3, track_running_stats=False)]
    return nn.Sequential(*layers, nn.BatchNorm2d(3))


def test_state_after_some_steps_is_the_layers_own() -> None:
    theirs = network()
    ours = copy.deepcopy(theirs)
    counts = BatchCounts(ours)
    for step in range(3):
        images = torch.randn(2, 3, 4, 4)
        for model in (theirs, ours):
            model[3].train(step != 1)  # a frozen layer does not count
        theirs(images)
        with counts.together():
            ours(images)
    assert ours[0].num_batches_tracked == 3 and ours[3].num_batches_tracked == 2
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in theirs.state_dict().items())


def test_counters_are_back_after_an_error_and_not_raised() -> None:
    model = network()
    with pytest.raises(RuntimeError), BatchCounts(model).together():
        model(torch.randn(2, 5, 4, 4))
    assert model[0].num_batches_tracked == 0


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("drop_rate", [0.0, 0.3])
def test_logits_gradients_and_statistics_equal_torchvisions_to_the_bit(
    precision: torch.dtype, drop_rate: float
) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.DenseNet(8, (3, 2), 16, num_classes=3, drop_rate=drop_rate)
    ours = copy.deepcopy(theirs)
    join_maps(ours)
    assert sum(isinstance(block, JoinedDenseBlock) for block in ours.modules()) == 2
    images = torch.randn(4, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    made = []
    for model in (theirs, ours):
        model.to(memory_format=torch.channels_last)
        torch.manual_seed(1)  # dropout
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
            logits = model(images).float()
        logits.square().sum().backward()
        made.append([logits, *(parameter.grad for parameter in model.parameters()), *model.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_other_networks_are_left_alone() -> None:
    model = torchvision.models.resnet18(num_classes=3)
    before = [type(layer) for layer in model.modules()]
    join_maps(model)
    assert [type(layer) for layer in model.modules()] == before
