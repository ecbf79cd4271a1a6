"""Weights in the layouts that people have: the imported network's logits are the source's."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import networks
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from distcxr.models.heads import Headed
from distcxr.models.importers import NeedsTrust, read_weights
from distcxr.recipe.model import Head

FINDINGS = ("Mass", "Edema", "Hernia")


def colour(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def wide(model: nn.Module) -> nn.Module:
    """Heads drawn wide, so that a head that was not loaded shows."""
    for part in model.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.3)
            if part.bias is not None:
                nn.init.normal_(part.bias)
    return model


def logits(model: nn.Module, *inputs: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(*inputs)
    return found


def source(name: str = "test_resnet", library: str = "timm", **options: Any) -> nn.Module:
    return wide(networks.build(name, library, **({"num_classes": 3} | options)))


def imported(path: Path, name: str = "test_resnet", library: str = "timm", **options: Any) -> nn.Module:
    torch.manual_seed(9)
    return networks.build(name, library, weights=str(path), **({"num_classes": 3} | options))


class ChexNet(nn.Module):
    """As arnoweng's and zoogzog's scripts define it."""

    def __init__(self, densenet121: nn.Module) -> None:
        super().__init__()
        self.densenet121: Any = densenet121
        self.densenet121.classifier = nn.Sequential(densenet121.classifier, nn.Sigmoid())  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        return self.densenet121(images)  # type: ignore[no-any-return]


def test_arnoweng_s_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = nn.DataParallel(ChexNet(source("densenet121", "torchvision", num_classes=14)))
    state = OrderedDict()
    for key, value in theirs.state_dict().items():
        for part in ("norm1", "norm2", "conv1", "conv2"):
            key = key.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.") if "denselayer" in key else key
        if "num_batches_tracked" not in key:  # PyTorch 0.3 had none
            state[key] = value
    assert "module.densenet121.features.denseblock1.denselayer1.norm.1.weight" in state
    assert "module.densenet121.classifier.0.weight" in state
    optimizer = torch.optim.Adam(theirs.parameters())
    checkpoint = {"epoch": 7, "state_dict": state, "best_loss": 0.15, "optimizer": optimizer.state_dict()}
    torch.save(checkpoint, tmp_path / "model.pth.tar", _use_new_zipfile_serialization=False)
    ours = imported(tmp_path / "model.pth.tar", "densenet121", "torchvision", num_classes=14)
    assert torch.equal(logits(ours, colour()).sigmoid(), logits(theirs.module, colour()))
    (message,) = [record.message for record in caplog.records if record.levelname == "WARNING"]  # 14 of which order?
    assert "does not name the 14 findings" in message and "model.new_head=true" in message


def xrayvision() -> tuple[nn.Module, dict[str, Tensor]]:
    """A DenseNet for one channel and 18 findings, and its state dict with the thresholds that the package keeps."""
    theirs = source("densenet121", "torchvision", num_classes=18, in_chans=1)
    return theirs, theirs.state_dict() | {"op_threshs": torch.full((18,), 0.1)}


def test_torchxrayvision_s_weights_see_its_pixels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs, state = xrayvision()
    torch.save(state, tmp_path / "xrv.pt")
    grey = torch.randint(0, 256, (2, 1, 64, 64), generator=torch.Generator().manual_seed(1)).float() / 255
    expected = logits(theirs, (2 * grey - 1) * 1024)
    half = (grey - 0.5) / 0.5
    with caplog.at_level(logging.INFO, logger="distcxr"):
        ours = imported(tmp_path / "xrv.pt", "densenet121", "torchvision", num_classes=18, in_chans=1)
    assert "take augment.normalize=half" in caplog.text
    assert torch.equal(logits(ours, half), expected), "a power of two changes no bit"
    coloured = imported(tmp_path / "xrv.pt", "densenet121", "torchvision", num_classes=18)
    torch.testing.assert_close(logits(coloured, half.expand(-1, 3, -1, -1)), expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(
        ValueError, match=r"its head is for 18 findings, and data\.findings are 3: model\.new_head=true"
    ):
        imported(tmp_path / "xrv.pt", "densenet121", "torchvision", in_chans=1)
    assert not imported(
        tmp_path / "xrv.pt", "densenet121", "torchvision", in_chans=1, new_head=True
    ).classifier.bias.any()  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "backbone.", "net.", "module.model.", "_orig_mod."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_names_behind_a_prefix(prefix: str, suffix: str, tmp_path: Path) -> None:
    theirs = source()
    state = {f"{prefix}{key}": value for key, value in theirs.state_dict().items()}
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    assert torch.equal(logits(imported(path), colour()), logits(theirs, colour()))


@pytest.mark.parametrize(
    "around",
    [
        lambda state: {"state_dict": {f"model.{key}": value for key, value in state.items()},
                       "pytorch-lightning_version": "2.5.0", "hyper_parameters": {"lr": 1e-4}, "epoch": 3},
        lambda state: {"epoch": 3, "arch": "test_resnet", "state_dict": state, "metric": 0.8},
        lambda state: {"state_dict": {key: torch.zeros_like(value) for key, value in state.items()},
                       "state_dict_ema": state, "arch": "test_resnet"},
        lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": []}},
        lambda state: {"epoch": 3, "model_state_dict": state, "loss": torch.tensor(0.1)},
    ],
    ids=["lightning", "timm", "timm with a moving average", "model", "model_state_dict"],
)  # fmt: skip
def test_state_dicts_in_a_checkpoint(around: Any, tmp_path: Path) -> None:
    theirs = source()
    torch.save(around(theirs.state_dict()), tmp_path / "last.ckpt")
    assert torch.equal(logits(imported(tmp_path / "last.ckpt"), colour()), logits(theirs, colour()))


def test_one_channel_in_the_file_is_shared_out_over_three(tmp_path: Path) -> None:
    theirs = source(in_chans=1)
    torch.save(theirs.state_dict(), tmp_path / "w.pt")
    grey = colour()[:, :1]
    expected = logits(theirs, grey)
    torch.testing.assert_close(logits(imported(tmp_path / "w.pt"), grey.expand(-1, 3, -1, -1)), expected)


def test_parts_of_no_network_are_listed(tmp_path: Path) -> None:
    state = source().state_dict()
    torch.save({f"model.{key}": value for key, value in state.items()} | {"criterion.pos_weight": torch.ones(3)},
               tmp_path / "w.pt")  # fmt: skip
    with pytest.raises(ValueError, match=r"w\.pt does not fit.*1 not in the model: criterion\.pos_weight"):
        imported(tmp_path / "w.pt")


# Heads


def run_folder(folder: Path, model: nn.Module, findings: tuple[str, ...] = FINDINGS) -> Path:
    """A run folder of distcxr with this network as its best."""
    best = folder / "checkpoints" / "best"
    best.mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, best / "model.safetensors")
    recipe = {"model": {"name": "test_resnet"}, "augment": {"normalize": "half"}}
    (best / "checkpoint.json").write_text(json.dumps({"findings": findings, "recipe": recipe}))
    return folder


def test_a_run_folder_its_best_and_the_file_in_it_are_the_same(tmp_path: Path) -> None:
    theirs = source()
    run = run_folder(tmp_path / "run", theirs)
    for path in (run, run / "checkpoints" / "best", run / "checkpoints" / "best" / "model.safetensors"):
        assert torch.equal(logits(imported(path, findings=FINDINGS), colour()), logits(theirs, colour()))


def test_a_best_that_a_kill_has_moved_aside_is_found(tmp_path: Path) -> None:
    theirs = source()
    run = run_folder(tmp_path / "run", theirs)
    (run / "checkpoints" / "best").rename(run / "checkpoints" / ".best.old")
    assert torch.equal(logits(imported(run), colour()), logits(theirs, colour()))


def test_the_same_findings_in_another_order_stay_what_they_were(tmp_path: Path) -> None:
    for kind in ("linear", "mlp", "attention"):
        head = Head(kind=kind, hidden=[3])  # as many hidden units as findings: they keep their places
        theirs = source(head=head, image_size=64)
        if kind == "mlp":
            nn.init.constant_(theirs.get_parameter("head.hidden.0.bias"), 5.0)  # no unit is silent
        run = run_folder(tmp_path / kind, theirs)
        turned = imported(run, head=head, image_size=64, findings=("Hernia", "Mass", "Edema"))
        assert torch.equal(logits(turned, colour()), logits(theirs, colour())[:, [2, 0, 1]]), kind


def test_a_head_for_other_findings_is_an_error_unless_a_new_one_is_asked_for(tmp_path: Path) -> None:
    theirs = source()
    run = run_folder(tmp_path / "run", theirs)
    for findings in (("Cardiomegaly",), ("Mass", "Edema", "Nodule")):
        options = {"num_classes": len(findings), "findings": findings}
        with pytest.raises(ValueError, match=r"3 findings \(Mass, Edema, Hernia\).*are \d \(.*model\.new_head=true"):
            imported(run, **options)
        new = imported(run, new_head=True, **options)
        assert new.fc.weight.shape[0] == len(findings) and not new.fc.bias.any()  # type: ignore[union-attr, index, operator]
        assert torch.equal(new.conv1[0].weight, theirs.conv1[0].weight)  # type: ignore[index]


def test_imagenet_s_head_gives_way_without_being_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for classes in (1000, 21841):
        torch.save(source(num_classes=classes).state_dict(), tmp_path / "w.pt")
        with caplog.at_level(logging.INFO, logger="distcxr"):
            ours = imported(tmp_path / "w.pt")
        assert ours.fc.weight.shape[0] == 3 and f"weight [{classes}, " in caplog.text  # type: ignore[union-attr, index]


def test_a_head_of_another_kind_is_an_error_unless_a_new_one_is_asked_for(tmp_path: Path) -> None:
    plain = run_folder(tmp_path / "linear", source())
    mlp = Head(kind="mlp", hidden=[8])
    layered = run_folder(tmp_path / "mlp", source(head=mlp))
    with pytest.raises(ValueError, match=r"of another kind \(.*weight.*\) than model.head's \(.*hidden.*new_head=true"):
        imported(plain, head=mlp, findings=FINDINGS)
    with pytest.raises(ValueError, match="of another kind"):
        imported(layered, findings=FINDINGS)
    with pytest.raises(ValueError, match="of another kind"):
        imported(layered, head=Head(kind="mlp", hidden=[9]), findings=FINDINGS)
    first = source().state_dict()["conv1.0.weight"]
    assert torch.equal(imported(plain, head=mlp, new_head=True).get_parameter("backbone.conv1.0.weight"), first)
    assert torch.equal(imported(layered, new_head=True).get_parameter("conv1.0.weight"), first)


@pytest.mark.parametrize("library, name", [("timm", "test_convnext"), ("torchvision", "mobilenet_v3_small")])
def test_heads_of_distcxr_come_back_with_their_metadata(library: str, name: str, tmp_path: Path) -> None:
    """Attention's network was saved without what follows the map: a normalisation, a hidden layer."""
    metadata = torch.tensor([[0.5, 1.0], [0.0, 0.0]])
    for kind in ("linear", "mlp", "attention"):
        options: dict[str, Any] = {"head": Head(kind=kind, metadata=["age"]), "num_metadata": 2, "image_size": 64}  # type: ignore[arg-type]
        theirs = source(name, library, **options)
        ours = imported(run_folder(tmp_path / kind, theirs), name, library, findings=FINDINGS, **options)
        assert isinstance(ours, Headed)
        assert torch.equal(logits(ours, colour(), metadata), logits(theirs, colour(), metadata)), kind


# Files that are refused


class _Harm:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (self.mark.touch, ())


def test_whole_models_and_code_are_refused_with_the_command_to_import_them(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    torch.save({"state_dict": {"a": torch.ones(1)}, "args": _Harm(tmp_path / "harmed")}, tmp_path / "harm.pth")
    for file in ("whole.pt", "harm.pth"):
        stem = Path(file).stem
        with pytest.raises(ValueError, match=rf"model\.weights=.*{file}.*distcxr import .*{stem}\.safetensors --trust"):
            imported(tmp_path / file)
    with pytest.raises(NeedsTrust):
        read_weights(tmp_path / "harm.pth")
    assert not (tmp_path / "harmed").exists()


def test_files_that_hold_no_weights_are_named(tmp_path: Path) -> None:
    whole = source()
    torch.save(whole.state_dict(), tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:3000])
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "none.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "page.pth").write_text("<html>Not found</html>")
    (tmp_path / "folder").mkdir()
    broken = run_folder(tmp_path / "run", whole) / "checkpoints" / "best"
    (broken / "checkpoint.json").write_text("{")
    for file, reason in (
        ("cut.pt", "not a whole PyTorch file"),
        ("none.pt", "no weights in it, but a dict of epoch, lr"),
        ("list.pt", "no weights in it, but a list"),
        ("page.pth", "neither a safetensors nor a PyTorch file"),
        ("folder", "not a checkpoint of distcxr"),
        ("run", "checkpoint.json is damaged"),
        ("gone.pt", "no such file or folder"),
    ):
        with pytest.raises(ValueError, match=reason) as caught:
            imported(tmp_path / file)
        assert f"model.weights={tmp_path / file}" in str(caught.value)
