"""`--test RUN --on RECIPE`: runs on other data sets, with what their own validation chose."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from distcxr.cli import main
from distcxr.data.dataset import open_dataset
from distcxr.engine import external, external_pairs
from distcxr.engine.checkpoint import open_checkpoint
from distcxr.engine.validated import validated
from distcxr.phantom.writing import write_phantom
from distcxr.recipe import Recipe, load_recipe
from distcxr.runfolder.layout import best_folder
from distcxr.runfolder.manifest import read_meta, write_meta
from distcxr.runfolder.predictions import read_predictions


@pytest.fixture(scope="session")
def chexpert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other X-rays in CheXpert's layout, and a recipe that names them."""
    folder = tmp_path_factory.mktemp("external")
    write_phantom(folder / "data", images=32, size=48, seed=7, workers=1, layout="chexpert")
    (folder / "chexpert.yaml").write_text(
        f"data: {{dataset: chexpert, root: {folder / 'data'}, findings: chexpert14, uncertain: zero, "
        "val_fraction: 0.3, loader: torch, num_workers: 0}"
    )
    return folder / "chexpert.yaml"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A run of its own to write into."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def score(paths: list[Path], others: dict[str, Recipe], split: str = "test", *overrides: str) -> Any:
    recipe = load_recipe(paths[0] / "recipe.yaml", ["output=null", *overrides])
    return external.score_elsewhere(recipe, paths, others, split, tiny.runtime(recipe))


def own(finished: Path, *overrides: str) -> Recipe:
    return tiny.recipe(finished.parent, *overrides)


def of(folder: Path) -> Any:
    return json.loads((folder / "metrics_test.json").read_text(), parse_constant=pytest.fail)


def test_a_run_on_three_data_sets(
    finished: Path, run: Path, chexpert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    others = {
        "chexpert": load_recipe(chexpert), "nih": own(finished),
        "mixed": own(finished, "data.split=by_patient", "data.split_seed=3"),
    }  # fmt: skip
    values = score([run], others, "test", f"output={tmp_path / 'table'}")
    there, same, leak = values["cells"]

    elsewhere = of(run / "external" / "chexpert")
    assert elsewhere["data"]["findings"] == there["shared"] and there["shared"]["Effusion"] == "Pleural Effusion"
    assert len(there["shared"]) == 7 and set(elsewhere["macro"]["findings"]) <= set(there["shared"])
    assert elsewhere["macro"]["auroc"] == there["auroc"] and not there["in_distribution"]
    assert elsewhere["findings"]["Mass"]["reason"] == "no known labels"
    assert there["num_patients"] == elsewhere["num_patients"] == values["data"][0]["num_patients"]
    # thresholds are validation's, and what was trained on shows what the run itself reported
    chosen = json.loads((finished / "operating.json").read_text())["operating"]["findings"]
    points = elsewhere["findings"]["Cardiomegaly"]["operating_points"]
    assert elsewhere["operating_points_from"] == "run's own val"
    assert points["youden"]["threshold_logit"] == chosen["Cardiomegaly"]["thresholds"]["youden"]["value"]
    assert same["in_distribution"] and of(run / "external" / "nih")["macro"] == of(finished)["macro"]
    ours, theirs = (
        read_predictions(folder / "predictions_test.csv") for folder in (finished, run / "external" / "nih")
    )
    assert ours.files == theirs.files and (ours.logits_NC == theirs.logits_NC).all()
    assert "patients of this test split" in leak["reason"] and leak["auroc"] is None
    assert not (run / "external" / "mixed").exists() and f"run on mixed: {leak['reason']}" in caplog.text
    assert of(run) == of(finished)
    assert json.loads((tmp_path / "table" / "matrix.json").read_text()) == values
    page = (tmp_path / "table" / "matrix.html").read_text()
    assert "../run/external/chexpert/report.html" in page and (run / "external" / "chexpert" / "report.html").exists()

    # other images under the same name leave those results alone; and without validation there are no thresholds
    for name in ("operating.json", "predictions_val.csv"):
        (run / name).unlink()
    score([run], {"chexpert": load_recipe(chexpert, ["data.max_test_samples=5"])})
    assert of(run / "external" / "chexpert") == elsewhere
    (beside,) = (run / "external").glob("chexpert_*")
    assert of(beside)["num_samples"] == 5 and of(beside)["operating_points_from"] is None
    assert any("nothing is called positive" in line for line in of(beside)["warnings"])
    assert (run / "external" / "matrix.html").exists()


def test_the_other_data_s_validation_chose_nothing(run: Path, chexpert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external, "write_page", lambda _: None)
    score([run], {"chexpert": load_recipe(chexpert)}, "val")
    found = json.loads((run / "external" / "chexpert" / "metrics_val.json").read_text())
    assert found["operating_points_from"] == found["checkpoint_from"] == "run's own val"
    assert not any("every figure here is optimistic" in line for line in found["warnings"])
    assert not any("chosen on the val split itself" in line for line in found["warnings"])


@tiny.worlds(2)
def test_two_ranks(finished: Path, run: Path, chexpert: Path, world_size: int) -> None:
    external.write_page = lambda _: None  # type: ignore[assignment, misc]  # in processes of this test alone
    values = score([run], {"chexpert": load_recipe(chexpert), "nih": own(finished)})
    if tiny.on_main(world_size):
        assert values["cells"][0]["num_samples"] == of(run / "external" / "chexpert")["num_samples"] > 0
        ours, theirs = (
            read_predictions(folder / "predictions_test.csv") for folder in (finished, run / "external" / "nih")
        )
        assert ours.files == theirs.files and np.allclose(ours.logits_NC, theirs.logits_NC, atol=1e-2)  # bf16


def test_what_can_not_be_scored(finished: Path, run: Path, chexpert: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no finding in common: the run has Atelectasis, .*; chexpert has Fracture$"):
        score([run], {"chexpert": load_recipe(chexpert, ["data.findings=[Fracture]"])})
    with pytest.raises(ValueError, match=r"best is named twice"):
        score([run, run], {"chexpert": load_recipe(chexpert)})
    with pytest.raises(ValueError, match=r"several runs have no folder in common: .*output=FOLDER"):
        score([run, finished], {"chexpert": load_recipe(chexpert)})
    # the same images under labels of one's own, none of them for the test split
    images = finished.parent / "phantom" / "images"
    (tmp_path / "images").symlink_to(images)
    names = sorted(path.name for path in images.iterdir())
    splits = ["test" if int(name[:8]) % 2 else "train" for name in names]  # a name begins with the patient
    rows = [
        f"images/{name},{name[:8]},{split},{at % 3 // 2}"
        for at, (name, split) in enumerate(zip(names, splits, strict=True))
    ]
    table = tmp_path / "labels.csv"
    csv_recipe = load_recipe(
        own_csv(tmp_path), [f"data.root={tmp_path}", "data.findings=[Mass]", "data.columns.split=split"]
    )
    table.write_text("\n".join(["image,patient,split,Mass", *rows]))
    with pytest.raises(ValueError, match=r"run on mine: leak: the run was trained or chosen on .* of this test split"):
        score([run], {"mine": csv_recipe})
    (tmp_path / "images").unlink()  # a copy, whose files are no others' but by their names
    shutil.copytree(images, tmp_path / "images")
    with pytest.raises(ValueError, match=r"run on mine: leak: the run was trained or chosen on .* of this test split"):
        score([run], {"mine": csv_recipe})
    table.write_text("\n".join(["image,patient,split,Mass", *(row[:-1] if "test" in row else row for row in rows)]))
    with pytest.raises(ValueError, match=r"mine: none of the .* images of its test split has a known label of Mass"):
        score([run], {"mine": csv_recipe})


def test_what_a_run_began_with_counts(finished: Path, run: Path) -> None:
    """A run on other data, not there any more, from weights that saw these patients."""
    best = best_folder(run)
    meta = read_meta(best)
    meta["recipe"]["model"]["weights"], meta["recipe"]["data"]["root"] = str(finished), str(run / "gone")
    write_meta(best, meta | {"hashes": meta["hashes"] | {"labels": "0"}})
    mixed = own(finished, "data.split=by_patient", "data.split_seed=3")
    with pytest.raises(
        ValueError, match=r"run on mixed: leak: the run, or one that it began with, was trained or .* on 3"
    ):
        score([run], {"mixed": mixed})
    meta["recipe"]["model"]["weights"] = "none"
    write_meta(best, meta | {"hashes": meta["hashes"] | {"labels": "0"}})
    tested = external_pairs.Tested(open_checkpoint(run), validated(open_checkpoint(run)), "run")
    pair = external_pairs.pair_of(tested, "mixed", open_dataset(mixed), "test")
    assert pair.reason is None and "whether it saw these patients is not known" in pair.notes[0]


def own_csv(folder: Path) -> Path:
    (folder / "mine.yaml").write_text("data: {dataset: csv, columns: {patient: patient}}")
    return folder / "mine.yaml"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--on", "ROOTLESS"], "rootless: the recipe has no data.root: add data.root=PATH to the command, where the "),
        (["--on", "data.root=/x", "ROOTLESS"], "data.root=/x comes before any recipe"),
        (["--on", "ROOTLESS", "./ROOTLESS"], "two recipes are called rootless"),
        (["eval.tta=[flip]", "--on", "ROOTLESS"], "eval.tta=[flip] comes before --on, where only output and"),
        (["quickstart", "--on", "ROOTLESS"], "with --on every run is tested with its own recipe"),
        (["--split", "val"], "--split is about --on"),
    ],
)
def test_mistakes_of_the_command(
    words: list[str], message: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("rootless.yaml").write_text("data: {dataset: chexpert, findings: chexpert14}")
    named = [word.replace("ROOTLESS", "rootless.yaml") for word in words]
    monkeypatch.setattr("sys.argv", ["distcxr", "test", str(finished), *named])
    assert main() == 2
    assert f"error: {message}" in capsys.readouterr().err


def test_the_command_reaches_the_engine(
    finished: Path, chexpert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr("distcxr.engine.main.run", lambda *arguments: given.extend(arguments) or 0)
    words = [str(finished), f"output={tmp_path}", "--on", str(chexpert), "data.max_test_samples=5", "--split", "val"]
    monkeypatch.setattr("sys.argv", ["distcxr", "test", *words, "--processes", "1"])
    assert main() == 0
    recipe, _, paths, (others, split) = given
    assert (recipe.output, paths, split, list(others)) == (tmp_path, [finished], "val", ["chexpert"])
    assert others["chexpert"].data.max_test_samples == 5
