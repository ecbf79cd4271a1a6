"""Published X-ray weights that `model.weights` takes by name: what they fit, saw and cost, and where they come from.

Facts are from the projects' own pages and code as they were in November 2026; "unknown" is what was not found there.
Nothing is trained or downloaded here: `find_file` looks where files are put, and asks Hugging Face's hub for those
that are there.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distcxr.models.importers import XRAYVISION
from distcxr.models.variants import of_timm
from distcxr.models.weights import WeightsUnavailable, fetch_hub_file, hub_folder, where_to_put
from distcxr.runfolder.layout import find_checkpoint
from distcxr.runfolder.manifest import read_meta

logger = logging.getLogger(__name__)

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_SAME = 1e-3  # of statistics
_SUFFIXES = (".safetensors", ".pth", ".pt", ".pth.tar", ".ckpt")


@dataclass(frozen=True)
class Foundation:
    """One file of weights.

    Attributes:
        title: what its authors call it.
        library, network: `model.library` and `model.name` that it fits.
        side: of the images of its pretraining, in pixels.
        mean, std: of its input, of pixels in [0, 1]: one value for grey, or three.
        licence: of the weights.
        nih: which of NIH ChestX-ray14's images the pretraining saw; "none" for none of them.
        source: page to get it from.
        file: its name there.
        hub: repository on Hugging Face's hub, "" where it is elsewhere.
        form: whether its authors give it out on request.
        layout: as in `importers.WeightsFile`.
        remark: what else to know.
    """

    title: str
    library: Literal["torchvision", "timm"]
    network: str
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str
    nih: str
    source: str
    file: str
    hub: str = ""
    form: bool = False
    layout: str = ""
    remark: str = ""

    @property
    def normalize(self) -> str:
        """`augment.normalize` as its pretraining had it."""
        if (self.mean, self.std) == _IMAGENET:
            return "imagenet"
        return "half" if self.mean == self.std == (0.5,) else f"{{mean: {self.mean[0]}, std: {self.std[0]}}}"


def _eva_x(size: str, letters: str) -> Foundation:
    return Foundation(
        f"EVA-X-{letters}", "timm", f"eva_x_{size}_patch16_224", 224, (0.49185243,), (0.28509309,), "MIT",
        "all but the official test list", "https://github.com/hustvl/EVA-X",
        f"eva_x_{size}_patch16_merged520k_mim.pt", hub="MapleF/eva_x",
    )  # fmt: skip


def _medical_mae(size: str, letter: str, remark: str) -> Foundation:
    return Foundation(
        f"Medical MAE ViT-{letter}/16", "timm", f"vit_{size}_patch16_gap_224", 224, (0.5056,), (0.252,), "unknown",
        "the official training list", "https://github.com/lambert-x/medical_mae",
        f"the X-ray MAE checkpoint of ViT-{'Small' if letter == 'S' else 'Base'}/16 in its README's table",
        remark=remark,
    )  # fmt: skip


def _cxformer(size: str, letter: str) -> Foundation:
    return Foundation(
        f"CXformer({letter})", "timm", f"vit_{size}_patch14_reg4_dinov2", 518, *_IMAGENET,
        "CC-BY-NC 4.0, research alone", "the official training list", f"https://huggingface.co/m42-health/CXformer-{size}",
        "model.safetensors", hub=f"m42-health/CXformer-{size}", remark="its images had equalised histograms",
    )  # fmt: skip


def _xrayvision(network: str, side: int, file: str, nih: str) -> Foundation:
    return Foundation(
        f"torchxrayvision {network}-res{side}", "torchvision", network, side, (0.5,), (0.5,), "Apache-2.0", nih,
        f"https://github.com/mlmed/torchxrayvision/releases/download/v1/{file}", file, layout=XRAYVISION,
        remark="supervised; one channel",
    )  # fmt: skip


def _xrayvision_densenet(data: str, nih: str = "none") -> Foundation:
    return _xrayvision("densenet121", 224, f"{data}-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt", nih)


_ARK = "https://github.com/jlianglab/Ark"
_ARK_LICENCE = "ASU, academic and non-commercial research alone"

FOUNDATIONS: dict[str, Foundation] = {
    "rad_dino": Foundation(
        "RAD-DINO", "timm", "vit_base_patch14_dinov2", 518, (0.5307,), (0.2583,), "MIT, for research",
        "all 112,120", "https://huggingface.co/microsoft/rad-dino", "model.safetensors", hub="microsoft/rad-dino",
    ),
    "cxformer_small": _cxformer("small", "S"),
    "cxformer_base": _cxformer("base", "B"),
    "eva_x_tiny": _eva_x("tiny", "Ti"),
    "eva_x_small": _eva_x("small", "S"),
    "eva_x_base": _eva_x("base", "B"),
    "medical_mae_small": _medical_mae("small", "S", "CheXpert's images had ImageNet's statistics"),
    "medical_mae_base": _medical_mae("base", "B", "CheXpert's and MIMIC's images had ImageNet's statistics"),
    "ark6_swin_base": Foundation(
        "Ark-6", "timm", "swin_base_patch4_window7_224", 224, *_IMAGENET, _ARK_LICENCE, "yes, with their labels", _ARK,
        "ark6_teacher_ep200_swinb_projector1376_mlp.pth.tar", form=True,
    ),
    "ark_plus_swin_large": Foundation(
        "Ark+", "timm", "swin_large_patch4_window12_384", 768, *_IMAGENET, _ARK_LICENCE, "yes, with their labels", _ARK,
        "Ark6_swinLarge768_ep50.pth.tar", form=True,
    ),
    "txrv_densenet121_all": _xrayvision_densenet("nih-pc-chex-mimic_ch-google-openi-kaggle", "yes, with their labels"),
    "txrv_densenet121_nih": _xrayvision_densenet("nih", "yes, with their labels"),
    "txrv_densenet121_pc": _xrayvision_densenet("pc"),
    "txrv_densenet121_chex": _xrayvision_densenet("chex"),
    "txrv_densenet121_mimic_ch": _xrayvision_densenet("mimic_ch"),
    "txrv_densenet121_mimic_nb": _xrayvision_densenet("mimic_nb"),
    "txrv_resnet50_all": _xrayvision(
        "resnet50", 512, "pc-nih-rsna-siim-vin-resnet50-test512-e400-state.pt", "yes, with their labels"
    ),
    "chexnet_arnoweng": Foundation(
        "CheXNet by arnoweng", "torchvision", "densenet121", 224, *_IMAGENET, "unknown", "yes, with their labels",
        "https://github.com/arnoweng/CheXNet", "model.pth.tar", remark="supervised",
    ),
}  # fmt: skip
"""By the name that `model.weights` takes."""


def find_foundations(library: str, network: str) -> Iterator[str]:
    """Names of the weights that a network takes."""
    return (name for name, one in FOUNDATIONS.items() if (one.library, one.network) == (library, network))


def check_fits(weights: str, *, library: str, name: str) -> None:
    """Refuse weights by name that are of another network than `model.name`'s.

    Raises ValueError: they are; with both, and what to write.
    """
    one = FOUNDATIONS[weights]
    if (one.library, one.network) != (library, name.partition(".")[0]):
        raise ValueError(
            f"model.weights={weights} is of {one.network} ({one.library}), and model.name is {name} ({library}): "
            f"take model.library={one.library} model.name={one.network}"
        )


def find_file(weights: str) -> Path:
    """The file of weights by name: put here by hand, in Hugging Face's cache, or downloaded from its hub.

    Raises WeightsUnavailable: it is in none of these; with what to get, where, the licence, and where to put it.
    """
    one, folder = FOUNDATIONS[weights], hub_folder()
    for suffix in _SUFFIXES:
        if (placed := folder / f"{weights}{suffix}").is_file():
            return placed
    placed = folder / f"{weights}{next((end for end in _SUFFIXES if one.file.endswith(end)), '.pth')}"
    more = f" ({one.title}; licence: {one.licence})"
    if one.hub:
        return fetch_hub_file(
            one.hub, one.file, placed, more=f"{more}, after `hf auth login` if its page asks for that,"
        )
    what = f"{one.file} of {one.source}{' (ask for it with the form there)' if one.form else ''}"
    raise WeightsUnavailable(f"model.weights={weights}: {where_to_put(what, placed, None, more=more)}")


def trained_statistics(
    weights: str, library: str, name: str, *, in_chans: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std per channel of the input that `model.weights` were trained with, of pixels in [0, 1].

    Known of weights by name, of ImageNet's (what the library has for the network) and of runs of distcxr.
    Raises ValueError: they are not.
    """
    mean: tuple[float, ...]
    std: tuple[float, ...]
    if weights in FOUNDATIONS:
        mean, std = FOUNDATIONS[weights].mean, FOUNDATIONS[weights].std
    elif weights == "imagenet" and library == "timm":
        import timm

        cfg = timm.get_pretrained_cfg(of_timm(name)[0])
        mean, std = cfg.mean, cfg.std
    elif weights == "imagenet":
        import torchvision

        shown = torchvision.models.get_model_weights(name).DEFAULT.transforms()  # EfficientNetV2-L's are not ImageNet's
        mean, std = tuple(shown.mean), tuple(shown.std)
    else:
        try:
            path = Path(weights).expanduser()
            meta = read_meta(find_checkpoint(path.parent if path.is_file() else path))
            mean, std = tuple(meta["mean"]), tuple(meta["std"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"augment.normalize=weights: what model.weights={weights} were trained with is not known, only for "
                "weights by name, imagenet and runs: take imagenet, half, dataset or {mean: ..., std: ...}"
            ) from error
    return _channels(mean, in_chans), _channels(std, in_chans)


def warn_of_statistics(weights: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Log a warning where weights by name get other input than they were trained with; mean and std per channel."""
    if weights not in FOUNDATIONS:
        return
    one = FOUNDATIONS[weights]
    trained = (*_channels(one.mean, len(mean)), *_channels(one.std, len(std)))
    if max(abs(a - b) for a, b in zip(trained, (*mean, *std), strict=True)) > _SAME:
        logger.warning(
            f"model.weights={weights} were trained with augment.normalize={one.normalize}, and the recipe has another: "
            "augment.normalize=weights takes it"
        )


def _channels(values: tuple[float, ...], in_chans: int) -> tuple[float, ...]:
    return values if len(values) == in_chans else (sum(values) / len(values),) * in_chans


def described(weights: str) -> str:
    """What a log has of weights by name: licence, and what of NIH's images they saw."""
    one = FOUNDATIONS[weights]
    saw = "saw none of NIH ChestX-ray14" if one.nih == "none" else f"saw of NIH ChestX-ray14: {one.nih}"
    return f"model.weights={weights}: {one.title}, licence {one.licence}; its pretraining {saw}"


def begun_with(weights: str) -> dict[str, str]:
    """For the description of a network that others get: what it was made with, if that is known by name."""
    known = weights in FOUNDATIONS
    return {"begun_with": f"{described(weights)}. Read that licence before you pass this on"} if known else {}


def near(weights: str) -> str:
    """The nearest names, for a message about one that is none; "" for a path."""
    found = difflib.get_close_matches(weights, FOUNDATIONS, n=3)
    return f"; nearest weights by name: {', '.join(found)}" if found else ""
