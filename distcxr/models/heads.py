"""The last layer of a network: find it, replace it, put dropout before it.

Shapes: B batch, D features of the backbone, C findings.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

HEAD_STD = 0.01
"""Spread of a new head's weights: first logits near 0, first loss near log 2, whatever the backbone."""


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
