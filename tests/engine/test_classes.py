"""`loss.name: cross_entropy` through the whole product: what is written are probabilities of a softmax."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from distcxr.data.augment import identity_parameters
from distcxr.engine import testing
from distcxr.engine.evaluate import Outputs, average, evaluate
from distcxr.explain.gradcam import gradcam
from distcxr.losses import binary_logits
from distcxr.metrics.calibration import probabilities
from distcxr.runfolder.predictions import read_predictions

TWO = ("data.findings=[No Finding, Infiltration]", "data.where.findings=[No Finding, Infiltration]")
CLASSES = (*TWO, "loss.name=cross_entropy", "loss.weights=balanced", "data.val_fraction=0.4")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    tiny.phantom(folder, images=160)
    for seed in (0, 1):
        more = ("train.epochs=2", "eval.best_metric=accuracy")
        tiny.train(folder, *CLASSES, f"output={folder / f'run{seed}'}", f"seed={seed}", *more)
    return folder


def metrics(folder: Path) -> Any:
    return json.loads((folder / "metrics_test.json").read_text(), parse_constant=pytest.fail)


def test_probabilities_of_both_classes_sum_to_one(trained: Path) -> None:
    held, found = read_predictions(trained / "run0" / "predictions_test.csv"), metrics(trained / "run0")
    assert held.findings == ["No Finding", "Infiltration"]
    assert np.array_equal(held.logits_NC[:, 0], -held.logits_NC[:, 1])
    assert (held.targets_NC.sum(axis=1) == 1).all() and held.mask_NC.all()

    trained_with = found["trained_with"]["loss"]
    assert (trained_with["name"], trained_with["weights"]) == ("cross_entropy", "balanced")
    healthy, ill = found["findings"].values()
    assert healthy["auroc"] == pytest.approx(ill["auroc"]) and found["macro"]["findings"] == ["Infiltration"]
    right = (held.logits_NC[:, 1] >= 0) == (held.targets_NC[:, 1] == 1)
    assert found["accuracy"] == pytest.approx(right.mean())
    assert ill["operating_points"]["probability_50"]["accuracy"] == pytest.approx(right.mean())
    assert any("the AUROC of one is that of the other" in line for line in found["warnings"])
    assert {entry["finding"] for entry in json.loads((trained / "run0/pictures/pictures.json").read_text())} == {
        "Infiltration"
    }


def test_the_loss_reported_is_the_one_trained_with(trained: Path) -> None:
    run = tiny.build(trained, *CLASSES, f"output={trained / 'again'}")
    scores = evaluate(run.setup, "val")
    images, targets = [], []
    for row in run.setup.splits.val:
        images.append(next(run.setup.reader.read([np.array([row])])).pixels)
        targets.append(int(run.setup.index.targets_NC[row].argmax()))
    run.setup.module.eval()
    with torch.no_grad():
        logits = run.setup.module(run.setup.transform(torch.cat(images), identity_parameters(len(images)))).double()
    assert run.setup.loss.weights_C is not None
    each = torch.nn.functional.cross_entropy(logits, torch.tensor(targets), reduction="none")
    expected = (each * run.setup.loss.weights_C.double()[targets]).mean().item()
    assert scores.loss == pytest.approx(expected, rel=1e-5)
    assert np.allclose(scores.logits_NC[:, 1], (logits[:, 1] - logits[:, 0]).numpy(), atol=1e-5)
    run.setup.close()


def test_the_best_by_accuracy_is_kept_and_logged(trained: Path) -> None:
    state = json.loads((trained / "run0/checkpoints/best/checkpoint.json").read_text())["state"]
    found = json.loads((trained / "run0/metrics_val.json").read_text())
    assert state["best_score"] == found["accuracy"] and state["best_step"] == found["step"]
    log = (trained / "run0/log.txt").read_text()
    assert f"accuracy {found['accuracy']:.4f}, the best accuracy so far" in log and "AUROC: No Finding" in log


def test_accuracy_of_findings_that_may_occur_together_is_refused(trained: Path) -> None:
    with pytest.raises(ValueError, match=r"eval.best_metric=accuracy needs classes that exclude each other"):
        tiny.recipe(trained, "eval.best_metric=accuracy")


def test_an_ensemble_of_classifiers_and_what_is_none(trained: Path) -> None:
    recipe = tiny.recipe(trained, *CLASSES, f"output={trained / 'both'}", "eval.pictures=0")
    testing.score_test_split(recipe, [trained / "run0", trained / "run1"], tiny.runtime(recipe))
    one, two, both = (read_predictions(trained / name / "predictions_test.csv") for name in ("run0", "run1", "both"))
    assert np.allclose(both.logits_NC, (one.logits_NC + two.logits_NC) / 2, atol=1e-5)
    found = metrics(trained / "both")
    assert any("mean of the log probabilities of 2 checkpoints" in line for line in found["warnings"])
    assert [member["trained_with"]["loss"]["name"] for member in found["members"]] == ["cross_entropy"] * 2

    other = tiny.recipe(trained, *TWO, "data.val_fraction=0.4", f"output={trained / 'none'}")
    for checkpoints in ([trained / "run0"], [trained / "run0", trained / "run1"]):
        with pytest.raises(ValueError, match=r"cross_entropy.*bce"):
            testing.score_test_split(other, checkpoints, tiny.runtime(other))


def test_the_mean_of_three_classes_sums_to_one() -> None:
    logits_NC = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double() * 5
    rows = np.arange(3)
    members = [
        Outputs(rows, binary_logits("cross_entropy", part).numpy().astype(np.float32), ())
        for part in logits_NC.chunk(2)
    ]
    mean = average(members, "cross_entropy")
    probs = probabilities(mean.values_NK)
    assert np.allclose(probs.sum(axis=1), 1, atol=1e-6)
    geometric = torch.stack([torch.log_softmax(part, dim=1) for part in logits_NC.chunk(2)]).mean(dim=0).softmax(dim=1)
    assert np.allclose(probs, geometric.numpy(), atol=1e-6)


def test_heat_maps_are_of_what_tells_the_classes_apart() -> None:
    """What speaks for one of two classes speaks against the other, though both logits may rise with it."""
    torch.manual_seed(0)
    pool = (torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), *pool, torch.nn.Linear(4, 2))
    images = torch.randn(2, 1, 16, 16)
    heat = gradcam(network, images, layer="1", explained=partial(binary_logits, "cross_entropy"))
    assert heat.amax((2, 3)).min() == 1 and not (heat[:, 0] * heat[:, 1]).any()
    alone = gradcam(network, images, layer="1", explained=partial(binary_logits, "bce"))
    assert torch.equal(alone, gradcam(network, images, layer="1")) and (alone[:, 0] * alone[:, 1]).any()


def test_images_of_several_classes_are_refused_at_the_start(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    with pytest.raises(ValueError, match=r"images of train .* show none of Mass, Nodule and .* such as 0.*png"):
        tiny.build(tmp_path, "data.findings=[Mass, Nodule]", "loss.name=cross_entropy", f"output={tmp_path / 'run'}")
