"""What `distcxr env` says of this machine and of others."""

from __future__ import annotations

import configparser
import json
import sys
from pathlib import Path

import pytest
import torch

from distcxr.cli import main
from distcxr.jobs import machine

ROOT = Path(__file__).parents[2]
NOT_OF_USERS = {"dev", "docs"}


def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    monkeypatch.setattr(sys, "argv", ["distcxr", "env", *options])
    assert main() == 0
    return capsys.readouterr().out


def test_it_names_versions_and_settings_and_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "accelerate" / "default_config.yaml"
    config.parent.mkdir()
    config.touch()
    for name, value in {"HF_HOME": str(tmp_path), "NCCL_DEBUG": "INFO", "HF_TOKEN": "hidden-token"}.items():
        monkeypatch.setenv(name, value)
    sections = json.loads(shown(monkeypatch, capsys, "--json"))
    assert sections["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert sections["environment"]["NCCL_DEBUG"] == "INFO"
    assert "`distcxr train` does not read it" in sections["environment"][str(config)]
    text = shown(monkeypatch, capsys, "--json", str(tmp_path / "env.json"))  # as other verbs' --json FILE
    assert json.loads((tmp_path / "env.json").read_text())["packages"] == sections["packages"]
    assert "hidden-token" not in text and f"{machine.__file__.removesuffix('/jobs/machine.py')}\n" in text


def test_what_is_missing_comes_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.3.0", "wandb": "", "nvidia-dali-cuda130": "", "nvidia-dali-cuda120": "2.1.0", "timm": ""}
    monkeypatch.setattr(machine, "version", lambda name: versions.get(name) or absent(name))
    missing = machine.describe_machine()["missing"]
    assert missing["torch"] == "2.3.0 is not supported: pip install 'torch>=2.11'"
    assert missing["wandb"] == "not installed, for logging.trackers: pip install 'distcxr[trackers]'"
    assert missing["timm"].startswith("not installed, pip install 'timm")
    assert "nvidia-dali-cuda130" not in missing and "pytest" not in missing


def absent(name: str) -> str:
    if name.startswith("nvidia-dali") or name in ("wandb", "timm"):
        raise machine.PackageNotFoundError(name)
    return "999" if name == "packaging" else "1.0"


@pytest.mark.parametrize(
    ("cuda", "program", "visible", "reason"),
    [
        (None, "/bin/nvidia-smi", "0", "a build for CPUs"),
        ("13.0", None, "0", "no NVIDIA driver"),
        ("13.0", "/bin/nvidia-smi", "", "CUDA_VISIBLE_DEVICES is empty"),
        ("13.0", "/bin/nvidia-smi", "0", "its CUDA 13.0 may be newer than the driver"),
    ],
)
def test_why_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, program: str | None, visible: str, reason: str
) -> None:
    monkeypatch.setattr(machine.shutil, "which", lambda _: program)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert reason in machine._why_no_gpu(cuda)


def test_it_works_where_torch_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    sections = machine.describe_machine()
    assert "python -c 'import torch'" in sections["missing"]["torch"] and "CUDA of PyTorch" not in sections["GPUs"]


def test_every_extra_says_what_it_is_for() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert set(config["options.extras_require"]) - NOT_OF_USERS == set(machine.EXTRAS)
