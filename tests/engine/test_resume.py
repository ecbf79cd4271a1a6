"""A run that was stopped and went on ends where an undisturbed one does, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from distcxr.engine.checkpoint import newest_checkpoint


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint: weights, buffers, optimiser."""
    found = dict(load_file(checkpoint / "model.safetensors"))
    optimizer = torch.load(checkpoint / "training.pt", weights_only=True)["optimizer"]
    for number, state in optimizer["state"].items():
        found |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
    return found


def losses(run_folder: Path) -> list[tuple[str, str]]:
    rows = [line.split(",") for line in (run_folder / "steps.csv").read_text().splitlines()[1:]]
    return [(row[0], row[2]) for row in rows]


MODELS = {
    "batchnorm": ("model.name=test_resnet",),
    # Dropout in the head, BatchNorm in the trunk.
    "dropout": ("model.name=test_efficientnet", "model.drop_rate=0.3"),
}


@tiny.worlds(1, 2, 4)
@pytest.mark.parametrize("model", sorted(MODELS))
def test_resumed_equals_straight(tmp_path: Path, world_size: int, model: str) -> None:
    if tiny.on_main(world_size):
        tiny.phantom(tmp_path)
    torch.distributed.barrier()
    common = (*MODELS[model], "train.per_device_batch_size=2", "train.precision=bf16", "eval.splits=[val]")
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    tiny.train(tmp_path, *common, f"output={straight}", "train.max_steps=5")
    tiny.train(tmp_path, *common, f"output={stopped}", "train.max_steps=2")
    tiny.train(tmp_path, *common, f"output={stopped}", "train.max_steps=5")

    if tiny.on_main(world_size):
        assert newest_checkpoint(stopped) is not None and newest_checkpoint(stopped).step == 5  # type: ignore[union-attr]
        reference = tensors(straight / "checkpoints" / "last-00000005")
        resumed = tensors(stopped / "checkpoints" / "last-00000005")
        assert reference.keys() == resumed.keys() and len(reference) > 100
        different = [name for name in reference if not torch.equal(reference[name], resumed[name])]
        assert different == []
        assert losses(straight) == losses(stopped) and len(losses(straight)) == 5
    torch.distributed.barrier()
