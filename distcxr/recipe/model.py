"""The recipe's `model`: the network, its weights and its head."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import model_validator

from distcxr.recipe.section import FUNCTION_PATTERN, NOT_A_FUNCTION, BelowOne, Positive, PositiveInt, Section


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


class Lora(Section):
    """Low-rank adapters beside linear layers: they and the head are trained, everything else stays as it was."""

    rank: PositiveInt = 8
    """Of the change that an adapter makes to its layer's weights: it holds rank x (inputs + outputs) numbers."""
    alpha: Positive = 16.0
    """The change is multiplied by alpha / rank."""
    dropout: BelowOne = 0.0
    """On the adapters' input, while training."""
    targets: Literal["auto"] | list[str] = "auto"
    """Layers that get one: `auto` is every linear layer that the images pass, but the head's; or names, or ends of
    names from a dot on, such as `[qkv, proj]`."""

    @property
    def scale(self) -> float:
        """What the product of an adapter's two matrices is multiplied by."""
        return self.alpha / self.rank

    @model_validator(mode="after")
    def _some(self) -> Lora:
        if not self.targets:
            raise ValueError("model.lora.targets is empty: name layers, such as [qkv, proj], or take auto")
        return self


class Model(Section):
    """The network."""

    name: str = "densenet121"
    """Its name in the library, for example `densenet121`, `resnet50` (torchvision) or `convnext_base` (timm); of
    `python` a function of your own that makes it, `module:function` (docs/own_parts.md)."""
    library: Literal["torchvision", "timm", "python"] = "torchvision"
    """Where the name is looked up; `python` is the working directory and what is installed."""
    weights: str = "imagenet"
    """`imagenet`, `none`, the name of X-ray weights, `rad_dino` for example (docs/foundation.md), or a path: a
    safetensors file; a PyTorch file with a state dict, as timm, torchxrayvision,
    Lightning or arnoweng/CheXNet name its keys; a checkpoint of distcxr, or a run folder (its best). Whole pickled
    models need `distcxr import` before."""
    new_head: bool = False
    """Take a new head whatever head the file has, for transfer to other findings. ImageNet's gives way without it."""
    in_chans: Literal[1, 3] = 3
    """Input channels; with 3 the grey image is repeated on the device."""
    drop_rate: BelowOne | None = None
    """Dropout before the head, whichever it is; null keeps what the network comes with."""
    drop_path: BelowOne | None = None
    """Stochastic depth: in training each block is left out of an image's way with a probability that rises from the
    first block to this at the last (timm's `drop_path_rate`, torchvision's `stochastic_depth_prob`); null keeps what
    the network comes with."""
    head: Head = Head()
    """What makes logits of the backbone's features."""
    lora: Lora | None = None
    """Train low-rank adapters and the head instead of the whole network, for transformers (Hu et al., ICLR 2022); needs
    `pip install 'distcxr[lora]'`. null has none. Predictions and exports have them merged into the weights."""

    @model_validator(mode="before")
    @classmethod
    def _own_without_weights(cls, values: Any) -> Any:
        """A network of one's own has no ImageNet weights to be looked up; the recipe need not turn them off."""
        if isinstance(values, dict) and values.get("library") == "python":
            return {"weights": "none", **values}
        return values

    @model_validator(mode="after")
    def _own(self) -> Model:
        if self.library != "python":
            return self
        if not re.match(FUNCTION_PATTERN, self.name):
            raise ValueError(f"model.name = {self.name!r} {NOT_A_FUNCTION}")
        if self.weights == "imagenet":
            raise ValueError(
                f"model.weights=imagenet: there are none for your own network, {self.name}: load them in the function "
                "and take model.weights=none, or name a file"
            )
        if self.head != Head() or self.drop_rate is not None or self.drop_path is not None:
            raise ValueError(
                "model.head, model.drop_rate and model.drop_path change networks of torchvision and timm: with "
                "model.library=python the network makes its logits itself, so leave them out"
            )
        if self.lora is not None:
            raise ValueError(
                "model.lora adds adapters to networks of torchvision and timm: with model.library=python add them in "
                f"the function, {self.name}, and leave it out"
            )
        return self
