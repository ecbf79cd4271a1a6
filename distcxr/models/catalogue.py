"""The networks that `model.name` can be, of both libraries, and which weights there are for them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch.overrides import TorchFunctionMode

from distcxr.models.foundation import FOUNDATIONS, find_foundations
from distcxr.models.libraries import REFUSED, Library
from distcxr.models.variants import VARIANTS, of_timm

_DRAWN = {
    "constant_", "kaiming_normal_", "kaiming_uniform_", "normal_", "ones_", "trunc_normal_", "uniform_",
    "xavier_normal_", "xavier_uniform_", "zeros_", "add_", "clamp_", "div_", "erfinv_", "fill_", "mul_", "zero_",
}  # fmt: skip
"""What fills new tensors with their first numbers, in place."""


@dataclass(frozen=True)
class Network:
    """One network.

    Attributes:
        num_parameters: with its head of 1,000 classes or, of timm, of as many as its weights have; None where nobody
            has counted them.
        side: pixels of the images that its weights were trained with; None where they are not known.
        imagenet: what `model.weights=imagenet` loads, by the library's name for it; "" for nothing.
        xray: names of X-ray weights that `model.weights` takes for it.
    """

    library: Library
    name: str
    num_parameters: int | None
    side: int | None
    imagenet: str
    xray: tuple[str, ...]


def find_networks(pattern: str = "*", *, most_counted: int = 0) -> list[Network]:
    """Networks with names like the pattern, torchvision's first, each library's by name.

    Args:
        pattern: with `*`, `?` or `[...]` for the whole name, of a network or of X-ray weights; without, a part of it.
        most_counted: timm's networks have their parameters counted where no more than so many are found: each takes
            some hundredths of a second, and torchvision's are known.

    Raises ValueError: no name is like it; with the nearest.
    """
    import timm
    import torchvision

    whole = pattern if any(letter in pattern for letter in "*?[") else f"*{pattern}*"
    ours = [name for name in torchvision.models.list_models(module=torchvision.models) if name not in REFUSED]
    theirs = [*timm.list_models(), *VARIANTS]
    weighted = {(one.library, one.network) for name, one in FOUNDATIONS.items() if fnmatchcase(name, whole)}
    visions, timms = (
        [name for name in names if fnmatchcase(name, whole) or (library, name) in weighted]
        for library, names in (("torchvision", ours), ("timm", theirs))
    )
    if not visions and not timms:
        near = difflib.get_close_matches(pattern.strip("*"), dict.fromkeys([*ours, *theirs, *FOUNDATIONS]), n=3)
        hint = f"nearest: {', '.join(near)}" if near else "`distcxr models` lists all"
        raise ValueError(f"no network of torchvision or timm has a name like {pattern!r} ({hint})")
    return [*_of_torchvision(visions), *_of_timm(timms, counted=len(timms) <= most_counted)]


def _of_torchvision(names: list[str]) -> Iterator[Network]:
    import torchvision

    for name in sorted(names):
        weights = torchvision.models.get_model_weights(name).DEFAULT
        sides = weights.transforms().crop_size
        xray = tuple(find_foundations("torchvision", name))
        yield Network("torchvision", name, weights.meta["num_params"], sides[0], weights.name, xray)


def _of_timm(names: list[str], *, counted: bool) -> Iterator[Network]:
    import timm
    import torch

    for name in sorted(names):
        known, more = of_timm(name)
        cfg, num = timm.get_pretrained_cfg(known), None
        if counted:
            try:
                with torch.device("meta"), _WithoutNumbers():
                    num = sum(one.numel() for one in timm.create_model(known, **more).parameters())
            except (NotImplementedError, RuntimeError):  # works its widths out with tensors
                pass
        has_weights = cfg is not None and cfg.has_weights and not more
        imagenet = (cfg.tag or "yes") if has_weights else ""
        side = cfg.input_size[-1] if cfg is not None else None
        yield Network("timm", name, num, side, imagenet, tuple(find_foundations("timm", name)))


class _WithoutNumbers(TorchFunctionMode):
    """Leaves tensors as they are made: on the meta device they have no numbers, and to draw them takes more than half
    of a network's making."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _DRAWN:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))
