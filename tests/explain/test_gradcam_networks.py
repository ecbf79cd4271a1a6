"""Grad-CAM finds the last map of every family of networks by itself."""

from __future__ import annotations

from collections.abc import Callable

import networks
import pytest
import torch
import torchvision.models as tv
from heat_networks import colour, lively, small_vit
from torch import Tensor, nn

from distcxr.explain import gradcam as module_under_test
from distcxr.explain.gradcam import gradcam
from distcxr.models.heads import Headed, head_parameter_names
from distcxr.recipe.model import Head


def small_vgg() -> nn.Module:
    with torch.device("meta"):  # 120 million weights of no use
        model = tv.VGG(nn.Sequential(), num_classes=3)
    model.features = tv.vgg.make_layers([8, "M", 512, "M"])
    model.classifier = nn.Sequential(nn.Linear(512 * 7 * 7, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))
    return model


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "AlexNet": lambda: tv.alexnet(num_classes=3),
    "ConvNeXt": lambda: tv.ConvNeXt([tv.convnext.CNBlockConfig(8, 16, 1), tv.convnext.CNBlockConfig(16, None, 1)]),
    "DenseNet": lambda: tv.DenseNet(8, (2, 2), 8, num_classes=3),
    "EfficientNet": lambda: tv.efficientnet_b0(num_classes=3),
    "MaxVit": lambda: tv.MaxVit((64, 64), 8, 4, [8, 8], [1, 1], 4, 0.0, num_classes=3),
    "MNASNet": lambda: tv.mnasnet0_5(num_classes=3),
    "MobileNetV2": lambda: tv.mobilenet_v2(num_classes=3),
    "MobileNetV3": lambda: tv.mobilenet_v3_small(num_classes=3),
    "RegNet": lambda: tv.regnet_y_400mf(num_classes=3),
    "ResNet": lambda: tv.resnet18(num_classes=3),
    "ShuffleNetV2": lambda: tv.shufflenet_v2_x0_5(num_classes=3),
    "SqueezeNet": lambda: tv.squeezenet1_1(num_classes=3),
    "SwinTransformer": lambda: tv.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=3),
    "VGG": small_vgg,
    "VisionTransformer": lambda: small_vit(image_size=64, num_classes=3),
}
TIMM = {
    "test_byobnet": 64, "test_convnext": 96, "test_convnext2": 96, "test_efficientnet_ln": 64, "test_mambaout": 96,
    "test_maxvit": 160, "test_nfnet": 64, "test_vit": 96, "test_vit2": 96, "test_vit3": 96, "test_vit_relpos": 96,
    "cait_xxs24_224": 64, "mobilenetv3_small_100": 64, "densenet121": 64,
}  # fmt: skip


def check_maps(model: nn.Module, side: int, metadata: Tensor | None = None) -> None:
    heat = gradcam(model, colour(side), metadata=metadata)
    assert heat.shape[:1] == (2,) and heat.shape[2:] == (side, side) and heat.dtype == torch.float32
    assert heat.isfinite().all() and heat.min() >= 0 and heat.max() == 1
    assert set(heat.amax((2, 3)).unique().tolist()) <= {0.0, 1.0}
    assert not heat.requires_grad


def test_every_family_of_the_table_is_tried() -> None:
    assert FAMILIES.keys() == module_under_test._TORCHVISION_LAYERS.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_torchvision_families(family: str) -> None:
    torch.manual_seed(0)
    model = FAMILIES[family]()
    assert type(model).__name__ == family
    head = [part for part in model.modules() if isinstance(part, nn.Linear | nn.Conv2d)][-1]
    nn.init.normal_(head.weight, std=0.5)
    check_maps(model, 64)


@pytest.mark.parametrize("name", TIMM)
def test_timm_networks(name: str) -> None:
    side = TIMM[name]
    check_maps(lively(networks.build(name, "timm", image_size=side)), side)


@pytest.mark.parametrize(("name", "library"), [("resnet18", "torchvision"), ("densenet121", "torchvision"),
                                              ("test_resnet", "timm"), ("test_mambaout", "timm")])  # fmt: skip
@pytest.mark.parametrize("kind", ["linear", "attention"])
def test_another_head_with_the_same_weights_looks_at_the_same_places(name: str, library: str, kind: str) -> None:
    """Attention begins as a mean, and metadata is the same wherever the network looks."""
    plain = lively(networks.build(name, library, image_size=96))
    model = networks.build(name, library, image_size=96, head=Head(kind=kind), num_metadata=2)  # type: ignore[arg-type]
    assert isinstance(model, Headed)
    model.backbone.load_state_dict(plain.state_dict(), strict=False)
    weight, _ = (plain.get_parameter(name) for name in head_parameter_names(plain))
    if name == "test_mambaout" and kind == "attention":
        return check_maps(model, 96, torch.rand(2, 2))  # its pooled features are normalised before the head
    with torch.no_grad():
        model.head.out.weight[:, : weight.shape[1]] = weight
    heat = gradcam(model, colour(96), metadata=torch.rand(2, 2))
    torch.testing.assert_close(heat, gradcam(plain, colour(96)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "library"), [("test_vit", "timm"), ("test_convnext", "timm")])
@pytest.mark.parametrize("kind", ["mlp", "attention"])
def test_maps_under_other_heads(name: str, library: str, kind: str) -> None:
    model = networks.build(name, library, image_size=96, head=Head(kind=kind, hidden=[8]))  # type: ignore[arg-type]
    check_maps(lively(model), 96)


def test_a_layer_is_named_as_the_library_names_it() -> None:
    model = lively(networks.build("resnet18", head=Head(kind="mlp", hidden=[8])))
    assert torch.equal(gradcam(model, colour(), layer="layer4"), gradcam(model, colour()))
    assert torch.equal(gradcam(model, colour(), layer="backbone.layer4"), gradcam(model, colour()))
    assert not torch.equal(gradcam(model, colour(), layer="layer3"), gradcam(model, colour()))


def test_maps_of_a_network_that_takes_metadata_need_it() -> None:
    model = networks.build("test_resnet", "timm", head=Head(), num_metadata=2)
    with pytest.raises(ValueError, match="takes 2 columns of metadata"):
        gradcam(model, colour())
