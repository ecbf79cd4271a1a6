"""Networks that are built for one size, and images of another."""

from __future__ import annotations

import networks
import pytest
import torch


@pytest.mark.parametrize(
    ("name", "library", "side", "message"),
    [
        ("vit_b_32", "torchvision", 100, r"vit_b_32 takes sides that are multiples of 32 pixels, and gets 100.* 96"),
        ("maxvit_t", "torchvision", 256, r"multiples of 224 pixels, and gets 256.*; the nearest is 224"),
        ("test_vit", "timm", 100, r"test_vit takes sides that are multiples of 16 pixels, and gets 100.* 96"),
        ("test_vit", "timm", 7, r"multiples of 16 pixels, and gets 7.*; the nearest is 16"),
        ("mixer_s32_224", "timm", 100, "multiples of 32"),
        ("test_maxvit", "timm", 100, r"test_maxvit can't take images of 100 pixels .*height \(25\).*window \(3\)"),
        ("xcit_nano_12_p16_224", "timm", 100, "can't take images of 100 pixels"),
    ],
)  # fmt: skip
def test_a_size_that_does_not_fit_is_named_with_one_that_does(name: str, library: str, side: int, message: str) -> None:
    with pytest.raises(ValueError, match=rf"data\.image_size: .*{message}"):
        networks.build(name, library, image_size=side)


@pytest.mark.parametrize(("name", "library"), [("test_resnet", "timm"), ("resnet18", "torchvision")])
def test_convolutions_take_any_size(name: str, library: str) -> None:
    model = networks.build(name, library, image_size=100)
    with torch.no_grad():
        assert model.eval()(torch.zeros(1, 3, 100, 100)).shape == (1, 14)
