"""Patterns and the parameters they mean; BatchNorm of what is frozen."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
import torchvision
from torch import nn

from distcxr.models.factory import build_model
from distcxr.models.freeze import evaluation_mode, set_trainable, trainable_names, training_mode
from distcxr.recipe.model import Head


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return torchvision.models.resnet18(weights=None, num_classes=3)


@pytest.mark.parametrize(
    ("patterns", "begin"),
    [
        (["fc"], ("fc.",)),
        (["head"], ("fc.",)),
        (["layer4", "fc"], ("layer4.", "fc.")),
        (["layer4.1.conv2.weight"], ("layer4.1.conv2.weight",)),
        (["layer*"], ("layer1.", "layer2.", "layer3.", "layer4.")),
        (["layer*.1.conv1"], tuple(f"layer{n}.1.conv1.weight" for n in (1, 2, 3, 4))),
        (["*.bias"], None),
        (None, ("",)),
    ],
)
def test_patterns(resnet: nn.Module, patterns: list[str] | None, begin: tuple[str, ...] | None) -> None:
    names = [name for name, _ in resnet.named_parameters()]
    expected = [name for name in names if (name.startswith(begin) if begin else name.endswith(".bias"))]
    assert set_trainable(resnet, patterns) == expected
    assert [name for name, parameter in resnet.named_parameters() if parameter.requires_grad] == expected


@pytest.mark.parametrize(
    ("name", "library", "second", "fourth"),
    [
        ("densenet121", "torchvision", ("features.denseblock2.",), ("features.denseblock4.", "features.norm5.")),
        ("densenet121", "timm", ("features.denseblock2.",), ("features.denseblock4.", "features.norm5.")),
        ("convnext_tiny", "timm", ("stages.1.",), ("stages.3.",)),
        ("swin_tiny_patch4_window7_224", "timm", ("layers.1.",), ("layers.3.",)),
    ],
)
def test_the_parts_of_a_resnet_in_other_families(
    name: str, library: Literal["timm", "torchvision"], second: tuple[str, ...], fourth: tuple[str, ...]
) -> None:
    with torch.device("meta"):
        network = build_model(name, library=library, num_classes=3, image_size=224)
    names = [parameter for parameter, _ in network.named_parameters()]
    for pattern, begin in (("layer2", second), ("layer4", fourth)):
        expected = [parameter for parameter in names if parameter.startswith(begin)]
        assert expected and trainable_names(network, [pattern]) == expected
    assert trainable_names(network, ["fc"]) == trainable_names(network, ["head"])
    with pytest.raises(ValueError, match="'layer5' names no parameter"):
        trainable_names(network, ["layer5"])


def test_a_pattern_begins_at_a_dot(resnet: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"'layer' names no parameter of the network; did you mean layer"):
        set_trainable(resnet, ["fc", "layer"])
    with pytest.raises(ValueError, match=r"'lyaer3' names no parameter of the network; did you mean layer3"):
        set_trainable(resnet, ["lyaer3"])
    with pytest.raises(
        ValueError, match=r"'zzz\[x\]' names no parameter of the network; it has conv1, bn1, .*fc, and he"
    ):
        set_trainable(resnet, ["zzz[x]"])
    with pytest.raises(ValueError, match=r"no pattern, so nothing would be trained"):
        set_trainable(resnet, [])


def test_another_head_keeps_the_librarys_names() -> None:
    network = build_model("test_resnet", library="timm", num_classes=3, in_chans=1, head=Head(kind="mlp", hidden=[8]))
    head = {"head.hidden.0.weight", "head.hidden.0.bias", "head.out.weight", "head.out.bias"}
    assert set(trainable_names(network, ["head"])) == head
    names = trainable_names(network, ["layer4"])
    assert names and all(name.startswith("backbone.layer4.") for name in names)
    assert trainable_names(network, ["backbone.layer4"]) == names


def test_what_a_network_holds_fixed_is_never_trained() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].bias.requires_grad_(False)
    assert trainable_names(network, None) == ["0.weight", "1.weight", "1.bias"]
    assert trainable_names(network, ["0.bias"]) == []


def test_batchnorm_of_frozen_layers(resnet: nn.Module) -> None:
    set_trainable(resnet, ["layer4.1.bn2.weight", "fc"])
    plain = nn.BatchNorm2d(4, affine=False)
    network = nn.ModuleList([resnet, plain])
    training_mode(network, "eval")
    assert [name for name, m in resnet.named_modules() if isinstance(m, nn.BatchNorm2d) and m.training] == [
        "layer4.1.bn2"
    ]
    assert plain.training and resnet.training
    before = {id(layer): layer.training for layer in network.modules()}
    with pytest.raises(KeyError), evaluation_mode(network):
        assert not any(layer.training for layer in network.modules())
        raise KeyError
    assert {id(layer): layer.training for layer in network.modules()} == before
    training_mode(network, "train")
    assert all(layer.training for layer in network.modules())


def test_gradients_of_what_was_frozen_are_dropped() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network(torch.ones(1, 2)).sum().backward()
    set_trainable(network, ["1"])
    assert all(parameter.grad is None for parameter in network.parameters())
