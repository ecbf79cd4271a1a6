"""A network by its name in torchvision or timm, with weights and a head for the findings."""

from __future__ import annotations

import difflib
import logging
from pathlib import Path
from typing import Any, Literal

import torchvision
from torch import nn

from distcxr.models.heads import find_head, init_head, replace_head, set_head_dropout
from distcxr.models.weights import (
    fetch_timm_file,
    fetch_torch_file,
    load_safetensors,
    load_weights,
    make_first_conv_grey,
)

logger = logging.getLogger(__name__)

Library = Literal["torchvision", "timm"]

_REFUSED = {
    name: f"torchvision's {name} returns auxiliary logits beside its own and normalises its input again; "
    "inception_v3 of model.library=timm does neither"
    for name in ("googlenet", "inception_v3")
}
_IMAGENET_CLASSES = 1000


def build_model(
    name: str,
    *,
    library: Library,
    num_classes: int,
    in_chans: int = 3,
    image_size: int | None = None,
    weights: str = "none",
    drop_rate: float | None = None,
) -> nn.Module:
    """Build a classifier: float32 [B, in_chans, H, W] to logits [B, num_classes]; on the CPU, training mode.

    Args:
        name: as the library spells it; timm's may carry a tag (`resnet50.a1_in1k`).
        num_classes: findings; the head is new for them (`heads.replace_head`) unless a local file has one.
        in_chans: 1 sums the first convolution's weights over its 3 input channels: a grey image then gives
            the activations that it gives repeated in 3 channels, if all 3 are normalised alike.
        image_size: side of the images in pixels, for networks that are built for one size (ViT, Swin); None is the
            network's own. timm fits position embeddings of other sizes, torchvision's weights need theirs.
        weights: `none`; `imagenet`, the library's default for this name; or the path of a .safetensors file,
            which must have all of the backbone (`weights.load_weights`).
        drop_rate: dropout before the head, in place of the network's own; None keeps that.

    Raises:
        ValueError: an unknown name or value, or weights that don't fit.
        WeightsUnavailable: `imagenet`, and they are neither here nor to be had from the network.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes}: a classifier needs at least one finding")
    if in_chans not in (1, 3):
        raise ValueError(f"model.in_chans={in_chans}: give 1 or 3")
    if drop_rate is not None and not 0 <= drop_rate < 1:
        raise ValueError(f"model.drop_rate={drop_rate}: give a share from 0 to below 1")
    imagenet = weights == "imagenet"
    if library == "torchvision":
        model = _build_torchvision(name, num_classes, in_chans, image_size, drop_rate, imagenet)
    elif library == "timm":
        model = _build_timm(name, num_classes, in_chans, image_size, drop_rate, imagenet)
    else:
        raise ValueError(f"model.library={library}: give 'torchvision' or 'timm'")
    if weights not in ("imagenet", "none"):
        load_safetensors(model, Path(weights).expanduser())
    return model


def sync_batchnorm(model: nn.Module) -> nn.Module:
    """The model with BatchNorm statistics over all ranks; weights and state-dict keys stay.

    timm's conversion, for models of both libraries: PyTorch's own would take the activation out of timm's
    normalise-and-activate layers.
    """
    from timm.layers import convert_sync_batchnorm

    converted: nn.Module = convert_sync_batchnorm(model)
    return converted


def _build_torchvision(
    name: str, num_classes: int, in_chans: int, image_size: int | None, drop_rate: float | None, imagenet: bool
) -> nn.Module:
    if name in _REFUSED:
        raise ValueError(f"model.name={name}: {_REFUSED[name]}")
    known = torchvision.models.list_models(module=torchvision.models)  # classifiers; not detection or video
    if name not in known:
        raise _unknown(
            name, "torchvision", [n for n in known if n not in _REFUSED],
            "import torchvision.models as m; print(m.list_models(module=m))",
        )  # fmt: skip
    size = {"image_size": image_size} if name.startswith("vit_") and image_size else {}
    model: nn.Module = torchvision.models.get_model(name, weights=None, **size)
    head = find_head(model)[1]
    assert (head.out_features if isinstance(head, nn.Linear) else head.out_channels) == _IMAGENET_CLASSES
    replace_head(model, num_classes)
    if drop_rate is not None:
        set_head_dropout(model, drop_rate)
    if in_chans == 1:
        make_first_conv_grey(model)
    if imagenet:
        default = torchvision.models.get_model_weights(name).DEFAULT
        load_weights(model, fetch_torch_file(default.url), source=str(default))
    return model


def _build_timm(
    name: str, num_classes: int, in_chans: int, image_size: int | None, drop_rate: float | None, imagenet: bool
) -> nn.Module:
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise _unknown(name, "timm", timm.list_models(), "import timm; print(timm.list_models('*resnet*'))")
    tagged = timm.list_models(f"{architecture}.*", pretrained=True)
    if tag and name not in tagged:
        listing = f"import timm; print(timm.list_models('{architecture}.*', pretrained=True))"
        raise _unknown(name, "timm", tagged, listing)
    shape: dict[str, Any] = {"in_chans": in_chans} | ({} if drop_rate is None else {"drop_rate": drop_rate})
    if image_size and getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False):
        shape["img_size"] = image_size
    model: Any  # timm's are modules with `reset_classifier`
    if imagenet:
        cfg = timm.get_pretrained_cfg(name)
        overlay = {"file": str(fetch_timm_file(cfg)), "custom_load": False}
        try:
            # With its own number of classes first: given ours, timm would load without asking for every key.
            model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **shape)
        except RuntimeError as error:
            raise ValueError(f"{overlay['file']} does not fit timm's {name}: {error}") from error
        model.reset_classifier(num_classes)
    else:
        model = timm.create_model(name, pretrained=False, num_classes=num_classes, **shape)
    init_head(find_head(model)[1])
    assert isinstance(model, nn.Module)
    return model


def _unknown(name: str, library: str, known: list[str], listing: str) -> ValueError:
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"nearest: {', '.join(near)}" if near else "nothing is near it"
    return ValueError(
        f'model.name={name}: no such classifier in {library} ({hint}); list them all with: python -c "{listing}"'
    )
