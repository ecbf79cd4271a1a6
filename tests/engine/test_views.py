"""Test-time augmentation: the mean over views, whatever the loader, the world and what training does to images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from distcxr.data.augment import DeviceTransform, identity_parameters
from distcxr.engine.evaluate import predict
from distcxr.engine.setup import VIEWS, through
from distcxr.recipe.augmentation import Augment
from distcxr.recipe.keys import Eval


def pixels(num: int = 3, side: int = 16) -> Tensor:
    return torch.randint(0, 256, (num, 1, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def seen(view: str, spec: Augment, image: Tensor) -> Tensor:
    transform, parameters = through(view, DeviceTransform(spec, (0.5,), (0.5,)), identity_parameters(len(image)))
    return transform(image, parameters)


@pytest.mark.parametrize("spec", [Augment(), Augment(flip=0.5, rotate_deg=10, brightness=0.2, contrast=0.2)])
def test_a_flip_mirrors_also_where_training_does_not(spec: Augment) -> None:
    plain = DeviceTransform(spec, (0.5,), (0.5,))(pixels(), identity_parameters(3))
    assert torch.allclose(seen("flip", spec, pixels()), plain.flip(-1), atol=1e-5)


def test_turns_go_either_way_and_zoom_enlarges() -> None:
    image = torch.zeros(1, 1, 33, 33, dtype=torch.uint8)
    image[0, 0, 16, 28:] = 255  # to the right of the centre
    heights = {view: float((seen(view, Augment(), image)[0, 0] + 1).sum(1) @ torch.arange(33.0)) for view in VIEWS}
    assert heights["rotate_left"] < heights["rotate_right"]  # counter-clockwise lifts what is on the right
    disc = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    disc[0, 0, 22:42, 22:42] = 255
    area = float((seen("zoom", Augment(), disc) + 1).sum() / 2)
    assert area == pytest.approx(400 * 1.21, rel=0.02)


@tiny.worlds(1, 3)
def test_logits_are_the_mean_over_views(tmp_path: Path, world_size: int) -> None:
    loader = "dali" if world_size == 1 else "torch"
    if tiny.on_main(world_size):
        tiny.phantom(tmp_path)
    if world_size > 1:
        torch.distributed.barrier()
    run = tiny.build(
        tmp_path, f"output={tmp_path / 'run'}", f"data.loader={loader}", "train.global_batch_size=12", "augment.flip=0"
    )
    rows = run.setup.splits.val[:7]  # with three ranks, uneven shards
    found = predict(run.setup, rows, ["flip", "rotate_left"])
    assert found.rows.tolist() == rows.tolist()
    answer = run.setup.reader.read(np.split(rows, 7))
    image = torch.cat([one.pixels for one in answer])
    run.setup.module.eval()
    with torch.no_grad():
        plain = run.setup.transform(image, identity_parameters(7))
        transform, parameters = through("rotate_left", run.setup.transform, identity_parameters(7))
        shown = [plain, plain.flip(-1), transform(image, parameters)]
        mean = torch.stack([run.setup.module(one) for one in shown]).mean(0)
    assert np.allclose(found.values_NK, mean.numpy(), atol=1e-5)
    assert not np.allclose(found.values_NK, predict(run.setup, rows).values_NK, atol=1e-5)


def test_a_view_is_named_once() -> None:
    with pytest.raises(ValueError, match=r"eval.tta names a view twice: flip, flip"):
        Eval(tta=["flip", "flip"])
