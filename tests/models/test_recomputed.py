"""Gradient checkpointing changes no number, and keeps less."""

from __future__ import annotations

from typing import Any

import networks
import pytest
import torch
import torchvision
from torch import Tensor, nn

from distcxr.models.joined_maps import join_maps
from distcxr.models.recomputed import Recomputed, recompute_blocks


def small_densenet() -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.DenseNet(8, (3, 4), num_init_features=16, drop_rate=0.2, num_classes=14)
    join_maps(model)
    return model


# How it is built, pixels, the share of the bytes that it may keep, precision.
NETWORKS: dict[str, tuple[Any, int, float, str]] = {
    "DenseNet": (small_densenet, 64, 0.5, "bfloat16"),
    "ResNet": (lambda: networks.build("test_resnet", "timm", drop_path=0.3), 64, 0.6, "float32"),
    "EfficientNet": (
        lambda: networks.build("test_efficientnet", "timm", drop_path=0.3, drop_rate=0.3), 64, 0.5, "bfloat16",
    ),
    "ViT": (lambda: networks.build("test_vit", "timm", drop_path=0.3), 160, 0.3, "float32"),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_averages_and_random_numbers_stay(name: str) -> None:
    build, side, _, bits = NETWORKS[name]
    images = networks.grey(side).expand(-1, 3, -1, -1)

    def after_a_pass(model: nn.Module) -> dict[str, Tensor]:
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=bits == "bfloat16"):
            logits = model.train()(images)
        logits.float().square().sum().backward()
        found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        return found | dict(model.named_buffers()) | {"logits": logits, "random": torch.rand(2)}

    plain, recomputed = build(), build()
    recompute_blocks(recomputed, name)
    assert list(plain.state_dict()) == list(recomputed.state_dict())
    expected, found = after_a_pass(plain), after_a_pass(recomputed)
    assert len(expected) > 20 and expected.keys() == found.keys()
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


@pytest.mark.parametrize("name", NETWORKS)
def test_less_is_kept(name: str) -> None:
    build, side, share, _ = NETWORKS[name]
    plain, recomputed = build(), build()
    recompute_blocks(recomputed, name)
    images = torch.zeros(4, 3, side, side)
    assert kept_bytes(recomputed, images) < share * kept_bytes(plain, images)


def kept_bytes(model: nn.Module, images: Tensor) -> int:
    """Bytes that the backward pass waits for: what autograd saves, and the arguments of recomputed blocks."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    def arguments(_: nn.Module, given: Any) -> None:
        for one in given:
            kept.extend(one if isinstance(one, list) else [one])

    for block in model.modules():
        if isinstance(block, Recomputed):
            block.register_forward_pre_hook(arguments)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.train()(images)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages = {storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in kept)}
    return sum(size for place, size in storages.items() if place not in own)


def test_evaluation_with_gradients_recomputes_nothing() -> None:
    """Hooks of heat maps would see every layer twice."""
    model = networks.build("test_resnet", "timm").eval()
    recompute_blocks(model, "test_resnet")
    seen: list[str] = []
    model.layer4[0].conv1.register_forward_hook(lambda *_: seen.append("conv1"))  # type: ignore[index, union-attr, operator]
    model(torch.zeros(1, 3, 64, 64)).sum().backward()
    assert seen == ["conv1"]


def test_a_network_without_blocks() -> None:
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=r"gradient_checkpointing: model\.name=vgg11 has no blocks"),
    ):
        recompute_blocks(torchvision.models.vgg11(), "vgg11")
