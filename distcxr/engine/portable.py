"""A checkpoint as a network of its own: grey pixels in, calibrated probabilities out, nothing of ours around it.

    uint8 [N, 1, S, S] ──► each view: crop, normalise, network ──► mean logits ──► sigmoid(logits / temperature)

Resizing is not inside. The run's images are resized by Pillow's antialiased bilinear in integers (`resize_grey`), and
its filter depends on the image's size: ONNX's and PyTorch's own resizing give other pixels, and one graph for any size
would have to compute the filter itself. So whoever runs it resizes: `Image.resize` of Pillow is within one grey level.

Shapes: N images, S side of the loaded image, T side of the network's input, C findings, M columns of metadata.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distcxr.data.augment import WARPED, identity_parameters
from distcxr.data.augment.geometry import center_crop, warp
from distcxr.data.metadata import metadata_width
from distcxr.engine.inference import Member
from distcxr.engine.setup import VIEWS
from distcxr.engine.validated import Validated
from distcxr.losses import binary_logits, loss_logits

IMAGE, METADATA = "image", "metadata"
OUTPUTS = ("probabilities", "logits")


class Portable(nn.Module):
    """The network of a `Member` on the CPU with what goes before and after it, in float32.

    It is called with uint8 [N, 1, S, S], and float32 [N, M] where the recipe has metadata, and returns probabilities
    and logits, float32 [N, C] each; logits as of `losses.binary_logits`, the mean over the views of `eval.tta`.
    """

    def __init__(self, member: Member, temperatures: Sequence[float]) -> None:
        super().__init__()
        recipe, transform = member.recipe, member.transform
        self.network = copy.deepcopy(member.on(torch.device("cpu"))).to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
        self.loss_name, self.augment = recipe.loss.name, recipe.augment
        self.views: tuple[str | None, ...] = (None, *recipe.eval.tta)
        shape = (1, len(transform.mean), 1, 1)
        factor = torch.tensor([1 / (255.0 * s) for s in transform.std]).view(shape)
        shift = torch.tensor([-m / s for m, s in zip(transform.mean, transform.std, strict=True)]).view(shape)
        self.factor, self.shift = nn.Buffer(factor), nn.Buffer(shift)
        self.temperatures = nn.Buffer(torch.tensor(temperatures, dtype=torch.float32))
        shown = [{}, *({VIEWS[view].column: VIEWS[view].value} for view in recipe.eval.tta)]
        self.warps = nn.Buffer(torch.cat([identity_parameters(1, **changed)[:, WARPED] for changed in shown]))

    def forward(self, image: Tensor, metadata: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Probabilities and logits, see above."""
        beside = () if metadata is None else (metadata,)
        grey = image.float()
        total = self.network(self._input(grey, 0), *beside)
        for number in range(1, len(self.views)):
            total = total + self.network(self._input(grey, number), *beside)
        logits = binary_logits(self.loss_name, total / len(self.views))
        return torch.sigmoid(logits / self.temperatures), logits

    def _input(self, grey: Tensor, number: int) -> Tensor:
        """What `DeviceTransform` makes of a view, in operations that every exporter knows."""
        view, spec = self.views[number], self.augment
        if view == "flip":
            grey = grey.flip(-1)
        elif view is not None:
            grey = warp(grey, self.warps[number : number + 1].expand(grey.shape[0], -1))  # len would fix N
        if spec.center_crop < 1:
            grey = center_crop(grey, round(grey.shape[-1] * spec.center_crop))
        if spec.crop is not None:
            free = grey.shape[-1] - spec.crop
            start = min((free + 1) // 2, free)
            grey = grey[..., start : start + spec.crop, start : start + spec.crop]
        return torch.addcmul(self.shift, grey, self.factor)


class Averaged(nn.Module):
    """Several runs' `Portable` on the same input, which gives the mean that `evaluate.average` makes of them."""

    def __init__(self, parts: Sequence[Portable], temperatures: Sequence[float]) -> None:
        super().__init__()
        self.parts, self.loss_name = nn.ModuleList(parts), parts[0].loss_name
        self.temperatures = nn.Buffer(torch.tensor(temperatures, dtype=torch.float32))

    def forward(self, image: Tensor, metadata: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Probabilities and logits, see `Portable`."""
        each = [loss_logits(self.loss_name, part(image, metadata)[1]) for part in self.parts]
        logits = binary_logits(self.loss_name, torch.stack(each).mean(dim=0))
        return torch.sigmoid(logits / self.temperatures), logits


def portable(members: Sequence[Member], temperatures: Sequence[float]) -> Portable | Averaged:
    """The network of a run, or the mean of several.

    Raises:
        ValueError: they take images of different sizes, or other metadata beside them.
    """
    takes = [(member.recipe.data.image_size, list(member.recipe.model.head.metadata)) for member in members]
    if other := next((one for one in takes if one != takes[0]), None):
        raise ValueError(
            f"data.image_size and model.head.metadata are {takes[0]} and {other}: one file has one input. Export these "
            "runs apart"
        )
    parts = [Portable(member, temperatures) for member in members]
    return parts[0] if len(parts) == 1 else Averaged(parts, temperatures)


def example_inputs(member: Member) -> dict[str, Tensor]:
    """Two black images, and unknown metadata where the network takes it, by the names of the inputs."""
    size, names = member.recipe.data.image_size, member.recipe.model.head.metadata
    inputs = {IMAGE: torch.zeros(2, 1, size, size, dtype=torch.uint8)}
    return inputs | ({METADATA: torch.zeros(2, metadata_width(names))} if names else {})


def temperatures_of(known: Validated) -> list[float]:
    """Validation's temperature of each finding, 1 where there is none."""
    if known.operating is None:
        return [1.0] * len(known.findings)
    return [temperature.value or 1.0 for temperature in known.operating.temperatures]
