"""Parameter groups, and the first updates against formulas written out in float64."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from distcxr.optim import build_optimizer, clipped, left_out, load_optimizer, set_lr, total_norm

LR, DECAY = 1e-2, 0.1


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def _build(network: nn.Module, name: Any = "adamw", **changes: Any) -> torch.optim.Optimizer:
    settings = {"lr": LR, "weight_decay": DECAY} | changes
    return build_optimizer(name, network.named_parameters(), **settings)


def _names(network: nn.Module, group: dict[str, Any]) -> list[str]:
    return [name for name, p in network.named_parameters() for q in group["params"] if p is q]


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_biases_and_norms_are_not_decayed(name: str) -> None:
    network = _network()
    decay, no_decay = _build(network, name).param_groups
    assert (decay["name"], decay["weight_decay"]) == ("decay", DECAY)
    assert (no_decay["name"], no_decay["weight_decay"]) == ("no_decay", 0.0)
    assert _names(network, decay) == ["0.weight", "3.weight"]
    assert _names(network, no_decay) == ["0.bias", "1.weight", "1.bias", "3.bias"]


def test_or_everything_is() -> None:
    network = _network()
    (decay,) = _build(network, decay_all=True).param_groups
    assert (decay["name"], decay["weight_decay"]) == ("decay", DECAY) and len(decay["params"]) == 6


def test_the_kinds_of_optimiser() -> None:
    network = _network()
    assert type(_build(network, "adamw")) is torch.optim.AdamW
    assert type(_build(network, "adam")) is torch.optim.Adam
    sgd = _build(network, "sgd", momentum=0.8, nesterov=True)
    assert type(sgd) is torch.optim.SGD
    assert all(group["momentum"] == 0.8 and group["nesterov"] for group in sgd.param_groups)
    assert all(group["betas"] == (0.8, 0.95) for group in _build(network, betas=(0.8, 0.95)).param_groups)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_two_updates_follow_the_formula(name: str) -> None:
    value, gradients, betas, momentum, epsilon = 0.5, [0.3, -0.2], (0.9, 0.999), 0.9, 1e-8
    parameter = nn.Parameter(torch.full((1, 1), value, dtype=torch.float64))
    optimizer = build_optimizer(
        name,
        [("weight", parameter)],
        lr=LR,
        weight_decay=DECAY,
        betas=betas,
        momentum=momentum,  # type: ignore[arg-type]
    )
    first, second, velocity = 0.0, 0.0, None
    for update, gradient in enumerate(gradients, start=1):
        parameter.grad = torch.full((1, 1), gradient, dtype=torch.float64)
        optimizer.step()
        if name == "adamw":
            value -= LR * DECAY * value
        else:
            gradient += DECAY * value
        if name == "sgd":
            velocity = gradient if velocity is None else momentum * velocity + gradient
            value -= LR * velocity
        else:
            first = betas[0] * first + (1 - betas[0]) * gradient
            second = betas[1] * second + (1 - betas[1]) * gradient**2
            corrected = math.sqrt(second / (1 - betas[1] ** update)) + epsilon
            value -= LR * first / (1 - betas[0] ** update) / corrected
    assert parameter.item() == pytest.approx(value, rel=1e-12)


def test_the_same_gradients_give_the_same_weights() -> None:
    outcomes = []
    for _ in range(2):
        network = _network()
        optimizer = _build(network)
        for _ in range(3):
            optimizer.zero_grad()
            network(torch.ones(2, 1, 4, 4)).square().sum().backward()
            optimizer.step()
        outcomes.append(copy.deepcopy(network.state_dict()))
    assert all(torch.equal(outcomes[0][key], outcomes[1][key]) for key in outcomes[0])


def test_frozen_parameters_are_left_out() -> None:
    network = _network()
    network[0].requires_grad_(False)
    network[1].requires_grad_(False)
    decay, no_decay = _build(network).param_groups
    assert _names(network, decay) == ["3.weight"] and _names(network, no_decay) == ["3.bias"]
    network[3].weight.requires_grad_(False)
    (only,) = _build(network).param_groups
    assert only["name"] == "no_decay"


def test_a_frozen_network_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        _build(_network().requires_grad_(False))


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(ValueError, match="Nesterov"):
        _build(_network(), name="sgd", momentum=0.0, nesterov=True)


def test_set_lr_reaches_every_group_and_nothing_else() -> None:
    optimizer = _build(_network())
    before = [{k: v for k, v in group.items() if k not in ("lr", "params")} for group in optimizer.param_groups]
    set_lr(optimizer, 3e-5)
    assert [group["lr"] for group in optimizer.param_groups] == [3e-5, 3e-5]
    after = [{k: v for k, v in group.items() if k not in ("lr", "params")} for group in optimizer.param_groups]
    assert after == before


def test_its_state_goes_through_a_file_read_without_pickle(tmp_path: Any) -> None:
    network = _network()
    optimizer = _build(network)
    network(torch.ones(2, 1, 4, 4)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    other = _build(_network(), lr=1.0)
    other.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    assert [group["name"] for group in other.param_groups] == ["decay", "no_decay"]
    assert [group["lr"] for group in other.param_groups] == [LR, LR]


def test_layer_decay_scales_the_rate_of_each_depth() -> None:
    network = _network()
    depths = {"0.weight": 2, "0.bias": 2, "1.weight": 1, "1.bias": 1, "3.weight": 0, "3.bias": 0}
    optimizer = _build(network, layer_decay=0.5, depths=depths)
    set_lr(optimizer, 1e-2)
    assert [(group["name"], group["lr"], _names(network, group)) for group in optimizer.param_groups] == [
        ("decay", 1e-2, ["3.weight"]),
        ("no_decay", 1e-2, ["3.bias"]),
        ("no_decay", 5e-3, ["1.weight", "1.bias"]),
        ("decay", 2.5e-3, ["0.weight"]),
        ("no_decay", 2.5e-3, ["0.bias"]),
    ]
    network(torch.ones(2, 1, 4, 4)).sum().backward()
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    optimizer.step()  # Adam's first update is the rate itself, whatever the gradient
    moved = (before["0.bias"] - network[0].bias).abs().max().item()
    assert moved == pytest.approx(2.5e-3, rel=1e-2)


CLIPPED = [
    ("adamw", {"weight_decay": 0.01}),
    ("adam", {"weight_decay": 0.0}),
    ("sgd", {"weight_decay": 0.01, "nesterov": True}),
]


@pytest.mark.parametrize(("name", "more"), CLIPPED)
@pytest.mark.parametrize("max_norm", [0.1, 1e6])
def test_clipping_within_the_update_is_pytorchs(name: Any, more: dict[str, Any], max_norm: float) -> None:
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    ours = copy.deepcopy(theirs)
    optimizers = [build_optimizer(name, model.named_parameters(), lr=0.1, **more) for model in (theirs, ours)]
    for _ in range(3):
        images = torch.randn(4, 8)
        for model in (theirs, ours):
            model(images).square().sum().backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
        optimizers[0].step()
        with clipped(optimizers[1], max_norm, total_norm(optimizers[1])):
            optimizers[1].step()
        for optimizer in optimizers:
            optimizer.zero_grad()
    for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)
    assert not hasattr(optimizers[1], "grad_scale")


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_an_optimiser_that_was_not_fused_is_after_loading(name: Any) -> None:
    """Checkpoints of versions before this one; the update continues as theirs would."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    optimizer = build_optimizer(name, model.named_parameters(), lr=0.1, weight_decay=0.0)
    settings = {"momentum": 0.9} if name == "sgd" else {}
    old = kinds[name]([dict(group) for group in optimizer.param_groups], lr=0.1, fused=False, **settings)
    for group in old.param_groups:
        group["fused"] = False
    model(torch.ones(1, 4)).sum().backward()
    old.step()
    load_optimizer(optimizer, copy.deepcopy(old.state_dict()))
    assert all(group["fused"] and group["foreach"] is None for group in optimizer.param_groups)
    kept = copy.deepcopy(model.state_dict())
    old.step()
    expected = copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    optimizer.step()
    for key, value in expected.items():
        assert torch.allclose(model.state_dict()[key], value, atol=1e-6), key


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize("num_before", [0, 2])
def test_an_update_that_is_left_out_leaves_no_trace(name: Any, num_before: int) -> None:
    """The first one, too: PyTorch's fused SGD would keep uninitialised memory as the momentum."""
    torch.manual_seed(0)
    models = [nn.Linear(8, 64) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [build_optimizer(name, model.named_parameters(), lr=0.1, weight_decay=0.1) for model in models]
    filled = torch.full((4096,), 7.0)  # freed memory that is not zero, for whoever asks for some
    del filled
    inputs = torch.randn(num_before + 1, 4, 8)
    for number in range(num_before + 1):
        if number == num_before:  # one more, which is not finite, of the second model alone
            (models[1](inputs[number]).sum() * torch.nan).backward()
            with (
                clipped(optimizers[1], 1.0, total_norm(optimizers[1])),
                left_out(optimizers[1], ~total_norm(optimizers[1]).isfinite()),
            ):
                optimizers[1].step()
            optimizers[1].zero_grad()
        for model, optimizer in zip(models, optimizers, strict=True):
            model(inputs[number]).square().sum().backward()
            with left_out(optimizer, torch.tensor(False)):
                optimizer.step()
            optimizer.zero_grad()
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(ours, theirs)
        kept = [optimizers[number].state[p] for number, p in enumerate((ours, theirs))]
        assert kept[0].keys() == kept[1].keys() and len(kept[0]) > 0
        assert all(torch.equal(kept[0][key], kept[1][key]) for key in kept[0])
    assert not hasattr(optimizers[1], "found_inf") and not hasattr(optimizers[1], "grad_scale")
