"""`distcxr export` as ONNX and by torch.export: what `predict` gives, from a file that needs nothing of ours."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import tiny
import torch
import yaml
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

import distcxr
from distcxr.cli import main
from distcxr.data.augment import identity_parameters
from distcxr.data.pixels.decode import decode_grey
from distcxr.data.pixels.resize import resize_grey
from distcxr.engine.checkpoint import open_checkpoint
from distcxr.engine.inference import open_member
from distcxr.engine.portable import Portable, portable
from distcxr.engine.saving import save_best
from distcxr.losses import binary_logits
from distcxr.models import serialized
from distcxr.runfolder.layout import last_folders, step_of
from distcxr.runfolder.predictions import read_predictions

ROOT = Path(__file__).parents[2]


def export(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["distcxr", "export", *map(str, words)])
    return main()


def test_onnx_gives_what_the_run_gives_and_the_page_of_the_docs_runs(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run is bfloat16, its images have 64 pixels and the network sees 32."""
    out = tmp_path / "model.onnx"
    assert export(monkeypatch, finished, out) == 0
    about, card = json.loads(out.with_suffix(".json").read_text()), out.with_suffix(".md").read_text()
    check, printed = about["check"], capsys.readouterr().out
    assert check["images"] == 16 and check["source"] == "of the run's test split"
    assert 0 <= check["largest_difference"]["logit"] < 1e-5 < check["own_precision"]["logit"] < 0.05
    assert 0 < check["pillow_resize"] < 0.05
    difference = f"{check['largest_difference']['logit']:.2g} in a logit"
    assert difference in printed and difference in card

    name = read_predictions(finished / "predictions_test.csv").files[0]
    file = finished.parent / "phantom" / "images" / name
    with pytest.warns(UserWarning, match="no temperature"):
        predictor = distcxr.load(finished, device="cpu")
    expected = predictor.predict(file)
    Image.open(file).save(tmp_path / "chest.png")
    monkeypatch.chdir(tmp_path)
    lines = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)
    assert lines is not None
    for code in (lines[1], "\n".join(about["load"])):
        names: dict[str, Any] = {}
        exec(code, names)
        np.testing.assert_allclose(names["probabilities"][0], expected["probability"], atol=0.05)
    assert len(capsys.readouterr().out.splitlines()) == 2 * len(predictor.findings)
    thresholds = predictor.thresholds["youden"].dropna()
    assert len(thresholds) and names["about"]["thresholds"]["youden"] == about["thresholds"]["youden"]
    assert all(about["thresholds"]["youden"][finding] == value for finding, value in thresholds.items())

    _, front, text = card.split("---\n", 2)
    metrics = json.loads((finished / "metrics_test.json").read_text())
    (figure, *_) = huggingface_hub.ModelCard(card).data.eval_results
    assert figure.metric_type == "roc_auc" and figure.metric_value == round(metrics["macro"]["auroc"], 4)
    assert "not-for-clinical-use" in yaml.safe_load(front)["tags"]
    for title in ("Results", "Limits", "Use", "Check", "Findings", "Thresholds", "Calibration", "Subgroups", "Data"):
        assert f"\n## {title}\n" in text
    assert about["hashes"]["test"] in text and "not for clinical use" in text and "Not measured" not in text
    assert str(finished.parent) not in card and name not in card
    assert b"portable.py" not in out.read_bytes()


def test_the_mean_of_runs_is_one_file(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other run has older weights, and validation's scores with them."""
    other, out = tmp_path / "other", tmp_path / "mean.pt2"
    best = open_checkpoint(finished).step
    older = next(folder for folder in last_folders(finished) if step_of(folder) != best)
    shutil.copytree(finished, other, ignore=shutil.ignore_patterns("checkpoints", "operating.json", "tensorboard"))
    shutil.copytree(older, other / "checkpoints" / "best")
    figures = json.loads((other / "metrics_val.json").read_text())
    (other / "metrics_val.json").write_text(json.dumps(figures | {"step": step_of(older)}))
    assert export(monkeypatch, finished, other, out) == 0
    assert "the mean" not in capsys.readouterr().err
    about, card = json.loads(out.with_suffix(".json").read_text()), out.with_suffix(".md").read_text()
    assert [member["step"] for member in about["members"]] == [best, step_of(older)] and "step" not in about
    assert f"weights of step {best}\n- `test_resnet` (timm), weights of step {step_of(older)}" in card
    assert "run 1:" in card and "run 2:" in card and "Not measured" in card

    images = sorted((finished.parent / "phantom" / "images").iterdir())[:4]
    with pytest.warns(UserWarning, match="no temperature"):
        predictor = distcxr.load(finished, other, device="cpu")
    table = predictor.predict(images)
    grey_N1SS = np.stack([resize_grey(decode_grey(image.read_bytes()), about["image_size"]) for image in images])[
        :, None
    ]
    probs_NC, logits_NC = serialized.run_torch_export(out)({"image": grey_N1SS})
    np.testing.assert_allclose(logits_NC.ravel(), table["logit"], atol=0.02)  # bfloat16
    np.testing.assert_allclose(probs_NC.ravel(), table["probability"], atol=0.02)
    assert len(set(about["temperatures"].values())) > 1, "those of the mean are inside"
    assert about["check"]["largest_difference"]["probability"] < 1e-5
    thresholds = predictor.thresholds["youden"].dropna()
    assert {name: about["thresholds"]["youden"][name] for name in thresholds.index} == thresholds.to_dict()

    for words, problem in (
        ((finished, out), "named twice"),
        ((other, tmp_path / "w.pth"), "weights of one run, not of 2"),
    ):
        assert export(monkeypatch, finished, *words, "--force") == 2
        assert problem in capsys.readouterr().err
    member = open_member(open_checkpoint(finished), torch.device("cpu"), [], "no")
    larger = member.recipe.model_copy(update={"data": member.recipe.data.model_copy(update={"image_size": 64})})
    with pytest.raises(ValueError, match=r"are \(32, \[\]\) and \(64, \[\]\): one file has one input"):
        portable([member, replace(member, recipe=larger)], [1.0])


def test_views_crops_metadata_and_attention_are_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run without figures, and without its images."""
    tiny.phantom(tmp_path, images=48, size=32)
    run = tiny.build(
        tmp_path, f"output={tmp_path / 'run'}", "model.head.kind=attention", "model.head.metadata=[age,sex]",
        "eval.tta=[flip,zoom]", "augment.center_crop=0.9", "augment.crop=25",
    )  # fmt: skip
    with torch.no_grad():  # a new head's logits are all near 0
        for parameter in run.setup.module.head.parameters():
            parameter.normal_()
    save_best(run)
    run.setup.close()
    (tmp_path / "phantom").rename(tmp_path / "moved")
    out = tmp_path / "model.pt2"
    assert export(monkeypatch, tmp_path / "run", out) == 0
    assert "the run's images are not at hand: " in (printed := capsys.readouterr().out)
    assert "(synthetic)" in printed and "run has no operating.json" in printed
    about = json.loads(out.with_suffix(".json").read_text())
    assert about["check"]["largest_difference"]["logit"] < 1e-4
    assert (
        "metadata, float32 [N, 4]: age in years / 100, cut to 1.2, 1 if the age is known, 1 if sex is M"
        in about["input"]
    )
    assert "not calibrated" in about["output"]
    card = out.with_suffix(".md").read_text()
    assert "Not measured" in card and str(tmp_path) not in card and "Probabilities are not calibrated" in card
    assert b"portable.py" not in out.read_bytes()
    runner = serialized.run_torch_export(out)
    image = np.random.default_rng(0).integers(0, 255, (1, 1, 32, 32)).astype(np.uint8)
    unknown, known = (runner({"image": image, "metadata": np.full((1, 4), at, np.float32)})[1] for at in (0, 1))
    assert np.abs(unknown - known).max() > 0.01

    def shifted(path: Path) -> serialized.Runner:
        return lambda inputs: tuple(one + np.float32(2e-3) for one in runner(inputs))

    monkeypatch.setattr(serialized, "write_torch_export", lambda *given: given[-1].write_bytes(b""))
    monkeypatch.setattr(serialized, "run_torch_export", shifted)
    assert export(monkeypatch, tmp_path / "run", tmp_path / "other.pt2") == 2
    assert "differs from the run on 16 images by up to 0.002 in a logit" in capsys.readouterr().err
    assert not list(tmp_path.glob("*other*"))


def test_classes_that_exclude_each_other_have_the_softmax(finished: Path) -> None:
    member = open_member(open_checkpoint(finished), torch.device("cpu"), (), "no")
    loss = member.recipe.loss.model_copy(update={"name": "cross_entropy"})
    exclusive = replace(member, recipe=member.recipe.model_copy(update={"loss": loss}))
    pixels = torch.randint(0, 255, (3, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    num = len(member.checkpoint.meta["findings"])
    with torch.no_grad():
        probs, logits = Portable(exclusive, [1.0] * num).eval()(pixels)
        own = member.on(torch.device("cpu"))(member.transform(pixels, identity_parameters(3)))
    torch.testing.assert_close(probs, own.softmax(1))
    torch.testing.assert_close(logits, binary_logits("cross_entropy", own))


class Hub:
    """What is asked of huggingface_hub.HfApi."""

    def __init__(self, token: str) -> None:
        assert token == "hf_mine"
        self.done: list[Any] = []
        Hub.last = self

    last: Hub
    refused: Exception | None = None

    def whoami(self) -> dict[str, str]:
        return {"name": "me"}

    def repo_exists(self, repo: str) -> bool:
        return repo == "me/old"

    def list_repo_files(self, repo: str) -> list[str]:
        return ["README.md", "model.pth"]

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> None:
        assert private and exist_ok
        self.done.append(repo)

    def create_commit(self, repo: str, operations: list[Any], commit_message: str) -> Any:
        if Hub.refused:
            raise Hub.refused
        self.done.append({one.path_in_repo: Path(one.path_or_fileobj).read_bytes() for one in operations})
        return SimpleNamespace(commit_url=f"https://hub/{repo}/commit/1")


def test_push_takes_a_token_a_network_and_a_free_name(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.pth"

    def push(repo: str, *more: str) -> str:
        code = export(monkeypatch, finished, out, "--push", repo, *more)
        found = capsys.readouterr()
        assert code == (2 if found.err else 0)
        return found.err or found.out

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "takes a token of yours that may write: run `hf auth login`, or set HF_TOKEN" in push("me/new")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_mine")
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)

    def unreachable(_: str) -> None:
        raise OSError("no route")

    monkeypatch.setattr("distcxr.models.hub.probe", unreachable)
    assert "--push me/new: the hub can't be reached (OSError: no route)" in push("me/new")
    monkeypatch.setattr("distcxr.models.hub.probe", lambda _: None)
    assert "me/old holds README.md, model.pth already" in push("old")
    assert not out.exists()

    assert "uploaded: https://hub/me/new/commit/1" in push("new")
    repo, files = Hub.last.done
    assert repo == "me/new" and set(files) == {"model.pth", "model.json", "README.md"}
    assert files["README.md"] == out.with_suffix(".md").read_bytes() and files["model.pth"] == out.read_bytes()
    assert "uploaded" in push("me/old", "--force")
    answer: Any = SimpleNamespace(status_code=403, headers={}, request=None)
    Hub.refused = HfHubHTTPError("403 Forbidden: you may not", response=answer)
    try:
        assert "403 Forbidden: you may not); does the token have the right to write" in (
            refused := push("new", "--force")
        )
    finally:
        Hub.refused = None
    assert "hf_mine" not in refused
