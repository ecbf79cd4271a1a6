"""BatchNorm's counters, raised together, hold what the layers would have counted themselves."""

from __future__ import annotations

import copy

import torch
from torch import nn

from distcxr.models.batch_counts import BatchCounts


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
    try:
        with BatchCounts(model).together():
            model(torch.randn(2, 5, 4, 4))
    except RuntimeError:
        pass
    else:
        raise AssertionError("five channels went through a layer of three")
    assert model[0].num_batches_tracked == 0
