"""Adapters beside linear layers: nothing at first, all of them trained, and gone without a trace when merged.

In whole runs only they and the head learn, a stopped run resumes bit for bit, and whoever uses the run sees a plain
network. One file, as importing peft takes seconds.
"""

from __future__ import annotations

import builtins
import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from saved import tensors
from torch import Tensor, nn

import distcxr
from distcxr.engine.checkpoint import open_checkpoint
from distcxr.engine.export_file import write_weights
from distcxr.engine.fit import fit
from distcxr.engine.validated import validated
from distcxr.models.adapters import add_adapters, has_adapters, is_adapter, merge_adapters
from distcxr.models.depth import layer_depths
from distcxr.models.importers import read_weights
from distcxr.recipe.model import Head, Lora
from distcxr.runfolder.predictions import read_predictions

FOUR = Lora(rank=4)


def adapted(name: str, lora: Lora = FOUR, side: int = 32, **changes: Any) -> nn.Module:
    library = changes.pop("library", "timm")
    module = networks.build(name, library, num_classes=3, in_chans=1, image_size=side, **changes)
    add_adapters(module, lora, network=name, in_chans=1, side=side, seed=0)
    return module.eval()


def layers(module: nn.Module) -> list[str]:
    return [name.partition(".lora_A")[0] for name, _ in module.named_parameters() if ".lora_A" in name]


@pytest.mark.parametrize(
    ("name", "side", "head", "num"),
    [
        ("test_vit", 32, Head(kind="attention"), 24),
        ("eva02_tiny_patch14_224", 28, Head(), 48),  # reads the weights of qkv where nobody tells it not to
    ],
)
def test_adapters_begin_as_nothing_all_learn_and_merge(name: str, side: int, head: Head, num: int) -> None:
    images = networks.grey(side)
    plain = networks.build(name, "timm", num_classes=3, in_chans=1, image_size=side, head=head).eval()
    names = list(plain.state_dict())
    with torch.no_grad():
        before: Tensor = plain(images)
    module = adapted(name, side=side, head=head)
    assert len(layers(module)) == num
    assert {one.rpartition(".")[2] for one in layers(module)} == {"qkv", "proj", "fc1", "fc2"}
    trained = {one: value for one, value in module.named_parameters() if value.requires_grad}
    rest = [one for one in trained if not is_adapter(one)]
    assert rest and all(one.startswith("head.") for one in rest)
    torch.testing.assert_close(module(images), before, rtol=1e-4, atol=1e-5)
    for one, value in trained.items():
        if is_adapter(one):
            nn.init.normal_(value, std=0.05)
    module(images).sum().backward()
    assert all(value.grad is not None for value in trained.values()), "DDP would wait for one that is not used"
    with torch.no_grad():
        after = module(images)
        merge_adapters(module, FOUR.scale)
        torch.testing.assert_close(module(images), after, rtol=1e-5, atol=1e-5)
    assert (after - before).abs().max() > 1e-3 and list(module.state_dict()) == names
    plain.load_state_dict(module.state_dict())
    torch.testing.assert_close(plain(images), after, rtol=1e-5, atol=1e-5)


class Windowed(nn.Module):
    """Reads the weights of one layer, as torchvision's attention does, and calls another for positions, as Swin V2."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.read, self.called = nn.Conv2d(1, 8, 8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.position, self.head = nn.Linear(2, 8), nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.position(torch.ones(49, 2)).mean(0)
        logits: Tensor = self.head(self.called(nn.functional.linear(tokens, self.read.weight)).mean(1))
        return logits


def test_a_layer_that_no_image_passes_has_none() -> None:
    module = Windowed()
    add_adapters(module, Lora(rank=2), network="windowed", in_chans=1, side=32, seed=0)
    assert layers(module) == ["called"]


def test_an_adapter_is_as_deep_as_its_layer() -> None:
    depths = layer_depths(adapted("test_vit"))
    assert {depths[f"blocks.0.attn.qkv.{own}.weight"] for own in ("base_layer", "lora_A.default")} == {6}
    assert depths["blocks.5.mlp.fc2.lora_B.default.weight"] == 1 and depths["head.weight"] == 0


def test_layers_are_chosen_by_the_ends_of_their_names() -> None:
    module = adapted("test_vit", Lora(targets=["qkv", "blocks.5.mlp.fc1"]))
    assert layers(module) == [f"blocks.{number}.attn.qkv" for number in range(6)] + ["blocks.5.mlp.fc1"]


@pytest.mark.parametrize(
    ("name", "library", "lora", "message"),
    [
        ("resnet18", "torchvision", FOUR, r"model\.lora: resnet18 has no linear layer besides its head"),
        ("test_vit", "timm", Lora(rank=65),
         r"model\.lora\.rank=65 is larger than blocks\.0\.attn\.qkv of test_vit.*64 inputs and 192 outputs"),
        ("test_vit", "timm", Lora(targets=["qkv", "kv"]),
         r"model\.lora\.targets: 'kv' is no linear layer.*end in qkv, proj, fc1, fc2, such as blocks\.0\.attn\.qkv"),
    ],
)  # fmt: skip
def test_what_can_t_be_adapted(name: str, library: str, lora: Lora, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapted(name, lora, library=library)


def test_a_file_without_its_adapters_is_an_error(place: Path, tmp_path: Path) -> None:
    best = shutil.copytree(place / "run" / "checkpoints" / "best", tmp_path / "best")
    state = load_file(best / "model.safetensors")
    save_file({name: value for name, value in state.items() if ".lora_B." not in name}, best / "model.safetensors")
    with pytest.raises(ValueError, match=r"best/model\.safetensors: not the adapters of model\.lora"):
        read_weights(best)


def test_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name == "peft":
            raise ModuleNotFoundError("No module named 'peft'", name="peft")
        return whole(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"model\.lora needs peft: pip install 'distcxr\[lora\]'"):
        adapted("test_vit")
    assert not has_adapters(["blocks.0.attn.qkv.weight"])


LORA = (
    "model.name=test_vit", "model.lora={rank: 2, dropout: 0.1}", "train.ema=0.5", "optim.layer_decay=0.7",
    "train.clip_norm=1", "optim.lr=0.01", "eval.pictures=0", "eval.localise=false", "eval.splits=[test]",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and a run of 4 steps that was stopped after the second."""
    folder = tmp_path_factory.mktemp("lora")
    tiny.phantom(folder)
    for most in (2, 4):
        tiny.train(folder, *LORA, f"output={folder / 'run'}", f"train.max_steps={most}", "eval.every=2st")
    return folder


def test_a_stopped_run_ends_as_one_that_was_not(place: Path) -> None:
    until = ("train.max_steps=4", "eval.every=2st", "eval.splits=[]")
    run = tiny.build(place, *LORA, f"output={place / 'straight'}", *until)
    begun = {name: value.clone() for name, value in run.setup.module.state_dict().items()}
    fit(run)
    run.setup.close()
    straight, resumed = (tensors(place / name / "checkpoints" / "last-00000004") for name in ("straight", "run"))
    assert straight.keys() == resumed.keys() and len(straight) > 200
    assert [name for name in straight if not torch.equal(straight[name], resumed[name])] == []
    moved = {name for name, value in begun.items() if not torch.equal(straight[name], value)}
    assert all(is_adapter(name) or name.startswith("head.") for name in moved)
    assert moved == {name for name in begun if is_adapter(name) or name.startswith("head.")}


def test_whoever_uses_the_run_sees_a_plain_network(place: Path, tmp_path: Path) -> None:
    kept = read_predictions(place / "run" / "predictions_test.csv")
    files = [place / "phantom" / "images" / name for name in kept.files]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predictor = distcxr.load(place / "run", device="cpu")
    table = predictor.predict(files)
    for column, finding in enumerate(kept.findings):
        shown = table.loc[table["finding"] == finding, "logit"].to_numpy()
        np.testing.assert_allclose(shown, kept.logits_NC[:, column], atol=1e-5)
    checkpoint = open_checkpoint(place / "run")
    known = replace(validated(checkpoint), tta=("flip",))
    about = write_weights(checkpoint, known, tmp_path / "plain.pth", plain=True)
    assert "are of the mean of the logits of the image as it is and of eval.tta=[flip]" in about["notes"][0]
    state = torch.load(tmp_path / "plain.pth", weights_only=True)
    best = load_file(place / "run" / "checkpoints" / "best" / "model.safetensors")
    assert not any("lora" in name or "base_layer" in name for name in state) and about["model"] == "test_vit"
    base, a, b = (best[f"blocks.0.attn.qkv.{own}.weight"] for own in ("base_layer", "lora_A.default", "lora_B.default"))
    torch.testing.assert_close(state["blocks.0.attn.qkv.weight"], base + 16 / 2 * b @ a)
    run = tiny.build(
        place,
        "model.name=test_vit",
        f"model.weights={place / 'run'}",
        f"output={tmp_path / 'next'}",
        "data.split=official",
    )
    for name, value in run.setup.module.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)
    run.setup.close()
    assert json.loads((place / "run" / "metrics_test.json").read_text())["num_samples"] == len(files)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["train.trainable=[head]"], r"model\.lora: \['head'\] of train\.trainable trains none of its adapters"),
        (["train.trainable=[patch_embed, blocks.5, head]"], r"train\.trainable: 'patch_embed' has neither adapters"),
        (["train.stages=[{epochs: 1, trainable: [head]}, {epochs: 1, trainable: [norm]}]"],
         r"trainable of stage 2 of 2: \['norm'\] trains nothing"),
        (["model.library=python", "model.name=a:b", "model.lora={rank: 2}"], r"model\.lora adds adapters to networks"),
        (["model.lora.targets=[]"], r"model\.lora\.targets is empty"),
    ],
)  # fmt: skip
def test_contradictions(place: Path, tmp_path: Path, keys: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.build(place, *LORA, f"output={tmp_path / 'run'}", *keys)
