"""The recipe's `model`: the network, its weights and its head."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from distcxr.recipe.section import BelowOne, PositiveInt, Section


class Head(Section):
    """What makes logits of the backbone's features."""

    kind: Literal["linear", "mlp", "attention"] = "linear"
    """`linear` is the network's own last layer, `mlp` has hidden layers, `attention` learns where to look: it pools
    the feature map with a weight per position and finding instead of a mean."""
    hidden: list[PositiveInt] = [512]
    """Of `mlp`: widths of the hidden layers."""
    drop_rate: BelowOne = 0.0
    """Of `mlp`: dropout after each hidden layer."""
    metadata: list[Literal["age", "sex", "view"]] = []
    """Known of the patient and image, and put beside the image's features; a missing value is an input of its own."""

    @model_validator(mode="after")
    def _consistent(self) -> Head:
        if self.kind == "mlp" and not self.hidden:
            raise ValueError("model.head.hidden is empty: name at least one width, or take model.head.kind: linear")
        if len(set(self.metadata)) < len(self.metadata):
            raise ValueError(f"model.head.metadata names something twice: {', '.join(self.metadata)}")
        return self


class Model(Section):
    """The network."""

    name: str = "densenet121"
    """Its name in the library, for example `densenet121`, `resnet50` (torchvision) or `convnext_base` (timm)."""
    library: Literal["torchvision", "timm"] = "torchvision"
    """Where the name is looked up."""
    weights: str = "imagenet"
    """`imagenet`, `none`, or a path: a safetensors file; a PyTorch file with a state dict, as timm, torchxrayvision,
    Lightning or arnoweng/CheXNet name its keys; a checkpoint of distcxr, or a run folder (its best). Whole pickled
    models need `distcxr import` before."""
    new_head: bool = False
    """Take a new head whatever head the file has, for transfer to other findings. ImageNet's gives way without it."""
    in_chans: Literal[1, 3] = 3
    """Input channels; with 3 the grey image is repeated on the device."""
    drop_rate: BelowOne | None = None
    """Dropout before the head, whichever it is; null keeps what the network comes with."""
    head: Head = Head()
    """What makes logits of the backbone's features."""
