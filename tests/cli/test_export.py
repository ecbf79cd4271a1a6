"""Weights out again: what torchvision, timm and anyone else can load gives the logits that we gave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
import torchvision
from torch import Tensor, nn

from distcxr.cli import main
from distcxr.engine.saving import save_best

SIDE = 32


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    tiny.phantom(folder, images=48, size=32)
    return folder


def train(place: Path, name: str, *overrides: str) -> tuple[Path, nn.Module]:
    """A checkpoint and its network; BatchNorm's buffers are no longer those of a new network."""
    run = tiny.build(place, f"output={place / name}", *overrides)
    with torch.no_grad():
        for key, value in run.setup.module.state_dict().items():
            if key.endswith(("running_mean", "running_var", "weight")):
                value.add_(0.1 * (torch.rand_like(value) - 0.5))
    save_best(run)
    run.setup.close()
    return place / name, run.setup.module.eval()


def export(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["distcxr", "export", *map(str, words)])
    return main()


def load_as_written(about: dict[str, object], folder: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """Run the lines that the JSON beside the weights gives."""
    monkeypatch.chdir(folder)
    names: dict[str, nn.Module] = {}
    exec("\n".join(about["load"]), names)  # type: ignore[arg-type]
    return names["model"]


def image(channels: int) -> Tensor:
    return torch.rand(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).expand(-1, channels, -1, -1)


@pytest.mark.parametrize("in_chans", [1, 3])
def test_torchvision_loads_it(place: Path, monkeypatch: pytest.MonkeyPatch, in_chans: int) -> None:
    folder, ours = train(
        place, f"resnet18_{in_chans}", "model.library=torchvision", "model.name=resnet18", f"model.in_chans={in_chans}"
    )
    out = place / f"plain{in_chans}.pth"
    assert export(monkeypatch, folder, out) == 0
    about = json.loads(out.with_suffix(".json").read_text())
    theirs = torchvision.models.resnet18(num_classes=len(about["findings"]))
    theirs.load_state_dict(torch.load(out, weights_only=True))
    expected = ours(image(in_chans))
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(theirs.eval()(image(3)), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(load_as_written(about, place, monkeypatch)(image(3)), expected, rtol=1e-5, atol=1e-5)
    assert about["in_chans"] == 3 and about["mean"] == [0.5] * 3 and about["image_size"] == SIDE
    assert about["findings"][:2] == ["Atelectasis", "Cardiomegaly"]
    assert bool(about["notes"]) == (in_chans == 1)
    assert all(value.is_contiguous() for value in torch.load(out, weights_only=True).values())


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("timm", ["model.name=test_resnet"]),
        ("squeezenet", ["model.library=torchvision", "model.name=squeezenet1_1", "model.in_chans=3"]),
        ("dropout", ["model.library=torchvision", "model.name=resnet18", "model.in_chans=3", "model.drop_rate=0.2"]),
    ],
)
def test_the_lines_beside_it_load_it(
    place: Path, monkeypatch: pytest.MonkeyPatch, name: str, overrides: list[str]
) -> None:
    folder, ours = train(place, name, *overrides)
    for out, beside in ((f"{name}.pth", f"{name}.json"), (f"{name}.safetensors", f"{name}.safetensors.json")):
        assert export(monkeypatch, folder, place / out) == 0  # the ending is the format
        about = json.loads((place / beside).read_text())
        assert about["file"] == out and (place / beside).with_suffix(".md").exists()
        theirs = load_as_written(about, place, monkeypatch)
        channels = about["in_chans"]
        expected = ours(image(channels))
        assert (expected < 0).any()
        torch.testing.assert_close(theirs(image(channels)), expected, rtol=1e-5, atol=1e-5)
    assert json.loads((place / f"{name}.json").read_text())["file"] == f"{name}.pth"  # still
    assert export(monkeypatch, folder, place / f"{name}.safetensors") == 2


def test_another_head_is_refused_as_plain_and_written_with_our_names(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, ours = train(place, "mlp", "model.head.kind=mlp", "model.head.hidden=[8]", "model.head.metadata=[age]")
    assert export(monkeypatch, folder, place / "mlp.pth") == 2
    assert "mlp with age" in (said := capsys.readouterr().err) and "--format safetensors" in said
    assert not (place / "mlp.pth").exists()
    assert export(monkeypatch, folder, place / "mlp.safetensors", "--format", "safetensors") == 0
    about = json.loads((place / "mlp.json").read_text())
    assert "Not measured" in (place / "mlp.md").read_text() and set(about["temperatures"].values()) == {None}
    theirs, metadata = load_as_written(about, place, monkeypatch), torch.tensor([[0.4, 1.0], [0.0, 0.0]])
    torch.testing.assert_close(theirs(image(1), metadata), ours(image(1), metadata))


def test_mistakes(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(monkeypatch, place / "none", place / "x.pth") == 2
    assert "is not a checkpoint" in capsys.readouterr().err
    assert export(monkeypatch, place / "none", place / "nowhere" / "x.pth") == 2
    assert "nowhere is not there" in capsys.readouterr().err
    assert export(monkeypatch, place / "none", place / "x.json") == 2
    assert "name a file for the model" in capsys.readouterr().err
    (place / "there.md").touch()
    assert export(monkeypatch, place / "none", place / "there.onnx") == 2
    assert "there.md there already: name another file, or add --force" in capsys.readouterr().err
    monkeypatch.setattr("distcxr.models.serialized.find_spec", lambda name: None if name == "onnxscript" else name)
    assert export(monkeypatch, place / "none", place / "x.onnx") == 2
    assert "ONNX needs onnxscript, not installed here: pip install 'distcxr[onnx]'" in capsys.readouterr().err
