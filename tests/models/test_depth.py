"""Blocks between a parameter and the head, for networks of both libraries."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from distcxr.models.depth import embedding_names, layer_depths
from distcxr.models.factory import build_model
from distcxr.optim import build_optimizer
from distcxr.recipe.model import Head


@pytest.mark.parametrize(
    ("network", "depth_of"),
    [
        ("resnet18", {"fc": 0, "layer4.1": 1, "layer4.0": 2, "layer1.0": 8, "conv1": 9, "bn1": 9}),
        (
            "densenet121",
            {
                "classifier": 0, "features.norm5": 1, "features.denseblock4.denselayer16": 1,
                "features.denseblock4.denselayer1": 16, "features.transition3": 17, "features.conv0": 62,
                "features.norm0": 62,
            },
        ),
        (
            "vit_b_16",
            {
                "heads": 0, "encoder.ln": 1, "encoder.layers.encoder_layer_11": 1, "encoder.layers.encoder_layer_0": 12,
                "conv_proj": 13, "class_token": 13, "encoder.pos_embedding": 13,
            },
        ),
        ("vgg11_bn", {"classifier.6": 0, "classifier.3": 1, "features.0": 10, "features.1": 10}),
        ("convnext_tiny", {"classifier.2": 0, "features.7.2": 1, "features.0": 22}),
        ("efficientnet_b0", {"classifier": 0, "features.8": 1, "features.7.0": 2, "features.0": 18}),
        ("timm:resnet18", {"fc": 0, "layer4.1": 1, "layer1.0": 8, "conv1": 9, "bn1": 9}),
        ("timm:convnext_atto", {"head.fc": 0, "head.norm": 0, "stages.3.blocks.1": 1, "stem": 13}),
        ("timm:vit_tiny_patch16_224", {"head": 0, "norm": 1, "blocks.11": 1, "blocks.0": 12, "pos_embed": 13}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_depths(network: str, depth_of: dict[str, int]) -> None:
    library, _, name = network.rpartition(":")
    with torch.device("meta"):
        built = timm.create_model(name) if library else torchvision.models.get_model(name, weights=None)
    depths = layer_depths(built)
    assert set(depths) == {name for name, _ in built.named_parameters()}
    assert set(depths.values()) == set(range(max(depths.values()) + 1))
    for begin, depth in depth_of.items():
        assert {found for name, found in depths.items() if f"{name}.".startswith(f"{begin}.")} == {depth}, begin


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto", "convnext_tiny.dinov3_lvd1689m",
        "vit_small_patch16_dinov3", "eva02_tiny_patch14_224", "densenet121",
    ],
)  # fmt: skip
def test_depths_are_those_of_timm(name: str) -> None:
    """Also of what lies between the last block and the last layer, with which all below would move by one."""
    with torch.device("meta"):
        built = timm.create_model(name, num_classes=14)
    groups = param_groups_layer_decay(built, layer_decay=0.5)
    theirs = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    ours = layer_depths(built)
    assert {name: 0.5 ** ours[name] for name, _ in built.named_parameters()} == {
        name: theirs[id(parameter)] for name, parameter in built.named_parameters()
    }


@pytest.mark.parametrize("name", ["test_vit", "swinv2_tiny_window8_256", "eva02_tiny_patch14_224"])
def test_embeddings_are_what_timm_decays_not(name: str) -> None:
    with torch.device("meta"):
        built = timm.create_model(name, num_classes=3)
    _, decay = param_groups_weight_decay(built, no_weight_decay_list=built.no_weight_decay())
    named = dict(built.named_parameters())
    ours = build_optimizer("adamw", named.items(), lr=1, weight_decay=1, undecayed=embedding_names(built))
    assert {id(one) for one in ours.param_groups[0]["params"]} == {id(one) for one in decay["params"]}
    assert any(named[one].ndim > 1 for one in embedding_names(built)), "else this tests nothing"


def test_embeddings_of_torchvision_s_and_behind_another_head() -> None:
    with torch.device("meta"):
        vit, swin = (torchvision.models.get_model(name, weights=None) for name in ("vit_b_16", "swin_t"))
    assert embedding_names(vit) == {"class_token", "encoder.pos_embedding"}
    assert len(found := embedding_names(swin)) == 12 and "features.1.0.attn.relative_position_bias_table" in found
    head = Head(kind="mlp", hidden=[8])
    headed = build_model("test_vit", library="timm", num_classes=3, in_chans=1, head=head)
    assert embedding_names(headed) == {"backbone.cls_token", "backbone.pos_embed"}
    assert not embedding_names(build_model("test_resnet", library="timm", num_classes=3, in_chans=1))


def test_every_part_of_another_head_has_depth_0() -> None:
    own = layer_depths(build_model("test_convnext", library="timm", num_classes=3, in_chans=1))
    head = Head(kind="mlp", hidden=[8])
    depths = layer_depths(
        build_model("test_convnext", library="timm", num_classes=3, in_chans=1, head=head, num_metadata=2)
    )
    assert {depth for name, depth in depths.items() if name.startswith("head.")} == {0}
    below = {name.removeprefix("backbone."): depth for name, depth in depths.items() if name.startswith("backbone.")}
    assert below == {name: depth for name, depth in own.items() if not name.startswith("head.fc.")}


def test_blocks_deepen_towards_the_first_layer() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2), nn.Linear(2, 1))
    depths = layer_depths(network)
    assert depths == {"0.weight": 2, "0.bias": 2, "1.weight": 2, "1.bias": 2, "2.weight": 1, "2.bias": 1,
                      "3.weight": 0, "3.bias": 0}  # fmt: skip
