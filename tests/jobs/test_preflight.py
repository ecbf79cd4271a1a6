"""What `distcxr check RECIPE` finds before a run starts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from accelerate.state import AcceleratorState
from PIL import Image

from distcxr.cli.checking import run as check_command
from distcxr.data.dataset import open_dataset
from distcxr.data.readers import torch_reader
from distcxr.jobs import preflight
from distcxr.jobs.preflight import Line, Preflight


def check(folder: Path, *overrides: str, processes: int = 1, sample: int | None = None) -> dict[str, Line]:
    AcceleratorState._reset_state(reset_partial_state=False)
    asked = Preflight(tiny.recipe(folder, *overrides), processes, sample, lambda done, total: None)
    return {line.about: line for line in asked.lines()}


def test_a_recipe_that_would_run(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    found = check(tmp_path, "train.max_steps=5")
    assert {line.verdict for line in found.values()} <= {"ok", "warning"}
    assert found["files"].message == "all 96 images decoded"
    assert found["batches"].message.startswith("16 images an update = 16 per device x 1 accumulation x 1 ranks; 5 ")
    assert found["batches"].message.endswith(" updates, adamw with lr 0.001")
    assert found["network"].message.startswith("test_resnet, 0.4 million parameters")
    assert {"memory", "speed", "duration", "disk", "open files"} <= found.keys()


def test_the_ranks_share_the_batch(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    stages = "train.stages=[{trainable: [fc], epochs: 1, augment: {train_size: 24}}, {epochs: 1}]"
    found = check(tmp_path, "train.per_device_batch_size=4", stages, processes=2, sample=10)
    assert float(found["disk"].message.split()[2]) > 20  # MB, with moments of all weights: the largest stage is tried
    assert found["files"].message == "10 of 96 images decoded"
    assert "= 4 per device x 2 accumulation x 2 ranks" in found["batches"].message
    refused = check(tmp_path, processes=3)
    assert refused["batches"].verdict == "error" and "15 or 18" in refused["batches"].message
    assert "network" not in refused


def test_too_small_a_disk_and_images_that_are_nearly_black(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 bits in PNGs of 16, as some data sets have them: every image can be read, and shows 16 grey levels."""
    dark = Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64))
    for file in (tiny.phantom(tmp_path) / "images").iterdir():
        dark.save(file)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    found = check(tmp_path)
    assert found["disk"].verdict == "error" and "1.00 MB are free" in found["disk"].message
    assert found["files"].verdict == "ok" and found["images"].verdict == "warning"
    assert found["images"].message.startswith("32 of 32 looked at: 12 bits of a 16-bit PNG are used")


def test_too_little_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.phantom(tmp_path)
    workers = ("data.loader=torch", "data.num_workers=1", "data.prefetch=2")
    assert "take at most 0.05 MB" in check(tmp_path, *workers)["/dev/shm"].message  # 3 batches of 16 images of 32 px
    used = torch_reader.shutil.disk_usage
    monkeypatch.setattr(torch_reader.shutil, "disk_usage", lambda path: used(path)._replace(free=60_000))
    found = check(tmp_path, *workers, "train.per_device_batch_size=16", "train.global_batch_size=32", processes=2)
    assert found["/dev/shm"].verdict == "error" and "docker run --shm-size" in found["/dev/shm"].message
    monkeypatch.setattr(torch_reader.shutil, "disk_usage", lambda path: used(path)._replace(free=10_000))
    assert "0 MiB free and the workers need 0" in check(tmp_path, *workers)["/dev/shm"].message


def test_the_command_writes_a_list_that_training_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.phantom(tmp_path)
    monkeypatch.chdir(tmp_path)
    dataset = open_dataset(tiny.recipe(tmp_path))
    for number in (0, 1):
        (bad,) = dataset.index.files(dataset.splits.train[[number]])
        Path(bad).write_bytes(b"not a picture")
        AcceleratorState._reset_state(reset_partial_state=False)
        overrides = ["data.root=phantom", *(["data.quarantine=quarantine.csv"] if number else [])]
        assert check_command(Path("tiny.yaml"), overrides, 1) == 0
        shown = capsys.readouterr().out
        assert "1 (1.0" in shown and "quarantine.csv lists 1 image more" in shown
    assert len((tmp_path / "quarantine.csv").read_text().splitlines()) == 3
    assert check_command(Path("tiny.yaml"), ["data.root=nowhere"], 1, quick=True) == 2
    shown = "".join(capsys.readouterr().out.split())
    assert f"{tmp_path}/nowhereisnotafolder" in shown  # whole, over two lines if need be
