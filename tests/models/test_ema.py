"""The moving average against a loop in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distcxr.models.ema import Ema


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("warmup", [True, False])
def test_it_is_the_average_of_all_weights_so_far(warmup: bool) -> None:
    module = network()
    ema = Ema(module, decay=0.7, warmup=warmup)
    expected = {name: value.double() for name, value in state(module).items()}
    for step in range(40):
        module(torch.randn(4, 1, 8, 8))  # BatchNorm's buffers move
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        ema.update(step)
        decay = min(0.7, (1 + step) / (10 + step)) if warmup else 0.7
        for name, value in state(module).items():
            averaged = value.is_floating_point()
            expected[name] = decay * expected[name] + (1 - decay) * value.double() if averaged else value.double()
    weights = state(module)
    ema.swap()
    for name, value in state(module).items():
        assert torch.allclose(value.double(), expected[name], rtol=1e-5, atol=1e-6), name
    assert module[1].num_batches_tracked == 40
    ema.swap()
    assert all(torch.equal(value, weights[name]) for name, value in state(module).items())


def test_decay_zero_is_the_weights_themselves() -> None:
    module = network()
    ema = Ema(module, decay=0.0)
    with torch.no_grad():
        module[0].weight.add_(1)
    ema.update(0)
    weights = state(module)
    ema.swap()
    assert all(torch.equal(value, weights[name]) for name, value in state(module).items())


def test_it_follows_a_module_that_was_moved() -> None:
    """Moving to `cpu:0` gives a module new tensors, which is what wrapping does on a CPU."""
    module = network()
    ema = Ema(module, decay=0.9)
    before = state(module)
    module.to("cpu:0")
    with torch.no_grad():
        module[0].weight.add_(1)
    ema.update(0)
    ema.swap()
    assert torch.allclose(
        module[0].weight, before["0.weight"] + 0.9, atol=1e-6
    )  # (1 + 0) / (10 + 0) of the old is left
