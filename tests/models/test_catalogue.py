"""`distcxr models`: names that the factory takes, with true counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from distcxr.cli import main
from distcxr.models.catalogue import find_networks
from distcxr.models.factory import build_model
from distcxr.models.foundation import FOUNDATIONS


def test_what_is_listed_can_be_built_and_has_as_many_parameters() -> None:
    found = {(one.library, one.name): one for one in find_networks("*net18", most_counted=20)}
    assert ("torchvision", "resnet18") in found and ("timm", "resnet18") in found
    for library, name in (("torchvision", "resnet18"), ("timm", "resnet18")):
        with torch.device("meta"):
            network = build_model(name, library=library, num_classes=1000)  # type: ignore[arg-type]
        assert found[library, name].num_parameters == sum(one.numel() for one in network.parameters())
        assert found[library, name].imagenet and found[library, name].side == 224
    assert find_networks("resnet18")[-1].num_parameters is None  # many, or not asked for
    assert {one.library for one in find_networks("*inception_v3") if one.name == "inception_v3"} == {"timm"}  # refused
    assert {name for one in find_networks() for name in one.xray} == set(FOUNDATIONS)


class Calls(TorchFunctionMode):
    """Notes what is called of PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


def test_nothing_is_drawn_to_count_parameters() -> None:
    with Calls() as calls:
        find_networks("test_vit", most_counted=20)
    assert "empty" in calls.names and not {"uniform_", "normal_", "kaiming_uniform_", "zero_"} & calls.names


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["distcxr", "models", "densenet121"])
    assert main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:6] == ["densenet121", "torchvision", "7,978,856", "32", "224", "IMAGENET1K_V1"]
    xray = {line.split()[0]: line for line in lines if line.startswith(("txrv_", "chexnet_"))}
    assert len(xray) == 7 and xray["txrv_densenet121_chex"].split()[-2:] == ["Apache-2.0", "none"]
    assert "yes, with their labels" in xray["txrv_densenet121_nih"] and "official test list" in lines[-1]
    monkeypatch.setattr("sys.argv", ["distcxr", "models", "densnet121"])
    assert main() == 2
    assert (
        "no network of torchvision or timm has a name like 'densnet121' (nearest: densenet121"
        in capsys.readouterr().err
    )
