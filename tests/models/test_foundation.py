"""X-ray weights in the formats of their projects, by the names of their public code: the features are theirs."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import networks
import pytest
import torch
import torch.nn.functional as F
from timm.models import eva, swin_transformer, vision_transformer
from torch import Tensor, nn

from distcxr.explain.gradcam import gradcam
from distcxr.models import foundation, weights
from distcxr.models.catalogue import find_networks
from distcxr.models.depth import layer_depths
from distcxr.models.factory import build_model, check_named
from distcxr.models.foundation import FOUNDATIONS
from distcxr.models.freeze import set_trainable
from distcxr.models.heads import head_parameter_names, pooled_features
from distcxr.models.importers import WeightsFile, read_weights, split
from distcxr.models.key_maps import to_timm
from distcxr.models.weights import WeightsUnavailable, load_backbone

D, SIDE, PATCH, HEADS, DEPTH = 16, 56, 14, 2, 2
TOKENS = (SIDE // PATCH) ** 2

State = dict[str, Tensor]


def images(side: int = SIDE) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def state_of(shapes: dict[str, tuple[int, ...]]) -> State:
    """Random weights; names with {} are of each block."""
    generator = torch.Generator().manual_seed(0)
    names = {name.format(block): shape for name, shape in shapes.items() for block in range(DEPTH)}
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in names.items()}


def layer(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def vit_block(prefix: str, width: int = D) -> dict[str, tuple[int, ...]]:
    return (
        layer(f"{prefix}.norm1", width) | layer(f"{prefix}.attn.qkv", 3 * width, width)
        | layer(f"{prefix}.attn.proj", width, width) | layer(f"{prefix}.norm2", width)
        | layer(f"{prefix}.mlp.fc1", 4 * width, width) | layer(f"{prefix}.mlp.fc2", width, 4 * width)
    )  # fmt: skip


def hugging_face(registers: int = 0) -> State:
    """transformers' Dinov2Model, or Dinov2WithRegistersModel: RAD-DINO, CXformer."""
    block = "encoder.layer.{}"
    shapes = {
        "embeddings.cls_token": (1, 1, D), "embeddings.mask_token": (1, D),
        "embeddings.position_embeddings": (1, 1 + TOKENS, D),
        f"{block}.layer_scale1.lambda1": (D,), f"{block}.layer_scale2.lambda1": (D,),
    }  # fmt: skip
    shapes |= {"embeddings.register_tokens": (1, registers, D)} if registers else {}
    shapes |= layer("embeddings.patch_embeddings.projection", D, 3, PATCH, PATCH) | layer("layernorm", D)
    shapes |= layer(f"{block}.norm1", D) | layer(f"{block}.norm2", D)
    for part in ("attention.query", "attention.key", "attention.value", "output.dense"):
        shapes |= layer(f"{block}.attention.{part}", D, D)
    return state_of(shapes | layer(f"{block}.mlp.fc1", 4 * D, D) | layer(f"{block}.mlp.fc2", D, 4 * D))


def dinov2_features(state: State, pixels: Tensor) -> Tensor:
    """What transformers computes of a `hugging_face` state dict: the class token after the last norm, [B, D]."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (D,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    patches = "embeddings.patch_embeddings.projection"
    x = F.conv2d(pixels, state[f"{patches}.weight"], state[f"{patches}.bias"], stride=PATCH).flatten(2).transpose(1, 2)
    x = torch.cat([state["embeddings.cls_token"].expand(len(x), -1, -1), x], 1)
    x = x + state["embeddings.position_embeddings"]
    if "embeddings.register_tokens" in state:
        x = torch.cat([x[:, :1], state["embeddings.register_tokens"].expand(len(x), -1, -1), x[:, 1:]], 1)
    for number in range(DEPTH):
        at = f"encoder.layer.{number}"
        normed = norm(f"{at}.norm1", x)
        q, k, v = (
            linear(f"{at}.attention.attention.{part}", normed).unflatten(2, (HEADS, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        mixed = ((q @ k.transpose(2, 3) / (D // HEADS) ** 0.5).softmax(3) @ v).transpose(1, 2).flatten(2)
        x = x + state[f"{at}.layer_scale1.lambda1"] * linear(f"{at}.attention.output.dense", mixed)
        hidden = F.gelu(linear(f"{at}.mlp.fc1", norm(f"{at}.norm2", x)))
        x = x + state[f"{at}.layer_scale2.lambda1"] * linear(f"{at}.mlp.fc2", hidden)
    return norm("layernorm", x)[:, 0]


def vit(side: int = SIDE, **options: Any) -> Any:
    return vision_transformer.VisionTransformer(
        **{"img_size": side, "patch_size": PATCH, "embed_dim": D, "depth": DEPTH, "num_heads": HEADS, "num_classes": 3}
        | options
    ).eval()


def dino(side: int = SIDE, **options: Any) -> Any:
    return vit(side, init_values=1e-5, **options)


def dino_with_registers(side: int = SIDE) -> Any:
    return dino(side, reg_tokens=4, no_embed_class=True)


def eva_02(**options: Any) -> Any:
    return eva.Eva(
        img_size=SIDE, patch_size=PATCH, embed_dim=D, depth=DEPTH, num_heads=HEADS, num_classes=3, mlp_ratio=4 * 2 / 3,
        swiglu_mlp=True, use_rot_pos_emb=True, ref_feat_shape=(4, 4), **options,
    ).eval()  # fmt: skip


def eva_base() -> Any:
    return eva_02(qkv_fused=False, scale_mlp=True)


def swin() -> Any:
    return swin_transformer.SwinTransformer(
        img_size=32, patch_size=4, window_size=4, embed_dim=8, depths=(2, 2), num_heads=(2, 4), num_classes=3
    ).eval()


def eva_x(parts: bool) -> State:
    """EVA-02 after masked image modelling; Ti and S have joined weights, B has them in parts and a norm within."""
    hidden, at = int(D * 8 / 3), "blocks.{}"
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, D), "mask_token": (1, 1, D), "pos_embed": (1, 1 + TOKENS, D), "rope.freqs_cos": (TOKENS, 8),
        f"{at}.attn.rope.freqs_cos": (TOKENS, 8), f"{at}.attn.q_bias": (D,), f"{at}.attn.v_bias": (D,),
    }  # fmt: skip
    shapes |= layer("patch_embed.proj", D, 3, PATCH, PATCH) | layer("norm", D) | layer("lm_head", 32, D)
    shapes |= layer(f"{at}.norm1", D) | layer(f"{at}.norm2", D) | layer(f"{at}.attn.proj", D, D)
    if parts:
        shapes |= {f"{at}.attn.{part}_proj.weight": (D, D) for part in "qkv"} | layer(f"{at}.mlp.ffn_ln", hidden)
        shapes |= layer(f"{at}.mlp.w1", hidden, D) | layer(f"{at}.mlp.w2", hidden, D)
    else:
        shapes |= {f"{at}.attn.qkv.weight": (3 * D, D)} | layer(f"{at}.mlp.w12", 2 * hidden, D)
    return state_of(shapes | layer(f"{at}.mlp.w3", D, hidden))


def medical_mae() -> State:
    """MAE's encoder and its decoder of half the width."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, D), "pos_embed": (1, 1 + TOKENS, D), "mask_token": (1, 1, D // 2),
        "decoder_pos_embed": (1, 1 + TOKENS, D // 2),
    }  # fmt: skip
    shapes |= layer("patch_embed.proj", D, 3, PATCH, PATCH) | vit_block("blocks.{}") | layer("norm", D)
    shapes |= layer("decoder_embed", D // 2, D) | vit_block("decoder_blocks.{}", D // 2)
    return state_of(shapes | layer("decoder_norm", D // 2) | layer("decoder_pred", 3 * PATCH**2, D // 2))


def ark() -> State:
    """Ark's teacher: a Swin of timm 0.5.4, with a projector and a head for each of its data sets, in DataParallel."""
    shapes: dict[str, tuple[int, ...]] = {"layers.0.blocks.1.attn_mask": (4, 16, 16)}
    for stage, width in enumerate((8, 16)):
        at = f"layers.{stage}.blocks.{{}}"
        shapes |= vit_block(at, width) | {
            f"{at}.attn.relative_position_bias_table": (49, 2 * (1 + stage)),
            f"{at}.attn.relative_position_index": (16, 16),
        }
    shapes |= layer("patch_embed.proj", 8, 3, 4, 4) | layer("patch_embed.norm", 8) | layer("norm", 16)
    shapes |= {"layers.0.downsample.reduction.weight": (16, 32)} | layer("layers.0.downsample.norm", 32)
    shapes |= layer("head", 1000, 16) | layer("projector", 24, 16) | layer("omni_heads.0", 14, 24)
    return {f"module.{name}": value for name, value in state_of(shapes).items()}


def loaded(network: nn.Module, state: State) -> nn.Module:
    parts = split(WeightsFile("theirs.pth", state), network)
    load_backbone(network, parts.backbone, source="theirs.pth", but=head_parameter_names(network))
    return network


def features(network: nn.Module, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return pooled_features(network, pixels)


def as_timm_loads(network: Any, state: State, read: Callable[..., State]) -> nn.Module:
    """The network with the state dict as timm's own filter renames it, but for the head."""
    found = read(dict(state), network)
    missing, _ = network.load_state_dict({k: v for k, v in found.items() if not k.startswith("head.")}, strict=False)
    assert missing == ["head.weight", "head.bias"] or missing == ["head.fc.weight", "head.fc.bias"]
    return network  # type: ignore[no-any-return]


def test_rad_dino_and_cxformer() -> None:
    for registers, network in ((0, dino()), (4, dino_with_registers())):
        state = hugging_face(registers)
        expected = dinov2_features(state, images())
        for prefix in ("", "model.dinov2."):  # Lightning's, around a Dinov2ForImageClassification
            ours = loaded(network, {f"{prefix}{name}": value for name, value in state.items()})
            torch.testing.assert_close(features(ours, images()), expected)


def test_eva_x() -> None:
    for network, parts in ((eva_02, False), (eva_base, True)):
        state = eva_x(parts)
        expected = features(as_timm_loads(network(), state, eva.checkpoint_filter_fn), images())
        assert torch.equal(features(loaded(network(), state), images()), expected)
        assert torch.equal(loaded(network(), state).get_parameter("fc_norm.weight"), state["norm.weight"])


def test_medical_mae(tmp_path: Path) -> None:
    torch.save({"model": medical_mae(), "epoch": 799, "args": Namespace(lr=1e-3, device="cuda")}, tmp_path / "mae.pth")
    state = read_weights(tmp_path / "mae.pth").state
    encoder = vit()
    encoder.load_state_dict(state, strict=False)
    encoder.norm = nn.Identity()
    with torch.no_grad():
        expected = F.layer_norm(encoder.forward_features(images())[:, 1:].mean(1), (D,), eps=1e-6)
    torch.testing.assert_close(features(loaded(vit(global_pool="avg"), state), images()), expected)
    tuned = {name: value for name, value in state.items() if "decoder" not in name and not name.startswith("norm.")}
    tuned |= {"fc_norm.weight": torch.full((D,), 2.0), "fc_norm.bias": torch.zeros(D)}
    torch.testing.assert_close(features(loaded(vit(global_pool="avg"), tuned), images()), 2 * expected)


def test_ark_s_teacher(tmp_path: Path) -> None:
    teacher = ark()
    student = {name: torch.zeros_like(value) for name, value in teacher.items()}
    torch.save({"epoch": 50, "state_dict": student, "teacher": teacher, "optimizer": {}}, tmp_path / "ark.pth.tar")
    plain = {name.removeprefix("module."): value for name, value in teacher.items()}
    expected = features(as_timm_loads(swin(), plain, swin_transformer.checkpoint_filter_fn), images(32))
    assert torch.equal(features(loaded(swin(), read_weights(tmp_path / "ark.pth.tar").state), images(32)), expected)
    built = split(WeightsFile("ark", teacher), swin())
    assert built.head["weight"].shape == (1000, 16), "as ImageNet's, which gives way to a new one"


def test_positions_are_resized_as_timm_does(caplog: pytest.LogCaptureFixture) -> None:
    theirs = {
        "cls_token": torch.randn(1, 1, D),
        "pos_embed": torch.randn(1, 1 + TOKENS, D),
        "mask_token": torch.ones(1),
    }
    registers = {"register_tokens": torch.randn(1, 4, D)}
    for network, state in ((dino(84), theirs), (dino_with_registers(84), theirs | registers), (dino(28), theirs)):
        with caplog.at_level(logging.INFO, logger="distcxr"):
            ours = to_timm(dict(state), network, "theirs.pth")
        expected = vision_transformer.checkpoint_filter_fn(dict(state), network)
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[name], expected[name]) for name in ours)
    assert "position embeddings resized from 4 x 4 patches to 6 x 6" in caplog.text
    with pytest.raises(ValueError, match=r"theirs\.pth: pos_embed has 15 positions of patches, which is no square"):
        to_timm(theirs | {"pos_embed": torch.randn(1, 16, D)}, dino(84), "theirs.pth")


def test_weights_of_another_network_are_refused() -> None:
    state = hugging_face()
    with pytest.raises(ValueError, match=r"its patches have 14 pixels a side, and model\.name's 8 pixels a side: take"):
        loaded(dino(56, patch_size=8), state)
    with pytest.raises(ValueError, match=r"its tokens have 16 channels, and model\.name's 32 channels: take"):
        loaded(dino(56, embed_dim=32), state)
    with pytest.raises(ValueError, match=r"1 missing from the file: blocks\.1\.ls2\.gamma"):
        loaded(dino(), {name: value for name, value in state.items() if "1.layer_scale2" not in name})
    with pytest.raises(ValueError, match=r"2 not in the model: classifier\.weight, encoder\.extra"):
        loaded(dino(), state | {"classifier.weight": torch.ones(3, 32), "encoder.extra": torch.ones(1)})
    with pytest.raises(ValueError, match=r"missing from the file: reg_token"):
        loaded(dino_with_registers(), state)
    with pytest.raises(ValueError, match=r"query, key, value of blocks\.0\.attn\.query\.bias are not all there"):
        loaded(dino(), {name: value for name, value in state.items() if "0.attention.attention.key.bias" not in name})


@pytest.mark.parametrize("network, side", [(dino, 56), (dino_with_registers, 56), (eva_02, 56), (swin, 32)])
def test_depth_freezing_and_heat_maps(network: Callable[[], Any], side: int) -> None:
    model = network()
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    depths = layer_depths(model)
    last = "layers.1.blocks.1" if network is swin else "blocks.1"
    assert depths["patch_embed.proj.weight"] > depths[f"{last}.norm1.weight"] > 0
    assert {depths[name] for name in head_parameter_names(model)} == {0}
    trained = set_trainable(model, [last, "head"])
    assert trained and all(name.startswith((last, "head.")) for name in trained)
    heat = gradcam(model, images(side), relative=True)
    assert heat.shape == (2, 3, side, side) and heat.amax((2, 3)).min() == 1


# By name


def test_the_page_has_what_is_known_of_each() -> None:
    page = (Path(__file__).parents[2] / "docs" / "foundation.md").read_text().splitlines()
    begin = page.index("What they are, and what they may be used for:")
    end = page.index("## What is done with a file")
    tables = (page[:begin], page[begin:end])  # two, as one of both fits no screen
    networks, origins = ({line.split("`")[1]: line for line in part if line.startswith("| `")} for part in tables)
    assert list(networks) == list(origins) == ["model.weights", *FOUNDATIONS]
    for name, one in FOUNDATIONS.items():
        for part in (f"`{one.network}`", f"| {one.side} |", f"`{one.normalize}`"):
            assert part in networks[name], (name, part)
        for part in (one.title, one.licence, one.nih, one.hub or one.source):
            assert part in origins[name], (name, part)
        assert ("on request" in origins[name]) == one.form


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where files are put by hand; and the hub is out of reach."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))

    def unreachable(url: str) -> None:
        raise OSError("no network")

    monkeypatch.setattr(weights, "probe", unreachable)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_each_name_is_of_a_network_that_can_be_built_and_an_absent_file_is_asked_for(placed: Path) -> None:
    for name, one in FOUNDATIONS.items():
        check = check_named if one.hub else None
        if check:
            check(one.network, library=one.library, weights=name)
        with pytest.raises(WeightsUnavailable) as caught:
            foundation.find_file(name)
        for part in (one.file, one.licence, str(placed / name), one.hub or one.source):
            assert part in str(caught.value), name
    with pytest.raises(
        WeightsUnavailable, match=r"Ark6_swinLarge768_ep50\.pth\.tar of .*Ark \(ask for it with the form"
    ):
        check_named("swin_large_patch4_window12_384", library="timm", weights="ark_plus_swin_large")
    with pytest.raises(
        ValueError, match=r"rad_dino is of vit_base_patch14_dinov2 \(timm\), and model\.name is densenet121"
    ):
        check_named("densenet121", library="torchvision", weights="rad_dino")
    with pytest.raises(ValueError, match=r"rad_dion: no such file.*nearest weights by name: rad_dino"):
        check_named("densenet121", library="torchvision", weights="rad_dion")


def test_networks_that_timm_has_no_name_for() -> None:
    with torch.device("meta"):
        small = build_model("eva_x_small_patch16_224", library="timm", num_classes=14, image_size=224)
        mean = build_model("vit_small_patch16_gap_224", library="timm", num_classes=14, image_size=224)
    assert small.patch_embed.patch_size == (16, 16) and small.pos_embed.shape == (1, 197, 384)  # type: ignore[union-attr]
    assert mean.global_pool == "avg" and mean.fc_norm.weight.shape == (384,)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"imagenet: there are none for eva_x_small_patch16_224"):
        build_model("eva_x_small_patch16_224", library="timm", num_classes=14, weights="imagenet")
    (found,) = find_networks("eva_x_small*", most_counted=1)
    assert found.xray == ("eva_x_small",) and found.num_parameters and not found.imagenet


def test_torchxrayvision_s_resnet_by_name(placed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file is a plain state dict of one channel: only its name tells that it takes -1024 to 1024."""
    entry = replace(FOUNDATIONS["txrv_resnet50_all"], library="timm", network="test_resnet")
    monkeypatch.setitem(FOUNDATIONS, "txrv_resnet50_all", entry)
    theirs = networks.build("test_resnet", "timm", num_classes=18, in_chans=1).eval()
    torch.save(theirs.state_dict(), placed / "txrv_resnet50_all.pt")
    ours = networks.build("test_resnet", "timm", in_chans=1, weights="txrv_resnet50_all", new_head=True).eval()
    half = images(64)[:, :1]
    assert torch.equal(features(ours, half), features(theirs, 1024 * half))


def test_what_a_network_for_others_was_begun_with() -> None:
    told = foundation.begun_with("cxformer_base")["begun_with"]
    assert "licence CC-BY-NC 4.0" in told and "saw of NIH ChestX-ray14: the official training list" in told
    assert "saw none" in foundation.begun_with("txrv_densenet121_chex")["begun_with"]
    assert foundation.begun_with("runs/cxformer_base") == {}


def test_statistics_of_the_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = foundation.trained_statistics
    assert known("rad_dino", "timm", "vit_base_patch14_dinov2", in_chans=3) == ((0.5307,) * 3, (0.2583,) * 3)
    assert known("imagenet", "timm", "vit_small_patch16_224", in_chans=1) == ((0.5,), (0.5,))
    assert known("imagenet", "torchvision", "resnet50", in_chans=3)[0] == (0.485, 0.456, 0.406)
    assert known("imagenet", "torchvision", "efficientnet_v2_l", in_chans=3) == ((0.5,) * 3, (0.5,) * 3)
    with pytest.raises(
        ValueError, match=r"augment\.normalize=weights: what model.weights=none were trained with is not"
    ):
        known("none", "timm", "resnet50", in_chans=3)
    foundation.warn_of_statistics("cxformer_small", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    foundation.warn_of_statistics("none", (0.5,), (0.5,))
    assert not caplog.records
    foundation.warn_of_statistics("rad_dino", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert "were trained with augment.normalize={mean: 0.5307, std: 0.2583}, and the recipe has another" in caplog.text
