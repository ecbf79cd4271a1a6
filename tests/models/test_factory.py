"""Networks by name: their heads, channels and dropout."""

from typing import Any

import networks
import pytest
import torch
import torchvision
from torch import Tensor, nn

from distcxr.models.factory import sync_batchnorm
from distcxr.models.heads import DropoutLinear, head_parameter_names, replace_head

CHEAP = [
    ("resnet18", "torchvision", "fc"),
    ("densenet121", "torchvision", "classifier"),
    ("mobilenet_v3_small", "torchvision", "classifier.3"),
    ("efficientnet_b0", "torchvision", "classifier.1"),
    ("squeezenet1_1", "torchvision", "classifier.1"),
    ("resnet10t", "timm", "fc"),
    ("test_convnext", "timm", "head.fc"),
    ("test_vit", "timm", "head"),
]
SIDE = {"test_convnext": 160, "test_vit": 160}


def _same(a: dict[str, Tensor], b: dict[str, Tensor], *, but: tuple[str, ...] = ()) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a if key not in but)


@pytest.mark.parametrize(
    ("name", "library", "kind"),
    [
        ("convnext_tiny", "torchvision", "StochasticDepth"), ("efficientnet_b0", "torchvision", "StochasticDepth"),
        ("swin_t", "torchvision", "StochasticDepth"), ("test_convnext", "timm", "DropPath"),
    ],
)  # fmt: skip
def test_drop_path_rises_to_its_rate(name: str, library: str, kind: str) -> None:
    """As torchvision's constructors that take a rate have it."""
    with torch.device("meta"):
        layers: list[Any] = [
            layer for layer in networks.build(name, library, drop_path=0.4).modules() if type(layer).__name__ == kind
        ]
        rates = [layer.p if library == "torchvision" else layer.drop_prob for layer in layers]
        if name in ("convnext_tiny", "efficientnet_b0"):
            theirs = torchvision.models.get_model(name, weights=None, stochastic_depth_prob=0.4)
            assert rates == pytest.approx([layer.p for layer in theirs.modules() if type(layer).__name__ == kind])
    assert rates == sorted(rates) and rates[0] < 0.2
    assert rates[-1] == pytest.approx(0.4 * 15 / 16 if name == "efficientnet_b0" else 0.4)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_drop_path_of_a_family_without_it(library: str) -> None:
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=r"drop_path: .*densenet121 has no stochastic"),
    ):
        networks.build("densenet121", library, drop_path=0.1)


@pytest.mark.parametrize(("name", "library", "head"), CHEAP)
def test_one_grey_channel_gives_what_three_equal_ones_give(name: str, library: str, head: str) -> None:
    images = networks.grey(SIDE.get(name, 64))
    coloured, grey = networks.build(name, library), networks.build(name, library, in_chans=1)
    assert head_parameter_names(grey) == head_parameter_names(coloured) == [f"{head}.weight", f"{head}.bias"]
    layer = grey.get_submodule(head)
    assert isinstance(layer.bias, Tensor) and not layer.bias.any()
    assert isinstance(layer.weight, Tensor) and layer.weight.std().item() == pytest.approx(0.01, rel=0.05)
    if library == "timm":  # draws its own first convolution: give both networks the same weights
        convs = [next(m for m in model.modules() if isinstance(m, nn.Conv2d)) for model in (coloured, grey)]
        state = coloured.state_dict()
        first = next(key for key, value in state.items() if value is not None and value.shape == convs[0].weight.shape)
        grey.load_state_dict(state | {first: state[first].sum(dim=1, keepdim=True)})
    logits = networks.forward(grey, images)
    assert logits.shape == (2, 14) and logits.dtype == torch.float32
    assert (logits[0] - logits[1]).abs().max() > 1e-3, "the logits have to depend on the image"
    torch.testing.assert_close(logits, networks.forward(coloured, images.expand(-1, 3, -1, -1)), rtol=0, atol=1e-4)


def test_every_parameter_gets_a_gradient() -> None:
    model = networks.build(drop_rate=0.5)
    model(networks.grey().expand(-1, 3, -1, -1)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_same_seed_builds_the_same_network() -> None:
    assert _same(networks.build().state_dict(), networks.build().state_dict())
    assert _same(networks.build("test_vit", "timm").state_dict(), networks.build("test_vit", "timm").state_dict())


def test_squeezenet_can_give_negative_logits() -> None:
    """Its classifier ends in a ReLU, under which every probability would be at least one half."""
    assert (networks.forward(networks.build("squeezenet1_1"), networks.grey().expand(-1, 3, -1, -1)) < 0).any()


def test_a_head_can_be_replaced_again() -> None:
    model = networks.build("test_convnext", "timm")
    replace_head(model, 3)
    assert networks.forward(model, networks.grey(160).expand(-1, 3, -1, -1)).shape == (2, 3)
    assert model.num_classes == 3


def test_a_network_without_a_head_is_refused() -> None:
    with pytest.raises(ValueError, match="choose a model with one head"):
        head_parameter_names(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))


def test_drop_rate_is_the_dropout_before_the_head() -> None:
    images = networks.grey().expand(-1, 3, -1, -1)
    plain, dropped = networks.build(), networks.build(drop_rate=0.5)
    assert _same(plain.state_dict(), dropped.state_dict()), "dropout changes neither names nor weights"
    assert isinstance(dropped.fc, DropoutLinear)
    assert type(plain.fc) is nn.Linear
    width = dropped.fc.in_features
    head = DropoutLinear(width, 1, bias=False)
    head.weight.data.fill_(1.0)
    head.drop_rate = dropped.fc.drop_rate
    sums = head(torch.ones(4000, width)).detach()  # each input is 0 or 2, one half each
    assert sums.mean().item() == pytest.approx(width, rel=0.01)
    assert sums.std().item() == pytest.approx(width**0.5, rel=0.1)
    plain.eval()
    dropped.eval()
    assert torch.equal(plain(images), dropped(images)), "it is off in evaluation"


def test_drop_rate_replaces_the_network_s_own() -> None:
    for drop_rate in (0.0, 0.4):
        model = networks.build("mobilenet_v3_small", drop_rate=drop_rate)
        assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [drop_rate]
    assert networks.build("test_convnext", "timm", drop_rate=0.4).head.drop.p == 0.4  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"name": "resnet81"}, "no such classifier in torchvision.*nearest: resnet18.*distcxr models"),
        ({"name": "fasterrcnn_resnet50_fpn"}, "no such classifier in torchvision"),
        ({"name": "zzzzzz"}, "no name is similar"),
        ({"name": "resnet10", "library": "timm"}, "no such classifier in timm.*nearest: .*resnet10t.*distcxr models"),
        ({"name": "resnet10t.none", "library": "timm"}, r"no such classifier in timm.*resnet10t\.c3_in1k"),
        ({"name": "hf-hub:someone/model", "library": "timm"}, "no such classifier in timm"),
        ({"name": "inception_v3"}, "auxiliary logits.*timm"),
        ({"name": "deit_tiny_distilled_patch16_224", "library": "timm"}, "one head"),
    ],
)
def test_what_can_t_be_built_is_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        networks.build(**arguments)


@pytest.mark.parametrize(
    ("name", "library"), [("test_vit", "timm"), ("vit_b_32", "torchvision"), ("test_resnet", "timm")]
)
def test_networks_built_for_one_size_take_the_recipes(name: str, library: str) -> None:
    model = networks.build(name, library, in_chans=1, image_size=96)
    assert networks.forward(model, networks.grey(96)).shape == (2, 14)


@pytest.mark.parametrize(
    ("name", "library"), [("densenet121", "timm"), ("test_resnet", "timm"), ("resnet18", "torchvision")]
)
def test_synchronised_batchnorm_is_the_same_network(name: str, library: str) -> None:
    model = networks.build(name, library).eval()
    images = networks.grey(64).repeat(1, 3, 1, 1)
    keys = set(model.state_dict())
    with torch.no_grad():
        before = model(images)
        converted = sync_batchnorm(model).eval()
        assert torch.equal(converted(images), before)
    assert set(converted.state_dict()) == keys
    assert any(isinstance(layer, nn.SyncBatchNorm) for layer in converted.modules())
