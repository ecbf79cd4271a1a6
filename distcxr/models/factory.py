"""`build_model`: a network by its name in torchvision or timm, with weights and a head for the findings."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from distcxr.models.foundation import FOUNDATIONS, check_fits, described, find_file, near
from distcxr.models.heads import Headed, head_parameter_names, with_head
from distcxr.models.importers import WeightsFile, load_head, read_weights, split
from distcxr.models.libraries import USUAL_SIDE, Library, Wanted, build_network, check_name
from distcxr.models.own_network import build_own
from distcxr.models.weights import load_backbone
from distcxr.recipe.model import Head

logger = logging.getLogger(__name__)


def build_model(
    name: str,
    *,
    library: Library,
    num_classes: int,
    in_chans: int = 3,
    image_size: int | None = None,
    weights: str = "none",
    drop_rate: float | None = None,
    drop_path: float | None = None,
    head: Head | None = None,
    num_metadata: int = 0,
    num_views: int = 1,
    new_head: bool = False,
    findings: Sequence[str] | None = None,
) -> nn.Module:
    """Build a classifier: float32 [B, in_chans, H, W] to logits [B, num_classes]; on the CPU, training mode.

    With metadata it is called as `model(images, metadata_BM)`; images of two views are [B, 2 in_chans, H, W]. Its own
    names are the library's; with another head than the network's own those of `heads.Headed`.

    Args:
        name: as the library spells it; timm's may carry a tag (`resnet50.a1_in1k`). Of `python` a function of a
            user's own, which `own_parts` has opened: the network makes its logits itself.
        num_classes: findings; the head is new for them unless a local file has one (`importers.load_head`).
        in_chans: 1 sums the first convolution's weights over its 3 input channels: a grey image then gives
            the activations that it gives repeated in 3 channels, if all 3 are normalised alike.
        image_size: side of the images in pixels, for networks that are built for one size (ViT, Swin); None is the
            network's own. Position embeddings of timm's are resized, torchvision's weights need their own size.
        weights: `none`; `imagenet`, the library's default for this name; a name of `foundation.FOUNDATIONS`; or a path
            (`importers.read_weights`). The last two must have all of the backbone.
        drop_rate: dropout before the head, in place of the network's own; None keeps that.
        drop_path: stochastic depth of the last block, the blocks before it have less; None keeps the network's own.
        head: the recipe's `model.head`; None is the network's own last layer.
        num_metadata: columns M of the metadata that the head takes beside the image; 0 for none.
        num_views: 2 for `heads.TwoViewHead`, to which the last of these columns belongs.
        new_head: whatever head a local file has, take a new one.
        findings: the logits' findings, compared with those that a checkpoint was trained for.

    Raises:
        ValueError: an unknown name, a size the network can't take, weights that don't fit, or stochastic depth for a
            network that has none.
        WeightsUnavailable: `imagenet` or a name, and they are neither on this machine nor can be downloaded.
    """
    if weights in FOUNDATIONS:
        check_fits(weights, library=library, name=name)
        logger.info(described(weights))
    side = image_size or USUAL_SIDE
    if library == "python":
        model = build_own(name, num_classes=num_classes, in_chans=in_chans, image_size=side)
    else:
        model = build_network(
            Wanted(library, name, num_classes, in_chans, image_size, drop_rate, drop_path, weights == "imagenet")
        )
    file = None if weights in ("imagenet", "none") else _read(weights)

    def headed() -> nn.Module:
        return with_head(
            model, head or Head(), num_classes=num_classes, num_metadata=num_metadata, num_views=num_views,
            drop_rate=drop_rate, side=side,
        )  # fmt: skip

    if file is None:
        return headed()
    parts = split(file, model)
    if head and head.kind == "attention" and "attention.weight" in parts.head:  # saved without what follows the map
        built = headed()
        assert isinstance(built, Headed)
        load_backbone(built.backbone, parts.backbone, source=file.source)
    else:
        load_backbone(model, parts.backbone, source=file.source, but=head_parameter_names(model))
        built = headed()
    if new_head:
        logger.info(f"{file.source}: the head is new, as model.new_head asks")
    else:
        load_head(built, parts.head, file, num_classes=num_classes, findings=findings)
    return built


def check_named(name: str, *, library: Library, weights: str) -> None:
    """Refuse a misspelt name or path, as `build_model` does, before anything is read, built or downloaded.

    Raises:
        ValueError: an unknown name, weights by name of another network, or a path where there is nothing.
        WeightsUnavailable: weights by name that have to be put here by hand, and are not.
    """
    if library != "python":  # `own_parts` has imported that
        check_name(library, name)
    if weights in FOUNDATIONS:
        check_fits(weights, library=library, name=name)
        if not FOUNDATIONS[weights].hub:
            find_file(weights)
    elif weights not in ("imagenet", "none") and not Path(weights).expanduser().exists():
        _read(weights)


def _read(weights: str) -> WeightsFile:
    one = FOUNDATIONS.get(weights)
    path = find_file(weights) if one else Path(weights)
    try:
        file = read_weights(path)
    except ValueError as error:  # begins with the path
        hint = "" if one or path.expanduser().exists() else near(weights)
        raise ValueError(f"model.weights={error}{hint}") from error
    return replace(file, layout=one.layout) if one else file


def sync_batchnorm(model: nn.Module) -> nn.Module:
    """The model with BatchNorm statistics over all ranks; weights and state-dict keys stay.

    timm's conversion, for models of both libraries: PyTorch's own would take the activation out of timm's
    normalise-and-activate layers.
    """
    from timm.layers import convert_sync_batchnorm

    converted: nn.Module = convert_sync_batchnorm(model)
    return converted
