"""Joined feature maps change nothing about a DenseNet but the number of kernels."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision

from distcxr.models.densenet import JoinedDenseBlock, join_maps


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
