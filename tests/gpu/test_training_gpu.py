"""What only a GPU can show: precisions, no host sync in a step, the same transform as on the CPU."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from saved import tensors

from distcxr.data.augment import DeviceTransform, draw_parameters
from distcxr.determinism import set_deterministic
from distcxr.engine.evaluate import evaluate
from distcxr.engine.fit import begin_next_stage, fit, train_stage, updates
from distcxr.engine.step import train_step
from distcxr.recipe.augmentation import Augment

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["bf16", "fp16", "no"])
def test_a_run_in_every_precision(tmp_path: Path, precision: str) -> None:
    tiny.phantom(tmp_path)
    run = tiny.build(tmp_path, f"output={tmp_path / 'run'}", f"train.precision={precision}", "train.epochs=1")
    assert run.setup.runtime.device.type == "cuda"
    fit(run)
    rows = list(csv.DictReader((tmp_path / "run" / "steps.csv").read_text().splitlines()))
    assert rows and all(math.isfinite(float(row["loss"])) for row in rows)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")  # torch's own warning about the mode
@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_a_step_never_waits_for_the_device(tmp_path: Path, precision: str) -> None:
    tiny.phantom(tmp_path)
    overrides = (f"train.precision={precision}", "train.per_device_batch_size=4", "train.ema=0.9", "loss.name=focal")
    run = tiny.build(tmp_path, f"output={tmp_path / 'run'}", *overrides)
    batches = updates(run)
    train_step(run, next(batches))
    micro_batches = next(batches)
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        train_step(run, micro_batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    batches.close()


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # by torch's own compiler, which uses it
@pytest.mark.parametrize("how", ["train.precision=fp16", "train.compile=true"])
def test_stages_with_scaler_and_compiler(tmp_path: Path, how: str) -> None:
    """The scale that fp16 has found and the compiled network serve all stages."""
    tiny.phantom(tmp_path)
    stages = "train.stages=[{trainable: [fc], epochs: 1}, {epochs: 1, optimizer: carry}]"
    run = tiny.build(tmp_path, stages, how, f"output={tmp_path / 'run'}", "eval.splits=[]")
    train_stage(run)
    scaler = run.setup.runtime.accelerator.scaler
    scale = scaler.get_scale() if scaler else None
    before = {name: value.detach().clone() for name, value in run.setup.module.named_parameters()}
    begin_next_stage(run)
    assert (scaler.get_scale() if scaler else None) == scale
    train_stage(run)
    assert not any(torch.equal(value, before[name]) for name, value in run.setup.module.named_parameters())
    assert run.state.ended and all(value.isfinite().all() for value in run.setup.module.parameters())


def test_the_transform_is_the_cpus() -> None:
    spec = Augment(flip=0.5, rotate_deg=10, translate=0.1, scale=(0.8, 1.2), crop=48, brightness=0.1, contrast=0.2)
    transform = DeviceTransform(spec, (0.5,) * 3, (0.25,) * 3)
    pixels = torch.randint(0, 256, (16, 1, 64, 64), dtype=torch.uint8)
    parameters = draw_parameters(spec, seed=0, epoch=0, positions=np.arange(16))
    on_gpu = transform(pixels.cuda(), parameters.cuda()).cpu()
    assert torch.allclose(on_gpu, transform(pixels, parameters), atol=2e-3)


def test_evaluation_is_the_cpus(tmp_path: Path, leave_gpu: Callable[[], None]) -> None:
    tiny.phantom(tmp_path)
    run = tiny.build(tmp_path, f"output={tmp_path / 'a'}", "train.tf32=false", "data.loader=torch")
    assert run.setup.runtime.device.type == "cuda"
    on_gpu = evaluate(run.setup, "test")
    leave_gpu()
    run = tiny.build(tmp_path, f"output={tmp_path / 'b'}", "data.loader=torch")
    assert run.setup.runtime.device.type == "cpu"
    on_cpu = evaluate(run.setup, "test")
    assert np.allclose(on_gpu.logits_NC, on_cpu.logits_NC, atol=1e-3)


@pytest.mark.parametrize("how", ["train.precision=bf16", "train.precision=no", "train.compile=true"])
def test_the_same_recipe_gives_the_same_numbers_twice(tmp_path: Path, how: str) -> None:
    """DenseNet-121 has the layers of most recipes: convolutions, BatchNorm, pooling, joined maps."""
    tiny.phantom(tmp_path)
    try:
        for name in ("one", "two"):
            run = tiny.build(
                tmp_path, "train.deterministic=true", how, "model.library=torchvision", "model.name=densenet121",
                "data.image_size=64", "eval.splits=[]", "train.max_steps=3", f"output={tmp_path / name}",
            )  # fmt: skip
            fit(run)
            run.setup.close()
    finally:
        set_deterministic(False)
    one, two = (tensors(tmp_path / name / "checkpoints" / "last-00000003") for name in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
