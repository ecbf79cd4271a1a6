"""Mixed precision is the network's alone: what it is shown is what float32 shows it, rounded once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn

from distcxr.engine.embeddings import embed
from distcxr.engine.evaluate import predict

# Everything that training may do to an image; grey levels come through the normalisation as they are.
FULL = (
    "augment={flip: 0.5, rotate_deg: 10, translate: 0.1, scale: [0.8, 1.2], brightness: 0.1, contrast: 0.2, "
    "normalize: {mean: 0, std: 0.00392156862745098}}"
)


def shown(run: tiny.Run, compute: Any) -> Tensor:
    """What the network is shown while `compute` works, [N, C, T, T]."""
    seen: list[Tensor] = []
    first = next(layer for layer in run.setup.module.modules() if isinstance(layer, nn.Conv2d))
    handle = first.register_forward_pre_hook(lambda _, images: seen.append(images[0].clone()))
    try:
        compute()
    finally:
        handle.remove()
    return torch.cat(seen)


def pixels_of(run: tiny.Run, rows: np.ndarray) -> Tensor:
    return torch.cat([answer.pixels for answer in run.setup.reader.read(np.split(rows, len(rows)))])


@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_evaluation_and_embeddings_see_the_pixels_exactly(tmp_path: Path, precision: str) -> None:
    tiny.phantom(tmp_path)
    run = tiny.build(tmp_path, f"output={tmp_path / 'run'}", f"train.precision={precision}", FULL)
    rows = run.setup.splits.test[:8]
    pixels = pixels_of(run, rows)
    assert pixels.unique().numel() > 100
    for compute in (lambda: predict(run.setup, rows), lambda: embed(run.setup, rows)):
        seen = shown(run, compute)
        assert seen.dtype == run.setup.runtime.compute_dtype
        assert torch.equal(seen.float(), pixels.float())


def test_views_see_what_float32_sees(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    seen = {}
    for precision in ("bf16", "no"):
        run = tiny.build(tmp_path, f"output={tmp_path / precision}", f"train.precision={precision}", FULL)
        rows = run.setup.splits.test[:8]
        seen[precision] = shown(run, lambda run=run, rows=rows: predict(run.setup, rows, ["zoom", "rotate_left"]))
    assert torch.equal(seen["bf16"], seen["no"].bfloat16())


def test_training_is_shown_the_same_under_every_precision(tmp_path: Path) -> None:
    from distcxr.engine.fit import updates
    from distcxr.engine.step import train_step

    tiny.phantom(tmp_path)
    seen = {}
    for precision in ("bf16", "no"):
        run = tiny.build(tmp_path, f"output={tmp_path / precision}", f"train.precision={precision}", FULL)
        batch = next(updates(run))
        seen[precision] = shown(run, lambda run=run, batch=batch: train_step(run, batch))
    assert not torch.equal(seen["no"], seen["no"].round())
    assert torch.equal(seen["bf16"], seen["no"].bfloat16())
