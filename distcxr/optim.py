"""The optimiser and its parameter groups."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

_NORM_EPSILON = 1e-6  # of clip_grad_norm_


def build_optimizer(
    name: Literal["adamw", "adam", "sgd"],
    params: Iterable[tuple[str, nn.Parameter]],
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    momentum: float = 0.9,
    nesterov: bool = False,
    decay_all: bool = False,
    undecayed: Collection[str] = (),
    layer_decay: float = 1.0,
    depths: Mapping[str, int] | None = None,
) -> torch.optim.Optimizer:
    """PyTorch's fused optimiser (on a CPU a pass over memory, not ten) of the parameters that require a gradient.

    There are up to two groups, each with its key `name`: `decay`, and `no_decay` (weight decay 0) for biases
    and parameters with at most one dimension, which is what normalisation layers have. A group without parameters is
    left out; the order within a group is that of `params`. With `depths` there are up to two groups for
    every depth, the head's first. Each has the key `lr_scale`, `layer_decay` to the power of its depth.

    Args:
        params: names and parameters, as `module.named_parameters()` gives them.
        lr: the peak; `set_lr` changes it from step to step.
        weight_decay: decoupled for AdamW; added to the gradient (L2) for Adam and SGD, as torch does.
        betas: of Adam and AdamW; `momentum` and `nesterov` are SGD's.
        decay_all: all parameters are in `decay`, but those of `undecayed`.
        undecayed: names of parameters that are in `no_decay`, whatever their shape.
        layer_decay: above 0, at most 1 (Clark et al., ICLR 2020; Bao et al., ICLR 2022).
        depths: of each parameter by name: blocks between it and the head, which has 0; None is 0 for all.

    Raises ValueError: no parameter requires a gradient.
    """
    members: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for parameter_name, parameter in params:
        if parameter.requires_grad:
            small = parameter.ndim <= 1 or parameter_name.rpartition(".")[2] == "bias"
            plain = parameter_name in undecayed or (small and not decay_all)
            depth = depths[parameter_name] if depths is not None else 0
            members.setdefault((depth, plain), []).append(parameter)
    if not members:
        raise ValueError("no parameter requires a gradient: everything is frozen, there is nothing to train")
    groups: list[dict[str, Any]] = [
        {
            "name": "no_decay" if plain else "decay",
            "params": members[depth, plain],
            "weight_decay": 0.0 if plain else weight_decay,
            "lr_scale": layer_decay**depth,
        }
        for depth, plain in sorted(members)
    ]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
    if name == "adam":
        return torch.optim.Adam(groups, lr=lr, betas=betas, fused=True)
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=True)
    if momentum:
        # PyTorch leaves them uninitialised where the first update is skipped, as fp16's often is: 0 x m + g is g.
        for parameter in (parameter for group in groups for parameter in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the learning rate of the next update, times its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def load_optimizer(optimizer: torch.optim.Optimizer, stored: Mapping[str, Any]) -> None:
    """Load what `state_dict` gave, also of an optimiser that was not fused.

    PyTorch takes how the update is computed from the stored groups, too, and by it the device that Adam's steps are
    kept on: from a checkpoint older than this every update would be slow, and copy two numbers a parameter.
    """
    groups = [group | {"fused": True, "foreach": None} for group in stored["param_groups"]]
    optimizer.load_state_dict({**stored, "param_groups": groups})


def total_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """The norm of all gradients together, a float32 scalar on their device: the same on all ranks, as they are."""
    gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
    return torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])


@contextmanager
def clipped(optimizer: torch.optim.Optimizer, max_norm: float, norm: Tensor) -> Iterator[None]:
    """Have the update within the block scale all gradients so that their norm is at most `max_norm`.

    As `torch.nn.utils.clip_grad_norm_`, without its pass over the gradients: the fused update divides by a number on
    the device, which is there for GradScaler. Gradients that are scaled already (fp16) are not for this.

    Args:
        norm: theirs, from `total_norm`.
    """
    fused: Any = optimizer
    fused.grad_scale = ((norm + _NORM_EPSILON) / max_norm).clamp(min=1)
    try:
        yield
    finally:
        del fused.grad_scale


@contextmanager
def left_out(optimizer: torch.optim.Optimizer, where: Tensor) -> Iterator[None]:
    """Have the update within the block change neither weights nor moments where `where`, a scalar on the device, is
    true.

    The fused update looks at that number itself, as it does for GradScaler: the host need not know it. Zeroed gradients
    would still decay the weights and move them by their momentum.
    """
    fused: Any = optimizer
    fused.found_inf = where.float()
    try:
        yield
    finally:
        del fused.found_inf
