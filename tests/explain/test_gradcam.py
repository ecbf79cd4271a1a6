"""Grad-CAM: right where it can be calculated by hand, and without a trace on the network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import networks
import pytest
import torch
import torch.nn.functional as F
from heat_networks import colour, lively, small_swin, small_vit
from torch import Tensor, nn

from distcxr.explain.gradcam import gradcam


class Spots(nn.Module):
    """Finding 0 is brightness, finding 1 is darkness, finding 2 the absence of both; each pixel on its own."""

    def __init__(self, stride: int = 4) -> None:
        super().__init__()
        conv = nn.Conv2d(1, 2, stride, stride)
        conv.weight.data[0], conv.weight.data[1] = 1 / stride**2, -1 / stride**2
        conv.bias.data.zero_()
        self.features = nn.Sequential(conv, nn.ReLU(inplace=True))
        self.fc = nn.Linear(2, 3, bias=False)
        self.fc.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.features(images).mean((2, 3)))
        return logits


def by_hand(map_BKhw: Tensor, weight_CK: Tensor, side: int) -> Tensor:
    """CAM: the head applied at every place, negative sums 0, enlarged, divided by the maximum."""
    heat = torch.einsum("ck,bkhw->bchw", weight_CK, map_BKhw).relu()
    heat = F.interpolate(heat, (side, side), mode="bilinear", align_corners=False)
    return heat / heat.amax((2, 3), keepdim=True).clamp(min=1e-30)


def test_the_peak_is_where_the_evidence_is() -> None:
    images = torch.zeros(2, 1, 64, 64)
    images[0, 0, 40:44, 8:12], images[0, 0, 12:16, 48:52] = 1.0, -1.0
    images[1, 0, 8:12, 40:44] = 1.0
    heat = gradcam(Spots(), images, layer="features")
    assert heat.shape == (2, 3, 64, 64) and heat.dtype == torch.float32
    for row, column, top, left in ((0, 0, 40, 8), (0, 1, 12, 48), (1, 0, 8, 40)):
        y, x = divmod(int(heat[row, column].argmax()), 64)
        assert top <= y < top + 4 and left <= x < left + 4
        assert heat[row, column].max() == 1 and heat[row, column].min() == 0
        assert heat[row, column, top - 8 : top + 12, left - 8 : left + 12].sum() == pytest.approx(
            float(heat[row, column].sum())
        )
    assert not heat[1, 1].any(), "nothing dark in the second image"
    assert not heat[:, 2].any(), "what lowers a logit is no heat"


def test_a_shifted_image_gives_a_shifted_map() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 5, 2, 2, bias=False), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1, bias=False), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    image = torch.zeros(1, 1, 96, 96)
    image[0, 0, 24:40, 20:36] = torch.rand(16, 16)
    here, there = (gradcam(model, moved, layer="3") for moved in (image, image.roll((32, 20), (2, 3))))
    assert here.amax((2, 3)).sum() >= 2, "some finding has heat"
    torch.testing.assert_close(there, here.roll((32, 20), (2, 3)))


CAM: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, Tensor], Tensor], str]] = {
    "resnet18": (lambda: networks.build("resnet18"), lambda m, x: nn.Sequential(*list(m.children())[:-2])(x), "fc"),
    "densenet121": (lambda: networks.build("densenet121"), lambda m, x: F.relu(m.features(x)), "classifier"),
    "mobilenet_v2": (lambda: networks.build("mobilenet_v2"), lambda m, x: m.features(x), "classifier.1"),
    "efficientnet_b0": (lambda: networks.build("efficientnet_b0"), lambda m, x: m.features(x), "classifier.1"),
    "timm resnet": (lambda: networks.build("test_resnet", "timm"), lambda m, x: m.forward_features(x), "fc"),
    "timm swin": (small_swin, lambda m, x: m.forward_features(x).permute(0, 3, 1, 2), "head.fc"),
}


@pytest.mark.parametrize("name", CAM)
def test_before_an_average_and_a_linear_layer_it_is_cam(name: str) -> None:
    build, features, head = CAM[name]
    model = lively(build()).eval()
    with torch.no_grad():
        expected = by_hand(features(model, colour(96)), model.get_submodule(head).weight, 96)  # type: ignore[arg-type]
    heat = gradcam(model, colour(96))
    assert expected.amax((2, 3)).sum() >= 7, "half of the maps have heat"
    assert (expected.std((2, 3)) > 0.01).sum() >= 7, "and are not flat"
    torch.testing.assert_close(heat, expected, rtol=1e-3, atol=1e-3)


def test_relative_heat_is_evidence_above_the_image_s_own_average() -> None:
    """By hand; and evidence against a finding at every position empties the plain map alone."""
    build, features, head = CAM["resnet18"]
    model = lively(build()).eval()
    linear: Any = model.get_submodule(head)
    images = colour(96)
    with torch.no_grad():
        map_BKhw = features(model, images)
        evidence = torch.einsum("ck,bkhw->bchw", linear.weight, map_BKhw)
        evidence = F.interpolate((evidence - evidence.mean((2, 3), keepdim=True)).relu(), (96, 96), mode="bilinear")
        expected = evidence / evidence.amax((2, 3), keepdim=True).clamp(min=1e-30)
    torch.testing.assert_close(gradcam(model, images, relative=True), expected, rtol=1e-3, atol=1e-3)
    dim = torch.zeros(1, 1, 64, 64)
    dim[0, 0, 8:12, 40:44] = 1.0
    dark, spots = 2, Spots()
    assert not gradcam(spots, dim, [dark], layer="features").any()
    heat = gradcam(spots, dim, [dark], layer="features", relative=True)[0, 0]
    assert heat.max() == 1 and heat[9:11, 41:43].max() < 0.5, "warm where the least speaks against it"


TOKENS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], nn.Module], Callable[[Any], Tensor]]] = {
    "timm": (
        lambda: lively(networks.build("test_vit", "timm", image_size=96)),
        lambda m: m.blocks[-1].norm1,
        lambda m: m.pos_embed,
    ),
    "torchvision": (small_vit, lambda m: m.encoder.layers[-1].ln_1, lambda m: m.encoder.pos_embedding),
}


@pytest.mark.parametrize("library", TOKENS)
def test_a_class_token_s_map_is_that_of_the_whole_graph(library: str) -> None:
    """The same figures from an ordinary backward pass through everything, without the cut."""
    build, layer, _ = TOKENS[library]
    model = build().eval()
    heat = gradcam(model, colour(96), [3, 0])
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    layer(model).register_forward_hook(keep)
    for place, column in enumerate((3, 0)):
        model(colour(96))[:, column].sum().backward()
        tokens = kept[-1]
        assert tokens.grad is not None and tokens.grad[:, 1:].any()
        weight = tokens.grad[:, 1:].mean(1)
        grid = (tokens.detach()[:, 1:] * weight[:, None]).sum(2).relu().view(2, 1, 6, 6)
        grid = F.interpolate(grid, (96, 96), mode="bilinear", align_corners=False)[:, 0]
        torch.testing.assert_close(heat[:, place], grid / grid.amax((1, 2), keepdim=True), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("library", TOKENS)
def test_without_positions_a_transformer_s_map_moves_with_the_patches(library: str) -> None:
    build, _, positions = TOKENS[library]
    model = build()
    positions(model).data.zero_()
    down, right = 16, 48
    here, there = gradcam(model, colour(96)), gradcam(model, colour(96).roll((down, right), (2, 3)))
    # Without half a patch at the rim, which is enlarged from one side only; each map relative to what is left of it.
    before = here[:, :, 8 : 88 - down, 8 : 88 - right]
    after = there[:, :, 8 + down : 88, 8 + right : 88]
    assert (before.std((2, 3)) > 0.01).sum() >= 7, "half of the maps have something to compare"
    scale = before.sum((2, 3), keepdim=True) / after.sum((2, 3), keepdim=True).clamp(min=1e-6)
    torch.testing.assert_close(after * scale, before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "library"), [("resnet18", "torchvision"), ("test_resnet", "timm"), ("test_vit", "timm")]
)
def test_the_network_is_left_as_it_was(name: str, library: str) -> None:
    model = networks.build(name, library, image_size=64, drop_rate=0.5).train()
    frozen = next(part for part in model.modules() if isinstance(part, nn.BatchNorm2d | nn.LayerNorm))
    frozen.eval()
    next(model.parameters()).requires_grad_(False)
    before, modes = copy.deepcopy(model.state_dict()), [part.training for part in model.modules()]
    wants = [parameter.requires_grad for parameter in model.parameters()]
    gradcam(model, colour())
    with pytest.raises(Exception):  # noqa: B017  each library's own
        gradcam(model, torch.zeros(1, 5, 64, 64))
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before) and before.keys() == after.keys()
    assert [part.training for part in model.modules()] == modes and not frozen.training and model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == wants
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(("name", "library"), [("resnet18", "torchvision"), ("test_vit2", "timm")])
def test_it_does_not_depend_on_the_caller_s_modes(name: str, library: str) -> None:
    model = lively(networks.build(name, library, image_size=64))
    plain = gradcam(model, colour())
    assert torch.equal(gradcam(model, colour()), plain), "twice the same bits"
    with torch.no_grad():
        assert torch.equal(gradcam(model, colour()), plain)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gradcam(model, colour()), plain)
    with torch.inference_mode():
        assert torch.equal(gradcam(model, colour()), plain)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert torch.equal(gradcam(model, colour()), plain)
    half = gradcam(model.to(torch.bfloat16), colour())
    assert half.dtype == torch.float32 and half.isfinite().all()


@pytest.mark.parametrize(
    ("name", "library"), [("resnet18", "torchvision"), ("test_vit", "timm"), ("test_resnet", "timm")]
)
def test_an_image_s_map_is_its_own(name: str, library: str) -> None:
    model = lively(networks.build(name, library, image_size=64))
    images = colour(64, batch=3)
    together = gradcam(model, images)
    alone = torch.cat([gradcam(model, image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(gradcam(model, images, [5, 2]), together[:, [5, 2]])


@pytest.mark.parametrize(
    ("name", "library", "stem"), [("resnet18", "torchvision", "conv1"), ("test_vit", "timm", "patch_embed")]
)
def test_all_findings_cost_one_forward_pass(name: str, library: str, stem: str) -> None:
    model = networks.build(name, library, image_size=64)
    calls = {"forward": 0, "backward": 0}

    def count(_: nn.Module, __: Any, output: Tensor) -> None:
        calls["forward"] += 1
        if output.requires_grad:
            calls["backward"] += 1

    model.get_submodule(stem).register_forward_hook(count)
    gradcam(model, colour())
    assert calls == {"forward": 1, "backward": 0}, "nothing before the map is part of the graph"


def test_a_compiled_network_is_run_as_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled code would not see the hook. `compile` sets this attribute, and takes seconds to import."""
    model = lively(networks.build("resnet18"))
    plain = gradcam(model, colour())

    def refuse(*_: Any) -> Any:
        raise AssertionError("compiled code ran")

    monkeypatch.setattr(model, "_compiled_call_impl", refuse)
    with pytest.raises(AssertionError, match="compiled code ran"):
        model(colour())
    assert torch.equal(gradcam(model, colour()), plain)


def test_images_need_not_be_square() -> None:
    images = torch.zeros(1, 1, 32, 96)
    images[0, 0, 8:12, 80:84] = 1.0
    heat = gradcam(Spots(), images, [0], layer="features")
    y, x = divmod(int(heat.argmax()), 96)
    assert heat.shape == (1, 1, 32, 96) and 8 <= y < 12 and 80 <= x < 84


class Tokens(nn.Module):
    """Bright patches as tokens [B, N, 1] behind some that are none, from images with 8-pixel patches."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.num_prefix_tokens, self.tokens = prefix, nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        patches = F.avg_pool2d(images, 8).flatten(2).transpose(1, 2)
        return self.tokens(F.pad(patches, (0, 0, self.num_prefix_tokens, 0)))[:, self.num_prefix_tokens :].mean(1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 96), (96, 32)])
def test_tokens_are_laid_out_row_by_row(prefix: int, height: int, width: int) -> None:
    images = torch.zeros(1, 1, height, width)
    images[0, 0, 8:16, 16:24] = 1.0
    heat = gradcam(Tokens(prefix), images, layer="tokens")
    y, x = divmod(int(heat.argmax()), width)
    assert heat.shape == (1, 1, height, width) and 8 <= y < 16 and 16 <= x < 24


class Odd(nn.Module):
    """Layers that make no map."""

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.vector, self.unused, self.tokens = nn.Identity(), nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        pooled: Tensor = self.vector(images.mean((2, 3)))
        self.pair((pooled, pooled))
        return pooled + self.tokens(images[:, 0, :7, :1].expand(-1, 7, 3)).mean(1)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (None, r"Odd: where its last map.*layer='features.norm5'.*pair, vector, unused, tokens.*named_modules"),
        ("vectors", "Odd has no layer 'vectors'; nearest: vector"),
        ("zzz", "Odd has no layer 'zzz'; its parts are: pair, vector"),
        ("vector", r"'vector' makes a tensor of shape \(2, 3\), not a map"),
        ("pair", "'pair' of Odd makes a tuple"),
        ("unused", "'unused' of Odd is not used"),
        ("tokens", "'tokens' makes 7 tokens, 0 of them no patches.*64 x 64"),
    ],
)
def test_a_layer_that_does_not_do_is_named(layer: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gradcam(Odd(), colour(), layer=layer)


def test_a_named_layer_is_used() -> None:
    model = lively(networks.build("resnet18"))
    assert torch.equal(gradcam(model, colour(), layer="layer4"), gradcam(model, colour()))
    assert not torch.equal(gradcam(model, colour(), layer="layer3"), gradcam(model, colour()))
