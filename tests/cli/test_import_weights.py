"""`distcxr import`: whole pickled models become safetensors, in a process of their own, when the user trusts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from distcxr.cli import main
from distcxr.models.unpickle import import_weights

MODEL = """
import os, torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.register = nn.Conv2d(1, 2, 3), None

class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 1)
    def __reduce__(self):
        return (open, ({harm!r}, 'w'))

torch.manual_seed(0)
model = {model}
torch.save({saved}, {path!r})
torch.save(model.state_dict(), {path!r} + '.state')
"""


def pickled(folder: Path, *, module: str = "somebody", model: str = "Net()", saved: str = "model") -> Path:
    """A file saved by a script whose classes are nowhere to be found when it is read."""
    path, (package, _, inner) = folder / "theirs.pt", module.partition(".")
    home = folder / "theirs"
    (home / package).mkdir(parents=True)
    (home / package / "__init__.py").touch()
    script = home / package / f"{inner or 'net'}.py"
    script.write_text(MODEL.format(harm=str(folder / "harmed"), model=model, saved=saved, path=str(path)))
    env = {**os.environ, "PYTHONPATH": str(home)}
    subprocess.run([sys.executable, "-c", f"import {package}.{script.stem}"], env=env, check=True)
    return path


def test_a_model_of_a_class_that_is_not_installed_gives_its_weights(tmp_path: Path) -> None:
    path = pickled(tmp_path, module="torchxrayvision.models", saved="{'epoch': 3, 'model': model}")
    with pytest.raises(ValueError, match=r"torchxrayvision\.models\.Net.*whatever code is in it.*--trust"):
        import_weights(path, tmp_path / "w.safetensors", trust=False)
    assert not (tmp_path / "w.safetensors").exists()
    assert import_weights(path, tmp_path / "w.safetensors", trust=True) == 2
    theirs = torch.load(f"{path}.state", weights_only=True)
    ours = load_file(tmp_path / "w.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert [file.name for file in tmp_path.glob(".*")] == [], "no half-written file stays"
    with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        assert file.metadata()["layout"] == "torchxrayvision", "known by its class: its pixels are others"


def test_code_runs_only_where_it_is_trusted_and_never_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pickled(tmp_path, model="Noisy()")
    (tmp_path / "harmed").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="--trust"):
        import_weights(path, tmp_path / "w.safetensors", trust=False)
    assert not (tmp_path / "harmed").exists()
    monkeypatch.setattr(torch, "load", lambda *_, **options: _only_weights(options))
    with pytest.raises(ValueError, match=r"could not be unpickled: ValueError: no weights in it, but a TextIOWrapper"):
        import_weights(path, tmp_path / "w.safetensors", trust=True)
    assert (tmp_path / "harmed").exists()


def _only_weights(options: dict[str, Any]) -> None:
    assert options["weights_only"], "unpickled in this process"
    from pickle import UnpicklingError

    raise UnpicklingError("GLOBAL builtins.open")


def test_a_state_dict_needs_no_trust(tmp_path: Path) -> None:
    torch.save({"state_dict": nn.Linear(2, 3).state_dict()}, tmp_path / "w.pth")
    assert import_weights(tmp_path / "w.pth", tmp_path / "w.safetensors", trust=False) == 2


def test_bad_destinations_are_named(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "w.pth")
    for name in ("w.pt", "gone/w.safetensors"):
        with pytest.raises(ValueError, match=r"NAME\.safetensors"):
            import_weights(tmp_path / "w.pth", tmp_path / name, trust=False)


def test_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a.weight": torch.ones(2)}, tmp_path / "w.pth")
    command = ["distcxr", "import", str(tmp_path / "w.pth"), str(tmp_path / "w.safetensors")]
    monkeypatch.setattr(sys, "argv", command)
    assert main() == 0 and f"model.weights={tmp_path / 'w.safetensors'}" in capsys.readouterr().out
