"""Chosen images make the network's numbers stop being finite, in training and wherever else it sees them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distcxr.data.batch import Batch
from distcxr.engine import opening
from distcxr.engine.setup import Setup


@contextmanager
def spoiled(samples: Collection[int], layer: str = "layer2", value: float = float("nan")) -> Iterator[None]:
    """Have `layer` of every network that is built output `value` for these samples, by their rows of the index."""
    shown: list[Tensor] = []
    logits, build = Setup.logits, opening.build_network

    def logits_of(setup: Setup, model: nn.Module, batch: Batch, *more: Any, **named: Any) -> Tensor:
        shown[:] = [batch.sample_id]
        return logits(setup, model, batch, *more, **named)

    def spoil(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        is_one = torch.isin(shown[0], torch.tensor(sorted(samples), dtype=torch.int64)) if shown else torch.zeros(1)
        if len(is_one) != len(output):
            return output
        return torch.where(is_one.bool().view(-1, *[1] * (output.ndim - 1)), value, output)

    def build_one(*arguments: Any, **named: Any) -> nn.Module:
        module = build(*arguments, **named)
        module.get_submodule(layer).register_forward_hook(spoil)
        return module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Setup, "logits", logits_of)
        patch.setattr(opening, "build_network", build_one)
        yield
