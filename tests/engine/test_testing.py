"""`--test`: which thresholds it takes, and ensembles."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image

import distcxr
from distcxr.data.dataset import open_dataset
from distcxr.engine import testing
from distcxr.engine.checkpoint import CheckpointError, open_checkpoint
from distcxr.engine.evaluate import Outputs, average
from distcxr.engine.final_scores import Weights
from distcxr.runfolder.layout import best_folder
from distcxr.runfolder.manifest import read_meta, write_meta
from distcxr.runfolder.predictions import read_predictions


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of `predict` was asked for."""
    sizes: list[int] = []

    def predict(setup: Any, rows: Any, tta: Any) -> Outputs:
        sizes.append(len(rows))
        return original(setup, rows, tta)

    original = testing.predict
    monkeypatch.setattr(testing, "predict", predict)
    return sizes


@pytest.fixture(scope="session")
def other(finished: Path) -> Path:
    """Another network at another size, trained on the same data."""
    tiny.train(
        finished.parent, f"output={finished.parent / 'other'}", "train.epochs=1", "model.name=test_efficientnet",
        "data.image_size=48", "augment.crop=40", "augment.normalize=dataset", tiny.BF16,
    )  # fmt: skip
    return finished.parent / "other"


def score(finished: Path, checkpoints: list[Path], output: Path | None, *overrides: str) -> Any:
    named = [f"output={output}"] if output else []
    recipe = tiny.recipe(finished.parent, tiny.BF16, *named, *overrides)
    return testing.score_test_split(recipe, checkpoints, tiny.runtime(recipe))


def metrics(folder: Path) -> Any:
    return json.loads((folder / "metrics_test.json").read_text(), parse_constant=pytest.fail)


def test_thresholds_of_the_same_weights_are_taken_up(finished: Path, tmp_path: Path, asked: list[int]) -> None:
    best = finished / "checkpoints" / "best"
    test = score(finished, [best], tmp_path / "same")
    assert asked == [len(test.rows)]
    assert metrics(tmp_path / "same") == metrics(finished)
    assert {"recipe.yaml", "environment.json"} <= {path.name for path in (tmp_path / "same").iterdir()}

    score(finished, [best], tmp_path / "flipped", "eval.tta=[flip]")
    assert len(asked) == 3  # validation was asked again, through the same views
    flipped = metrics(tmp_path / "flipped")
    assert flipped["tta"] == ["flip"] and any("mean of the logits" in line for line in flipped["warnings"])
    assert flipped["operating_points_from"] == "val" and flipped["macro"] != metrics(finished)["macro"]

    shutil.copytree(finished, tmp_path / "run")
    shutil.copy(tmp_path / "flipped" / "operating.json", tmp_path / "run")
    with pytest.warns(UserWarning, match="how common a score is"):  # validation's scores are of other views
        predictor = distcxr.load(tmp_path / "run", device="cpu")
    held = read_predictions(tmp_path / "flipped" / "predictions_test.csv")
    table = predictor.predict(finished.parent / "phantom" / "images" / name for name in held.files)
    assert (table["logit"].to_numpy().reshape(held.logits_NC.shape) == held.logits_NC).all()


@tiny.worlds(3)
def test_ranks_that_do_not_divide_the_global_batch_test(finished: Path, tmp_path: Path, world_size: int) -> None:
    score(finished, [finished], tmp_path / "three", "eval.pictures=0")
    if tiny.on_main(world_size):
        ours, theirs = (read_predictions(folder / "predictions_test.csv") for folder in (tmp_path / "three", finished))
        assert ours.files == theirs.files
        assert np.allclose(ours.logits_NC, theirs.logits_NC, atol=1e-5)


def test_damaged_thresholds_are_chosen_again(
    finished: Path, tmp_path: Path, asked: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "operating.json").write_text('{"step": 3')
    score(finished, [tmp_path / "run"], tmp_path / "again")
    assert len(asked) == 2 and "operating.json can't be read" in caplog.text
    assert metrics(tmp_path / "again") == metrics(finished)
    assert json.loads((tmp_path / "again" / "operating.json").read_text()) == json.loads(
        (finished / "operating.json").read_text()
    )


def test_an_ensemble_of_two_architectures(finished: Path, other: Path, tmp_path: Path) -> None:
    both = score(finished, [finished, other], tmp_path / "both", "eval.pictures=1")
    singles = [read_predictions(run / "predictions_test.csv") for run in (finished, other)]
    mean = np.mean([single.logits_NC.astype(np.float64) for single in singles], axis=0)
    # Not bit for bit: another number of images shares a batch with each.
    assert np.allclose(both.logits_NC, mean, atol=1e-6)
    found = metrics(tmp_path / "both")
    assert [member["auroc"] for member in found["members"]] == [
        pytest.approx(metrics(run)["macro"]["auroc"], abs=1e-9) for run in (finished, other)
    ]
    assert [member["model"] for member in found["members"]] == ["test_resnet", "test_efficientnet"]
    assert found["step"] is None and found["operating_points_from"] == "val"
    assert any("mean of the logits of 2 checkpoints" in line for line in found["warnings"])
    assert (tmp_path / "both" / "pictures" / "test_false_negative_01_heat.png").exists()
    assert (tmp_path / "both" / "report.html").exists()

    with pytest.warns(UserWarning):
        predictor = distcxr.load(finished, other, device="cpu")
    held = read_predictions(tmp_path / "both" / "predictions_test.csv")
    table = predictor.predict(finished.parent / "phantom" / "images" / name for name in held.files)
    np.testing.assert_allclose(table["logit"].to_numpy().reshape(held.logits_NC.shape), held.logits_NC, atol=1e-6)
    chosen = json.loads((tmp_path / "both" / "operating.json").read_text())["operating"]["findings"]
    for at, (name, one) in enumerate(chosen.items()):
        assert predictor._known.logit_threshold("youden", at) == pytest.approx(one["thresholds"]["youden"]["value"])
        assert (name, one["thresholds"]["youden"]["value"] is None) == (name, table["positive"].isna()[at])
    (found,) = predictor.explain(finished.parent / "phantom" / "images" / held.files[0], ["Mass"])
    assert found.heat.shape == (64, 64) and len(predictor.models) == 2


def test_heat_maps_have_colours(other: Path) -> None:
    """Where the network's last map has more than one position."""
    colours = []
    for path in (other / "pictures").glob("*_heat.png"):
        with Image.open(path) as heat:
            colours.append(np.ptp(np.asarray(heat.convert("RGB")), axis=2).max())
    assert max(colours) > 50  # a map may be empty, not all of them


def test_checkpoints_that_make_no_ensemble(finished: Path, other: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"several checkpoints have no run folder in common: .*output=FOLDER"):
        score(finished, [finished, other], None)
    with pytest.raises(
        ValueError, match=r"other is the run folder of .*other/checkpoints/best, and would lose its own results"
    ):
        score(finished, [finished, other], other)
    with pytest.raises(CheckpointError, match="best: named twice"):
        score(finished, [finished, finished / "checkpoints" / "best"], tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"findings Atelectasis, .*; the recipe's are Mass"):
        score(finished, [finished, other], tmp_path / "out", "data.findings=[Mass]")
    shutil.copytree(other, tmp_path / "foreign")
    best = best_folder(tmp_path / "foreign")
    meta = read_meta(best)
    write_meta(best, meta | {"hashes": meta["hashes"] | {"labels": "0"}})
    with pytest.raises(CheckpointError, match=r"foreign.*: trained with other labels than .*run/checkpoints/best"):
        score(finished, [finished, tmp_path / "foreign"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_thresholds_from_patients_that_were_trained_on(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    score(finished, [finished], tmp_path / "out", "data.split_seed=1")
    assert "patients of this val split: no thresholds" in caplog.text
    assert metrics(tmp_path / "out")["operating_points_from"] is None


def test_other_images_leave_the_runs_own_results_alone(finished: Path, tmp_path: Path) -> None:
    """The run's environment.json has the hashes of its own lists: a score of others under it would borrow them."""
    shutil.copytree(finished, tmp_path / "run")
    names = (finished.parent / "phantom" / "test_list.txt").read_text().split()
    (tmp_path / "few.txt").write_text("\n".join(names[: len(names) // 2]))
    lists = f"data.lists={{train: train_val_list.txt, test: {tmp_path / 'few.txt'}}}"
    score(finished, [tmp_path / "run"], None, "data.split=lists", lists)
    assert metrics(tmp_path / "run") == metrics(finished)
    (apart,) = (tmp_path / "run").glob("test_best_*")
    environment = json.loads((apart / "environment.json").read_text())
    assert (
        environment["splits"]["test"]["num_images"] == metrics(apart)["num_samples"] < metrics(finished)["num_samples"]
    )
    score(finished, [tmp_path / "run"], tmp_path / "run", "data.split=lists", lists)
    assert metrics(tmp_path / "run") == metrics(finished)


def test_labels_read_in_another_way_are_other_labels(finished: Path) -> None:
    """Of the same files: the run keeps its own figures, and lends no thresholds."""
    checkpoint = open_checkpoint(best_folder(finished))
    for override, alike in (("data.uncertain=mask", True), ("data.uncertain=one", False)):
        recipe = tiny.recipe(finished.parent, tiny.BF16, override)
        dataset = open_dataset(recipe)
        assert (testing._apart(finished, [checkpoint], dataset) == finished) is alike
        setup: Any = SimpleNamespace(recipe=recipe, hashes=dataset.hashes, index=dataset.index)
        assert (testing._kept(setup, checkpoint, Weights(checkpoint.step, "val")) is not None) is alike


def test_the_report_says_when_seen_patients_could_not_be_looked_for(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    best = best_folder(tmp_path / "run")
    meta = read_meta(best)
    write_meta(best, meta | {"hashes": meta["hashes"] | {"labels": "0"}})
    score(finished, [tmp_path / "run"], tmp_path / "out", "eval.pictures=0")
    assert any("trained with another label file" in line for line in metrics(tmp_path / "out")["warnings"])
    score(finished, [finished], tmp_path / "same", "eval.pictures=0")
    assert not any("another label file" in line for line in metrics(tmp_path / "same")["warnings"])


def test_the_average_is_of_what_all_could_read() -> None:
    one = Outputs(np.array([1, 4, 6]), np.array([[1], [2], [3]], dtype=np.float32), ((9, "torn"),))
    two = Outputs(np.array([4, 6, 9]), np.array([[4], [5], [6]], dtype=np.float32), ((1, "empty"),))
    mean = average([one, two], "bce")
    assert mean.rows.tolist() == [4, 6] and mean.values_NK.ravel().tolist() == [3, 4]
    assert mean.values_NK.dtype == np.float32 and mean.unreadable == ((1, "empty"), (9, "torn"))
    assert average([one], "focal").values_NK.tolist() == one.values_NK.tolist()


def test_overrides_may_follow_the_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    import launch

    given: list[Any] = []
    monkeypatch.setattr("distcxr.engine.main.run", lambda *arguments: given.extend(arguments) or 0)
    words = ["recipes/quickstart.yaml", "seed=3", "--test", "runs/one", "runs/two", "output=both"]
    monkeypatch.setattr("sys.argv", ["launch.py", *words])
    assert launch.main() == 0
    recipe, name, checkpoints = given
    assert (recipe.seed, recipe.output, name) == (3, Path("both"), "quickstart")
    assert checkpoints == [Path("runs/one"), Path("runs/two")]
