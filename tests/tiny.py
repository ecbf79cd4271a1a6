"""A run small enough for a test: 96 synthetic X-rays of 64 pixels, a small network, two CPU cores."""

from __future__ import annotations

import contextlib
import csv
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from rich.console import Console

from distcxr.cli import main
from distcxr.engine.build import build_run
from distcxr.engine.fit import fit
from distcxr.engine.state import Run
from distcxr.phantom.writing import write_phantom
from distcxr.recipe import Recipe, load_recipe
from distcxr.runtime import Runtime, start_runtime

SHARED = "DISTCXR_TESTS_PHANTOMS"  # a folder, which conftest.py makes
RECIPE = """
data: {image_size: 32, loader: torch, num_workers: 0, val_fraction: 0.25}
augment: {flip: 0.5, rotate_deg: 5, scale: [0.9, 1.1], brightness: 0.1, contrast: 0.1, normalize: half}
model: {library: timm, name: test_resnet, weights: none, in_chans: 1}
optim: {lr: 1e-3}
schedule: {warmup: 2st}
train: {epochs: 3, global_batch_size: 16, precision: no, clip_norm: 1.0}
eval: {replicates: 20, pictures: 2}
checkpoint: {every: 3st, keep: 3}
logging: {every: 2st, images: 0, val_images: 0}
"""


def phantom(folder: Path, images: int = 96, size: int = 64) -> Path:
    """The data; written once, for later calls and other ranks. Tests may spoil it: it is a copy, 20 times as cheap."""
    data = folder / "phantom"
    if SHARED in os.environ and not data.exists():
        shutil.copytree(_drawn(Path(os.environ[SHARED]), images, size), data)
    else:
        write_phantom(data, images=images, size=size, workers=1)
    return data


def _drawn(shared: Path, images: int, size: int) -> Path:
    """Images that all tests of a session copy; whichever process is first with them draws them."""
    whole = shared / f"{images}-{size}"
    if not whole.exists():
        part = Path(tempfile.mkdtemp(dir=shared))
        write_phantom(part, images=images, size=size, workers=1)
        with contextlib.suppress(OSError):  # another process was first
            part.rename(whole)
    return whole


def recipe(folder: Path, *overrides: str) -> Recipe:
    """The tiny recipe over `folder / "phantom"`."""
    path = folder / "tiny.yaml"
    part = folder / f"tiny.{os.getpid()}"  # every rank writes it: none may read what another has half written
    part.write_text(RECIPE)
    part.replace(path)
    return load_recipe(path, [f"data.root={folder / 'phantom'}", *overrides])


def runtime(tiny: Recipe) -> Runtime:
    """A runtime for one recipe after another in the same processes, which Accelerate does not expect."""
    AcceleratorState._reset_state(reset_partial_state=False)
    started = start_runtime(tiny)
    torch.set_num_threads(1)  # small tensors: on a busy machine two threads wait for each other more than they work
    return started


def build(folder: Path, *overrides: str) -> Run:
    """A run in this world, ready for its next step."""
    logging.getLogger("distcxr").setLevel(logging.INFO)
    tiny = recipe(folder, *overrides)
    return build_run(tiny, "tiny", runtime(tiny), Console(quiet=True))


BF16 = "train.precision=bf16"


def train(folder: Path, *overrides: str) -> None:
    """A whole launch: build, train, score."""
    run = build(folder, *overrides)
    fit(run)
    run.setup.close()


def command(monkeypatch: pytest.MonkeyPatch, folder: Path, verb: str, *more: str) -> int:
    """`distcxr VERB` for the recipe and the images in a folder; returns its exit code."""
    recipe(folder)
    root = f"data.root={folder / 'phantom'}"
    monkeypatch.setattr("sys.argv", ["distcxr", verb, str(folder / "tiny.yaml"), root, *more])
    return main()


def rows(path: Path) -> list[dict[str, str]]:
    """A CSV's rows by column name."""
    return list(csv.DictReader(path.read_text().splitlines()))


def on_main(world_size: int) -> bool:
    """Whether this process is rank 0 of a world that has the size it should."""
    if world_size == 1:
        assert not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1
        return True
    assert torch.distributed.get_world_size() == world_size
    return torch.distributed.get_rank() == 0


def worlds(*sizes: int) -> Any:
    """Parametrise a test over `world_size`, each in a world of that size."""
    params = [pytest.param(n, marks=pytest.mark.world_size(n), id=f"{n}-ranks") for n in sizes]
    return pytest.mark.parametrize("world_size", params)
