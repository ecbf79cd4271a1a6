"""Weights load whole or not at all, from a local file or from where ImageNet's lie. Never from the network."""

import logging
import pickle
import socket
import time
from pathlib import Path
from typing import Any
from urllib.error import URLError

import networks
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from distcxr.models import weights as weights_module
from distcxr.models.factory import build_model
from distcxr.models.weights import WeightsUnavailable, remap_densenet_keys


def _save(model: nn.Module, path: Path, **changes: Tensor | None) -> Path:
    """Its weights as a safetensors file; `key=None` leaves a tensor out."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for key, value in changes.items():
        if value is None:
            del state[key]
        else:
            state[key] = value
    save_file(state, path)
    return path


def _same(a: dict[str, Tensor], b: dict[str, Tensor], *, but: tuple[str, ...] = ()) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a if key not in but)


# A local safetensors file


def test_a_file_of_the_same_network_loads_whole(tmp_path: Path) -> None:
    source = networks.build()
    nn.init.ones_(source.fc.bias)  # type: ignore[union-attr, arg-type]
    path = _save(source, tmp_path / "w.safetensors")
    torch.manual_seed(9)
    model = build_model("resnet18", library="torchvision", num_classes=14, weights=str(path), drop_rate=0.1)
    assert _same(model.state_dict(), source.state_dict())


@pytest.mark.parametrize("head", ["of another shape", "absent", "half there"])
def test_another_head_stays_new_with_a_log_line(head: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = networks.build(num_classes=1000 if head == "of another shape" else 14)
    nn.init.ones_(source.fc.bias)  # type: ignore[union-attr, arg-type]
    left_out = {"absent": {"fc.weight": None, "fc.bias": None}, "half there": {"fc.weight": None}}.get(head, {})
    path = _save(source, tmp_path / "w.safetensors", **left_out)
    with caplog.at_level(logging.INFO, logger="distcxr"):
        model = networks.build(weights=str(path))
    assert _same(source.state_dict(), model.state_dict(), but=("fc.weight", "fc.bias"))
    assert model.fc.weight.shape == (14, 512)  # type: ignore[union-attr]
    assert not model.fc.bias.any()  # type: ignore[union-attr, operator]
    assert "the head is new" in caplog.text and str(path) in caplog.text


def test_three_channels_in_the_file_are_summed_for_one(tmp_path: Path) -> None:
    for name, library in (("resnet18", "torchvision"), ("resnet10t", "timm")):
        source = networks.build(name, library)
        path = _save(source, tmp_path / f"{name}.safetensors")
        torch.manual_seed(9)
        grey = build_model(name, library=library, num_classes=14, in_chans=1, weights=str(path))  # type: ignore[arg-type]
        images = networks.grey()
        torch.testing.assert_close(
            networks.forward(grey, images), networks.forward(source, images.expand(-1, 3, -1, -1)), rtol=0, atol=1e-4
        )


def test_a_relative_path_starts_at_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = networks.build("test_vit", "timm")
    _save(source, tmp_path / "w.safetensors")
    monkeypatch.chdir(tmp_path)
    assert _same(networks.build("test_vit", "timm", weights="w.safetensors").state_dict(), source.state_dict())


def test_a_file_that_does_not_fit_is_an_error_with_counts_and_names(tmp_path: Path) -> None:
    source = networks.build()
    strange: dict[str, Any] = {
        "conv1.weight": None,
        "bn1.weight": None,
        "extra.weight": torch.ones(1),
        "layer1.0.conv1.weight": torch.ones(2, 2),
    }
    with pytest.raises(ValueError) as caught:
        networks.build(weights=str(_save(source, tmp_path / "w.safetensors", **strange)))
    message = str(caught.value)
    assert "w.safetensors does not fit" in message
    assert "2 missing from the file: conv1.weight, bn1.weight" in message
    assert "1 not in the model: extra.weight" in message
    assert "1 of another shape: layer1.0.conv1.weight [2, 2] (model: [64, 64, 3, 3])" in message


def test_a_file_of_another_network_changes_nothing(tmp_path: Path) -> None:
    path = _save(networks.build("mobilenet_v3_small"), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"\d+ missing from the file: conv1\.weight, .*\.\.\.; \d+ not in the model"):
        networks.build(weights=str(path))


def test_one_batch_counter_too_few_is_an_error_but_none_is_an_old_file(tmp_path: Path) -> None:
    source = networks.build()
    counters = [key for key in source.state_dict() if key.endswith("num_batches_tracked")]
    old = _save(source, tmp_path / "old.safetensors", **dict.fromkeys(counters))
    assert _same(networks.build(weights=str(old)).state_dict(), source.state_dict())
    with pytest.raises(ValueError, match=r"1 missing from the file: bn1\.num_batches_tracked"):
        networks.build(weights=str(_save(source, tmp_path / "holed.safetensors", **{counters[0]: None})))


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(_save(networks.build(), tmp_path / "w.safetensors").read_bytes()[:5000])
    (tmp_path / "w.pth").write_bytes(b"")
    for file, reason in (
        ("cut.safetensors", "not a whole safetensors file"),
        ("absent.safetensors", "no such file"),
        ("w.pth", "neither a safetensors nor a PyTorch file"),
    ):
        with pytest.raises(ValueError, match=reason) as caught:
            networks.build(weights=str(tmp_path / file))
        assert file in str(caught.value)


# Old DenseNet files


def _old_name(key: str) -> str:
    for part in ("norm1", "norm2", "conv1", "conv2"):
        key = key.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.") if "denselayer" in key else key
    return key


def test_old_densenet_names_are_mapped_and_others_left_alone() -> None:
    keys = {
        "features.denseblock1.denselayer12.norm.1.running_mean": "features.denseblock1.denselayer12.norm1.running_mean",
        "features.denseblock4.denselayer1.conv.2.weight": "features.denseblock4.denselayer1.conv2.weight",
        "module.features.denseblock1.denselayer1.norm.2.bias": "module.features.denseblock1.denselayer1.norm2.bias",
        "features.denseblock1.denselayer1.norm1.weight": "features.denseblock1.denselayer1.norm1.weight",
        "features.conv0.weight": "features.conv0.weight",
        "layers.norm.1.weight": "layers.norm.1.weight",
        "classifier.weight": "classifier.weight",
    }
    mapped = remap_densenet_keys({key: torch.tensor(float(place)) for place, key in enumerate(keys)})
    assert list(mapped) == list(keys.values())
    assert [value.item() for value in mapped.values()] == list(range(len(keys)))


def test_an_old_densenet_file_loads_whole(tmp_path: Path) -> None:
    source = networks.build("densenet121")
    state = {_old_name(key): value for key, value in source.state_dict().items() if "num_batches" not in key}
    assert sum("norm.1" in key for key in state) == 58 * 4
    save_file(state, tmp_path / "old.safetensors")
    torch.manual_seed(9)
    weights = str(tmp_path / "old.safetensors")
    model = build_model("densenet121", library="torchvision", num_classes=14, weights=weights)
    assert _same(model.state_dict(), source.state_dict())


# ImageNet weights


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch.hub and Hugging Face cache, and no network at all."""
    import huggingface_hub

    def refuse_download(*_: object, **__: object) -> None:
        assert socket.getdefaulttimeout(), "a download without a time limit"
        raise URLError("Name or service not known")

    def refuse_probe(*_: object, timeout: float) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse_download)
    monkeypatch.setattr(weights_module, "urlopen", refuse_probe)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "huggingface"))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_imagenet_without_a_network_names_the_file_to_put_where(hub: Path) -> None:
    before = socket.getdefaulttimeout()
    with pytest.raises(WeightsUnavailable) as caught:
        networks.build("densenet121", weights="imagenet")
    message = str(caught.value)
    assert "https://download.pytorch.org/models/densenet121-a639ec97.pth" in message
    assert str(hub / "densenet121-a639ec97.pth") in message
    assert "model.weights=PATH" in message and "model.weights=none" in message
    assert socket.getdefaulttimeout() == before


def test_a_torchvision_file_put_by_hand_is_read(hub: Path) -> None:
    source = networks.build("resnet18", num_classes=1000)
    for in_chans in (3, 1):
        torch.save(source.state_dict(), hub / "resnet18-f37072fd.pth", _use_new_zipfile_serialization=in_chans == 1)
        model = networks.build(weights="imagenet", in_chans=in_chans)
        expected = source.state_dict()
        if in_chans == 1:
            expected["conv1.weight"] = expected["conv1.weight"].sum(dim=1, keepdim=True)
        assert _same(expected, model.state_dict(), but=("fc.weight", "fc.bias"))
        assert model.fc.weight.shape == (14, 512)  # type: ignore[union-attr]


class _Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harmed"),))


def test_a_torchvision_file_is_never_unpickled(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": _Harm()}, hub / "resnet18-f37072fd.pth")
    with pytest.raises(WeightsUnavailable, match=r"resnet18-f37072fd\.pth is damaged"):
        networks.build(weights="imagenet")
    assert not (tmp_path / "harmed").exists()
    pickle.loads(pickle.dumps(_Harm()))
    assert (tmp_path / "harmed").exists(), "the file would have done harm"


def test_a_cut_torchvision_file_is_named(hub: Path) -> None:
    torch.save(networks.build(num_classes=1000).state_dict(), hub / "whole.pth")
    (hub / "resnet18-f37072fd.pth").write_bytes((hub / "whole.pth").read_bytes()[:100_000])
    with pytest.raises(WeightsUnavailable, match=r"resnet18-f37072fd\.pth is damaged.*delete it"):
        networks.build(weights="imagenet")


def test_timm_without_a_network_gives_up_at_once_with_the_remedy(hub: Path) -> None:
    start = time.monotonic()
    with pytest.raises(WeightsUnavailable) as caught:
        networks.build("resnet10t", "timm", weights="imagenet")
    assert time.monotonic() - start < 10, "the hub's client would have retried for 46 s"
    message = str(caught.value)
    assert "https://huggingface.co/timm/resnet10t.c3_in1k/resolve/main/model.safetensors" in message
    assert str(hub / "resnet10t.c3_in1k.safetensors") in message
    assert "model.weights=PATH" in message and "model.weights=none" in message


@pytest.mark.parametrize("in_chans", [3, 1])
@pytest.mark.parametrize("place", ["torch.hub", "Hugging Face"])
def test_timm_weights_are_read_where_they_lie(place: str, in_chans: int, hub: Path) -> None:
    source = networks.build("test_resnet", "timm", num_classes=1000)
    if place == "torch.hub":
        _save(source, hub / "test_resnet.r160_in1k.safetensors")
    else:
        repo = hub.parents[1] / "huggingface" / "models--timm--test_resnet.r160_in1k"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text("0" * 40)
        (repo / "snapshots" / ("0" * 40)).mkdir(parents=True)
        _save(source, repo / "snapshots" / ("0" * 40) / "model.safetensors")
    model = networks.build("test_resnet", "timm", weights="imagenet", in_chans=in_chans)
    expected = source.state_dict()
    if in_chans == 1:
        expected["conv1.0.weight"] = expected["conv1.0.weight"].sum(dim=1, keepdim=True)
    assert _same(expected, model.state_dict(), but=("fc.weight", "fc.bias"))
    assert networks.forward(model, networks.grey().expand(-1, in_chans, -1, -1)).shape == (2, 14)


def test_a_timm_file_put_by_hand_has_to_be_whole(hub: Path) -> None:
    source = networks.build("test_resnet", "timm", num_classes=1000)
    _save(source, hub / "test_resnet.r160_in1k.safetensors", **{"layer1.0.conv1.weight": None})
    with pytest.raises(ValueError, match=r"(?s)does not fit.*layer1\.0\.conv1\.weight"):
        networks.build("test_resnet", "timm", weights="imagenet")


def test_timm_models_without_a_safetensors_file_are_refused(hub: Path) -> None:
    with pytest.raises(ValueError, match="no safetensors file for legacy_seresnet18"):
        networks.build("legacy_seresnet18", "timm", weights="imagenet")
