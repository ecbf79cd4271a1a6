"""The last layer of a network: find it, replace it, put dropout before it, or a head of our own in its place.

    images ──► backbone ──► features_BD ──┬──► hidden layers ──► out ──► logits     PooledHead
                   └──────► map_BNK ──────┼──► a weight per position and finding ─►  AttentionHead
    metadata_BM ──► a small layer ────────┘

With two views of a study, `TwoViewHead`, both go through the one backbone, and the head takes the features of both.

A `Headed` network's state dict has the network's own names behind `backbone.`, without its last layer (for attention
without all that follows the map), and beside them

| key | shape | |
|---|---|---|
| `head.metadata.{weight,bias}` | [32, M], [32] | where the recipe has metadata |
| `head.hidden.<i>.{weight,bias}` | [width, width before], [width] | `mlp` |
| `head.attention.weight` | [C, K] | `attention` |
| `head.missing` | [D] | two views: in the place of the second one's features |
| `head.out.{weight,bias}` | [C, width before], [C] | |

Shapes: B batch, C findings, D pooled features, K channels and N positions of the map, M columns of metadata.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distcxr.models.maps import cut_after_map, feature_map
from distcxr.recipe.model import Head

BACKBONE, HEAD = "backbone.", "head."
"""Beginnings of all names of a `Headed` network's parameters."""

HEAD_STD = 0.01
"""Spread of a new head's weights: first logits near 0, first loss near log 2, whatever the backbone."""

_METADATA_WIDTH = 32


class DropoutLinear(nn.Linear):
    """A linear layer with dropout on its input, [B, D] to [B, C]. Its state dict is that of `nn.Linear`."""

    drop_rate: float = 0.0

    def forward(self, input: Tensor) -> Tensor:
        """Logits [B, C]."""
        return super().forward(F.dropout(input, self.drop_rate, self.training))


def find_head(model: nn.Module) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Module name and layer that make the logits.

    timm's networks name it (`get_classifier`); in torchvision's it is the linear layer or the 1x1
    convolution that was registered last.
    Raises ValueError: a network with two heads, without one, or with a head that is neither of these.
    """
    get_classifier = getattr(model, "get_classifier", None)
    if callable(get_classifier):
        found = get_classifier()
        candidates = [(name, module) for name, module in model.named_modules() if module is found]
    else:
        layers = (nn.Linear, nn.Conv2d)
        candidates = [(name, module) for name, module in model.named_modules() if isinstance(module, layers)]
    if candidates:
        name, layer = candidates[-1]
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)):
            return name, layer
    raise ValueError(
        f"{type(model).__name__}: found no single linear layer (or 1x1 convolution) that makes the logits; "
        "choose a model with one head"
    )


def replace_head(model: nn.Module, num_classes: int) -> None:
    """Give the network a new last layer with `num_classes` outputs, in place.

    Weights are normal with standard deviation `HEAD_STD`, from torch's global generator; the bias is
    zero. A ReLU after the layer (SqueezeNet) is taken out: logits have to be able to be negative.
    Raises ValueError: as `find_head`.
    """
    name, old = find_head(model)
    new: nn.Linear | nn.Conv2d
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, num_classes, device=old.weight.device, dtype=old.weight.dtype)
    else:
        new = nn.Conv2d(old.in_channels, num_classes, 1, device=old.weight.device, dtype=old.weight.dtype)
    init_head(new)
    model.set_submodule(name, new)
    parent = model.get_submodule(name.rpartition(".")[0])
    if isinstance(parent, nn.Sequential):
        position = list(parent).index(new)
        for later in range(position + 1, len(parent)):
            if isinstance(parent[later], nn.ReLU):
                parent[later] = nn.Identity()
    if hasattr(model, "num_classes"):
        model.num_classes = num_classes  # type: ignore[assignment]


def init_head(layer: nn.Linear | nn.Conv2d) -> None:
    """Initialise a head's weights, as `replace_head` does."""
    nn.init.normal_(layer.weight, std=HEAD_STD)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def set_head_dropout(model: nn.Module, drop_rate: float) -> None:
    """Dropout before the head, in place: the value of the recipe, not the network's own default.

    Dropout layers beside the head (VGG, EfficientNet, MobileNet) take `drop_rate`; where there is none, the
    head becomes a `DropoutLinear` with the same weights and the same names in the state dict.
    """
    name, head = find_head(model)
    beside = [m for m in model.get_submodule(name.rpartition(".")[0]).children() if isinstance(m, nn.Dropout)]
    for dropout in beside:
        dropout.p = drop_rate
    if beside or drop_rate == 0:
        return
    assert isinstance(head, nn.Linear), "every convolutional head has its own dropout"
    dropped = DropoutLinear(head.in_features, head.out_features)
    dropped.weight, dropped.bias, dropped.drop_rate = head.weight, head.bias, drop_rate
    model.set_submodule(name, dropped)


class PooledHead(nn.Module):
    """Logits of pooled features: hidden layers with ReLU and dropout, or none, then a linear layer."""

    def __init__(
        self, width: int, num_classes: int, hidden: Sequence[int], drop_rate: float, num_metadata: int
    ) -> None:
        super().__init__()
        self.metadata = nn.Linear(num_metadata, _METADATA_WIDTH) if num_metadata else None
        widths = [width + (_METADATA_WIDTH if num_metadata else 0), *hidden]
        self.hidden = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.drop_rate = drop_rate
        self.out = nn.Linear(widths[-1], num_classes)
        init_head(self.out)

    def forward(self, features_BD: Tensor, metadata_BM: Tensor | None = None) -> Tensor:
        """Logits [B, C]."""
        if self.metadata is not None:
            features_BD = torch.cat([features_BD, _embedded(self.metadata, metadata_BM)], 1)
        for layer in self.hidden:
            features_BD = F.dropout(F.relu(layer(features_BD)), self.drop_rate, self.training)
        return self.out(features_BD)  # type: ignore[no-any-return]


class TwoViewHead(PooledHead):
    """Logits of the pooled features of two views of a study, side by side; learnt ones stand in for a missing second.

    They begin at zero. The last column of the metadata is 1 where the second view is there.
    """

    def __init__(
        self, width: int, num_classes: int, hidden: Sequence[int], drop_rate: float, num_metadata: int
    ) -> None:
        super().__init__(2 * width, num_classes, hidden, drop_rate, num_metadata - 1)
        self.missing = nn.Parameter(torch.zeros(width))

    def forward(self, features_BD: Tensor, metadata_BM: Tensor | None = None) -> Tensor:
        """Logits [B, C] of [B, 2 D]."""
        if metadata_BM is None:
            raise ValueError(
                "this network takes two views, and metadata with a last column of 1 where the second is there"
            )
        first_BD, second_BD = features_BD.chunk(2, dim=1)
        second_BD = torch.where(metadata_BM[:, -1:] > 0, second_BD, self.missing.to(second_BD.dtype))
        return super().forward(torch.cat([first_BD, second_BD], dim=1), metadata_BM[:, :-1])


class AttentionHead(nn.Module):
    """Logits of a map of features, pooled for each finding with weights of its own that sum to 1 over the positions.

    The weights are a softmax over the positions of a linear function of the features (attention pooling, Ilse 2018,
    without its hidden layer). It begins at zero: every position counts alike, as in a mean before a linear layer.

    """

    def __init__(self, width: int, num_classes: int, drop_rate: float, num_metadata: int) -> None:
        super().__init__()
        self.metadata = nn.Linear(num_metadata, _METADATA_WIDTH) if num_metadata else None
        self.attention = nn.Linear(width, num_classes, bias=False)
        nn.init.zeros_(self.attention.weight)
        self.drop_rate = drop_rate
        self.out = nn.Linear(width + (_METADATA_WIDTH if num_metadata else 0), num_classes)
        init_head(self.out)

    def forward(self, map_BNK: Tensor, metadata_BM: Tensor | None = None) -> Tensor:
        """Logits [B, C]."""
        map_BNK = F.dropout(map_BNK, self.drop_rate, self.training)
        weight_BNC = self.attention(map_BNK).float().softmax(1)
        width = map_BNK.shape[2]
        evidence_BNC = F.linear(map_BNK, self.out.weight[:, :width], self.out.bias)
        logits_BC: Tensor = (weight_BNC * evidence_BNC).sum(1)
        if self.metadata is not None:
            logits_BC = logits_BC + F.linear(_embedded(self.metadata, metadata_BM), self.out.weight[:, width:])
        return logits_BC


class Headed(nn.Module):
    """A network with another head than its own. Built by `with_head`."""

    def __init__(self, backbone: nn.Module, head: PooledHead | AttentionHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor, metadata_BM: Tensor | None = None) -> Tensor:
        """Logits [B, C] of images [B, in_chans, H, W], of two views [B, 2 in_chans, H, W]; `metadata_BM` where the
        recipe has metadata.

        Raises ValueError: metadata is missing, or of another width than the network was built for.
        """
        return self.head(self.features(images), metadata_BM)  # type: ignore[no-any-return]

    def features(self, images: Tensor) -> Tensor:
        """The head's input: pooled [B, D], of two views [B, 2 D], or for attention the map [B, N, K]."""
        if isinstance(self.head, AttentionHead):
            return feature_map(self.backbone, images)
        return self.joined(self.backbone(self.apart(images)).flatten(1))

    def apart(self, images: Tensor) -> Tensor:
        """The backbone's input: of two views the first of all samples, then the second, [2 B, in_chans, H, W].

        One pass for both: DDP and BatchNorm expect a layer once a step.
        """
        return torch.cat(images.chunk(2, dim=1)) if isinstance(self.head, TwoViewHead) else images

    def joined(self, features_BD: Tensor) -> Tensor:
        """The head's input of what the backbone made of `apart`."""
        return torch.cat(features_BD.chunk(2), dim=1) if isinstance(self.head, TwoViewHead) else features_BD


def with_head(
    network: nn.Module, head: Head, *, num_classes: int, num_metadata: int, num_views: int = 1,
    drop_rate: float | None, side: int,
) -> nn.Module:  # fmt: skip
    """The network with the head that a recipe's `model.head` describes; itself where that is its own.

    Args:
        network: with a linear head of its own, which is taken out of it.
        num_metadata: columns M of the metadata; 0 for none.
        num_views: 1, or 2 for `TwoViewHead`, which no attention goes with.
        drop_rate: dropout before the head, in place of the network's own; None keeps that.
        side: of the images, in pixels.

    Raises ValueError: attention, and the network has no map of features.
    """
    if head.kind == "linear" and not num_metadata:
        return network
    name, last = find_head(network)
    in_chans = next(layer.in_channels for layer in network.modules() if isinstance(layer, nn.Conv2d))
    if head.kind == "attention":
        before = _dropout_before(network) if drop_rate is None else drop_rate
        width = cut_after_map(network, in_chans=in_chans, side=side)
        return Headed(network, AttentionHead(width, num_classes, before, num_metadata))
    # Dropout beside the last layer stays where it is, with its rate; a DropoutLinear's would go with it.
    network.set_submodule(name, nn.Dropout(last.drop_rate) if isinstance(last, DropoutLinear) else nn.Identity())
    width = last.in_features if isinstance(last, nn.Linear) else last.in_channels
    hidden = head.hidden if head.kind == "mlp" else []
    kind = TwoViewHead if num_views == 2 else PooledHead
    return Headed(network, kind(width, num_classes, hidden, head.drop_rate, num_metadata))


def head_name(model: nn.Module) -> str:
    """Name of the module that is the head, whichever kind it is."""
    return HEAD.removesuffix(".") if isinstance(model, Headed) else find_head(model)[0]


def head_parameter_names(model: nn.Module) -> list[str]:
    """Names of all parameters of the head, in the order of `named_parameters`."""
    name = head_name(model)
    return [f"{name}.{own}" for own, _ in model.get_submodule(name).named_parameters()]


def network_name(model: nn.Module, name: str) -> str:
    """A parameter's or module's name as the library's network has it: without the `backbone.` of a `Headed` one."""
    return name.removeprefix(BACKBONE) if isinstance(model, Headed) else name


def pooled_features(model: nn.Module, images: Tensor) -> Tensor:
    """The network's features before any head, [B, D], of a model without DDP; without dropout in evaluation.

    A map that attention would weigh is averaged.
    """
    if isinstance(model, Headed):
        features = model.features(images)
        return features.mean(1) if features.ndim == 3 else features
    taken: list[Tensor] = []
    with find_head(model)[1].register_forward_pre_hook(lambda _, given: taken.append(given[0])):
        model.forward(images)  # not the call: compiled code does not see the hook
    features = taken[0]
    return features.mean((2, 3)) if features.ndim == 4 else features  # a 1x1 convolution is pooled afterwards


def last_map(model: nn.Module, images: Tensor) -> Tensor:
    """The network's last feature map before pooling, [B, N, K]: N positions, row by row; of two views the first's.
    Errors as `feature_map`'s."""
    if not isinstance(model, Headed):
        return feature_map(model, images)
    return feature_map(model.backbone, model.apart(images)[: len(images)])


def _embedded(layer: nn.Linear, metadata_BM: Tensor | None) -> Tensor:
    if metadata_BM is None or metadata_BM.shape[1] != layer.in_features:
        given = "none" if metadata_BM is None else f"{metadata_BM.shape[1]}"
        raise ValueError(
            f"this network takes {layer.in_features} columns of metadata beside the image, and got {given}: "
            "model.head.metadata has to be what it was built with"
        )
    return F.relu(layer(metadata_BM.to(layer.weight.dtype)))


def _dropout_before(network: nn.Module) -> float:
    """The network's own rate of dropout before its last layer."""
    name, last = find_head(network)
    beside = [m.p for m in network.get_submodule(name.rpartition(".")[0]).children() if isinstance(m, nn.Dropout)]
    if isinstance(last, DropoutLinear):
        return last.drop_rate
    return beside[-1] if beside else float(cast(float, getattr(network, "drop_rate", 0.0)))  # timm's
