"""Heads beyond a network's own: hidden layers, attention, age, sex and view beside the image."""

from __future__ import annotations

from typing import Any

import networks
import pytest
import torch
from torch import Tensor, nn

from distcxr.models.factory import build_model, sync_batchnorm
from distcxr.models.freeze import set_trainable, training_mode
from distcxr.models.heads import (
    AttentionHead,
    Headed,
    PooledHead,
    TwoViewHead,
    head_parameter_names,
    last_map,
    pooled_features,
)  # fmt: skip
from distcxr.models.maps import feature_map
from distcxr.recipe.model import Head

BACKBONES = [
    ("resnet18", "torchvision"), ("densenet121", "torchvision"), ("mobilenet_v3_small", "torchvision"),
    ("squeezenet1_1", "torchvision"), ("efficientnet_b0", "torchvision"), ("test_resnet", "timm"),
    ("test_convnext", "timm"), ("test_vit", "timm"), ("test_mambaout", "timm"),
]  # fmt: skip
KINDS = ("linear", "mlp", "attention")


def build(name: str = "resnet18", library: str = "torchvision", num_metadata: int = 0, **head: Any) -> nn.Module:
    spec = Head(**head)
    return networks.build(name, library, head=spec, num_metadata=num_metadata, num_classes=3, image_size=64)


def headed(*arguments: Any, **options: Any) -> Headed:
    model = build(*arguments, **options)
    assert isinstance(model, Headed)
    return model


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(1))


METADATA = torch.tensor([[0.5, 1.0], [0.0, 0.0]])


def test_a_plain_recipe_gets_the_library_s_network() -> None:
    plain = networks.build(num_classes=3)
    same = build()
    assert type(same) is type(plain) and same.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in same.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "library"), BACKBONES)
def test_every_head_on_every_kind_of_network(name: str, library: str, kind: str) -> None:
    model = headed(name, library, num_metadata=2, kind=kind, hidden=[8])
    logits = model(images(), METADATA)
    assert logits.shape == (2, 3) and logits.dtype == torch.float32
    logits.square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == [], "DDP would wait for these for ever"
    assert head_parameter_names(model) == [f"head.{name}" for name, _ in model.head.named_parameters()]
    assert all(name.startswith(("backbone.", "head.")) for name in model.state_dict())


def test_an_mlp_is_hidden_layers_on_the_pooled_features() -> None:
    model = headed(kind="mlp", hidden=[8, 5]).eval()
    assert isinstance(model.head, PooledHead)
    assert [tuple(value.shape) for name, value in model.head.state_dict().items() if name.endswith("weight")] == [
        (8, 512), (5, 8), (3, 5),
    ]  # fmt: skip
    with torch.no_grad():
        hidden = model.backbone(images())
        for layer in model.head.hidden:
            hidden = (hidden @ layer.weight.T + layer.bias).clamp(min=0)  # type: ignore[operator, union-attr]
        torch.testing.assert_close(model(images()), hidden @ model.head.out.weight.T + model.head.out.bias)


def test_dropout_of_hidden_layers_is_on_in_training_alone() -> None:
    model = headed("test_resnet", "timm", kind="mlp", hidden=[64], drop_rate=0.5).eval()
    with torch.no_grad():
        features = model.features(images())
        plain = model.head(features)
        assert torch.equal(model.head(features), plain)
        model.train()
        assert not torch.equal(model.head(features), plain)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "library"), [("resnet18", "torchvision"), ("mobilenet_v3_small", "torchvision"),
                                              ("test_resnet", "timm")])  # fmt: skip
def test_model_drop_rate_is_dropout_before_any_head(name: str, library: str, kind: str) -> None:
    spec = Head(kind=kind, hidden=[8])  # type: ignore[arg-type]
    model = networks.build(name, library, head=spec, num_metadata=2, drop_rate=0.9, num_classes=3, image_size=64)
    assert isinstance(model, Headed)
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()
    with torch.no_grad():
        one, another = model(images(), METADATA), model(images(), METADATA)
        assert not torch.equal(one, another)
        assert torch.equal(model.eval()(images(), METADATA), model(images(), METADATA))


@pytest.mark.parametrize(("name", "library"), [("resnet18", "torchvision"), ("densenet121", "torchvision"),
                                              ("test_resnet", "timm"), ("densenet121", "timm")])  # fmt: skip
def test_attention_begins_as_a_mean_and_a_linear_layer(name: str, library: str) -> None:
    plain = networks.build(name, library, num_classes=3).eval()
    model = headed(name, library, kind="attention").eval()
    torch.nn.init.normal_(model.head.out.weight, std=0.5)
    model.backbone.load_state_dict(plain.state_dict(), strict=False)
    weight, bias = (plain.get_parameter(name) for name in head_parameter_names(plain))
    model.head.out.load_state_dict({"weight": weight, "bias": bias})
    with torch.no_grad():
        torch.testing.assert_close(model(images()), plain(images()), rtol=1e-4, atol=1e-5)


def test_attention_weighs_positions_for_each_finding() -> None:
    head = AttentionHead(4, 2, 0.0, 0)
    positions = torch.zeros(1, 9, 4)
    positions[0, 3] = torch.tensor([1.0, 0, 0, 2])
    nn.init.zeros_(head.out.bias)
    with torch.no_grad():
        head.out.weight.copy_(torch.tensor([[0.0, 0, 0, 1], [0, 0, 0, 1]]))
        head.attention.weight.copy_(torch.tensor([[50.0, 0, 0, 0], [-50, 0, 0, 0]]))
        logits = head(positions)
    assert logits[0].tolist() == pytest.approx([2.0, 0.0], abs=1e-6), (
        "the place for one finding, all but it for another"
    )


def test_attention_learns_where_to_look() -> None:
    model = headed("test_resnet", "timm", kind="attention")
    model(images()).sum().backward()
    assert isinstance(model.head, AttentionHead)
    assert model.head.attention.weight.grad is not None and model.head.attention.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("name", "library"), [("test_vit", "timm"), ("resnet18", "torchvision")])
def test_attention_on_frozen_maps_keeps_nothing_of_the_backbone_for_a_backward_pass(name: str, library: str) -> None:
    def kept(patterns: list[str] | None) -> tuple[int, list[str]]:
        sizes: list[int] = []
        model = headed(name, library, kind="attention")
        set_trainable(model, patterns)
        training_mode(model, "eval")
        with torch.autograd.graph.saved_tensors_hooks(lambda one: sizes.append(one.numel()) or one, lambda one: one):  # type: ignore[func-returns-value]
            logits = model(images())
        logits.sum().backward()
        return sum(sizes), [name for name, value in model.named_parameters() if value.grad is not None]

    (frozen, trained), (whole, every) = kept(["head"]), kept(None)
    assert trained == ["head.attention.weight", "head.out.weight", "head.out.bias"] and len(every) > 50
    assert 0 < frozen < whole / 20


def test_metadata_changes_the_logits_and_what_is_missing_differs_from_what_is_zero() -> None:
    for kind in KINDS:
        model = headed("test_resnet", "timm", num_metadata=2, kind=kind, hidden=[8]).eval()
        nn.init.normal_(model.head.out.weight)
        with torch.no_grad():
            same = images(1).expand(3, -1, -1, -1)
            known = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.8, 1.0]])
            logits = model(same, known)
        assert len({tuple(row) for row in logits.tolist()}) == 3, kind


def test_metadata_that_is_missing_or_of_another_width_is_an_error() -> None:
    model = headed("test_resnet", "timm", num_metadata=2)
    for wrong, message in ((None, "got none"), (torch.zeros(2, 7), "got 7")):
        with pytest.raises(ValueError, match=f"takes 2 columns of metadata.*{message}"):
            model(images(), wrong)


def test_patterns_reach_a_network_with_another_head() -> None:
    model = build(num_metadata=2, kind="mlp", hidden=[8])
    names = set_trainable(model, ["layer4", "head"])
    assert {name.split(".")[1] for name in names if name.startswith("backbone.")} == {"layer4"}
    assert [name for name in names if name.startswith("head.")] == head_parameter_names(model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "library"), [("resnet18", "torchvision"), ("squeezenet1_1", "torchvision"),
                                              ("test_convnext", "timm"), ("test_vit", "timm")])  # fmt: skip
def test_pooled_features_are_what_the_last_layer_takes(name: str, library: str, kind: str) -> None:
    model = build(name, library, kind=kind, hidden=[8]).eval()
    with torch.no_grad():
        features = pooled_features(model, images())
    assert features.ndim == 2 and len(features) == 2 and (features[0] != features[1]).any()
    if kind == "linear":
        weight, bias = (model.get_parameter(name).flatten(1) if name.endswith("weight") else model.get_parameter(name)
                        for name in head_parameter_names(model))  # fmt: skip
        with torch.no_grad():
            torch.testing.assert_close(features @ weight.T + bias, model(images()), rtol=1e-4, atol=1e-5)


def test_class_tokens_are_not_positions() -> None:
    network = networks.build("test_vit", "timm", image_size=64)
    assert feature_map(network, images()).shape == (2, 16, 64)
    vit = networks.build("vit_b_32", image_size=64)
    with torch.no_grad():
        assert feature_map(vit, images()).shape == (2, 4, 768)


def test_a_network_without_a_map_is_named() -> None:
    with pytest.raises(ValueError, match=r"attention: PoolingVisionTransformer has no feature map.*kind=mlp"):
        build_model("pit_ti_224", library="timm", num_classes=3, head=Head(kind="attention"), image_size=224)


def test_the_same_seed_builds_the_same_head() -> None:
    one, another = (build(num_metadata=2, kind="mlp").state_dict() for _ in range(2))
    assert all(torch.equal(one[key], another[key]) for key in one)


def test_synchronised_batchnorm_keeps_the_head() -> None:
    model = headed(kind="attention", num_metadata=2).eval()
    with torch.no_grad():
        before = model(images(), METADATA)
        after = sync_batchnorm(model).eval()
        assert torch.equal(after(images(), METADATA), before)


def test_channels_last_and_bf16_make_no_difference_but_rounding() -> None:
    model = headed(kind="attention", num_metadata=2).eval()
    torch.nn.init.normal_(model.head.out.weight, std=0.1)
    with torch.no_grad():
        plain = model(images(), METADATA)
        there = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        turned = images().contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(there(turned, METADATA), plain, rtol=1e-3, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = there(turned, METADATA)
    torch.testing.assert_close(rounded.float(), plain, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(("name", "library"), [("resnet18", "torchvision"), ("test_vit", "timm")])
def test_two_views_go_through_one_backbone(name: str, library: str) -> None:
    def built(**head: Any) -> Headed:
        model = networks.build(
            name, library, head=Head(**head), num_metadata=2, num_views=2, num_classes=3, image_size=64
        )
        assert isinstance(model, Headed)
        return model

    model, there = built(kind="mlp", hidden=[8]).eval(), torch.tensor([[0.5, 1.0], [0.1, 0.0]])
    frontal, lateral = images(), images().flip(-1)
    both = torch.cat([frontal, lateral], dim=1)
    with torch.no_grad():
        missing = model.get_parameter("head.missing")
        width = len(missing)
        features = pooled_features(model, both)
        assert features.shape == (2, 2 * width)
        turned = pooled_features(model, torch.cat([lateral, frontal], dim=1))
        torch.testing.assert_close(features.roll(width, 1), turned)
        assert last_map(model, both).shape[0] == 2
        logits = model(both, there)
        blank = model(torch.cat([frontal, frontal], dim=1), there)
        assert not torch.equal(logits[0], blank[0]), "it looks at the lateral view that is there"
        torch.testing.assert_close(logits[1], blank[1])  # and not at what is in the place of a missing one
        missing.fill_(1.0)
        assert not torch.equal(model(both, there)[1], logits[1])
    linear = built()
    assert isinstance(linear.head, TwoViewHead) and linear.head.out.in_features == 2 * width + 32
    linear(both, there).square().sum().backward()
    assert [key for key, one in linear.named_parameters() if one.grad is None] == []
    with pytest.raises(ValueError, match="takes two views, and metadata with a last column"):
        linear(both)
