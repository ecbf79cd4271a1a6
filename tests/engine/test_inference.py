"""`distcxr predict` and `distcxr.load`: what `test` makes of images, without a dataset and in anybody's program."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from dicoms import dicom
from PIL import Image
from pydicom.uid import RLELossless

import distcxr
from distcxr.api import NOT_CLINICAL, Predictor
from distcxr.cli import main
from distcxr.data.sources.image_files import find_images
from distcxr.device import arithmetic_of
from distcxr.engine.checkpoint import open_checkpoint
from distcxr.engine.evaluate import predict
from distcxr.engine.inference import devices_of, member_heat, member_logits, open_member
from distcxr.engine.saving import save_best
from distcxr.metrics.calibration import probabilities
from distcxr.runfolder.manifest import read_meta, write_meta
from distcxr.runfolder.predictions import Predictions, read_predictions

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def predictor(finished: Path) -> Predictor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return distcxr.load(finished, device="cpu")


@pytest.fixture(scope="module")
def kept(finished: Path) -> Predictions:
    return read_predictions(finished / "predictions_test.csv")


@pytest.fixture(scope="module")
def files(finished: Path, kept: Predictions) -> list[str]:
    """The test split's images, in its order."""
    return [str(finished.parent / "phantom" / "images" / name) for name in kept.files]


def column(table: pd.DataFrame, name: str, finding: str) -> Any:
    return table.loc[table["finding"] == finding, name].to_numpy()


def test_logits_are_those_of_the_test_split_bit_for_bit(
    finished: Path, predictor: Predictor, kept: Predictions, files: list[str]
) -> None:
    """The run is bfloat16, and its last batch is smaller than the others."""
    table = predictor.predict(files)
    assert table["file"].tolist() == [file for file in files for _ in predictor.findings]
    assert table["logit"].dtype == np.float32
    assert (table["logit"].to_numpy().reshape(-1, len(kept.findings)) == kept.logits_NC).all()
    val = read_predictions(finished / "predictions_val.csv")
    operating = json.loads((finished / "operating.json").read_text())["operating"]["findings"]
    num_decided = 0
    for at, finding in enumerate(kept.findings):
        chosen = operating[finding]
        temperature, threshold = chosen["temperature"]["value"], chosen["thresholds"]["youden"]["value"]
        logits_N = kept.logits_NC[:, at]
        assert np.array_equal(column(table, "probability", finding), probabilities(logits_N, temperature or 1.0))
        positive = column(table, "positive", finding)
        assert pd.isna(positive).all() if threshold is None else (positive == (logits_N >= np.float32(threshold))).all()
        num_decided += threshold is not None
        for target, name in enumerate(("above_negatives", "above_positives")):
            scores = val.logits_NC[(val.targets_NC[:, at] == target) & (val.mask_NC[:, at] == 1), at]
            shares = [(scores < logit).mean() if len(scores) else np.nan for logit in logits_N]
            np.testing.assert_allclose(column(table, name, finding), shares, rtol=1e-12)
    assert 0 < num_decided < len(kept.findings)  # of both kinds
    assert (predictor.thresholds["probability_50"] == 0.5).all()
    decided = table.dropna(subset=["threshold"])
    assert (decided["positive"] == (decided["probability"] >= decided["threshold"])).all()
    strict = predictor.predict(files, rule="specificity_90")
    assert 0 < strict["positive"].sum() < table["positive"].sum()


def test_nothing_of_the_program_around_it_changes(
    finished: Path, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it speak to the processes that the program has joined."""
    monkeypatch.setattr("accelerate.state.AcceleratorState._shared_state", {})
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    for name in ("all_gather", "broadcast", "barrier", "get_world_size"):
        monkeypatch.setattr(f"torch.distributed.{name}", lambda *_, **__: pytest.fail("asked other processes"))
    torch.backends.cudnn.benchmark = False

    def settings() -> list[Any]:
        cudnn, root = torch.backends.cudnn, logging.getLogger()
        return [
            torch.get_num_threads(), torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark,
            torch.is_grad_enabled(), torch.get_default_dtype(), torch.initial_seed(), torch.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(), list(root.handlers), root.level, logging.getLogger("distcxr").level,
            list(warnings.filters), dict(os.environ), [signal.getsignal(one) for one in signal.valid_signals()],
            signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        ]  # fmt: skip

    before = settings()
    with pytest.warns(UserWarning, match="no temperature for .*these are not calibrated"):
        predictor = distcxr.load(str(finished), device="cpu")
    assert predictor.predict(iter(files[:3]))["probability"].notna().all()
    assert len(list(predictor.explain(files[0], ["Mass"]))) == 1
    assert settings() == before
    from accelerate.state import AcceleratorState

    assert AcceleratorState._shared_state == {}


def test_arithmetic_is_the_recipes_while_it_runs(predictor: Predictor, files: list[str]) -> None:
    seen = []
    hook = predictor.model.register_forward_hook(lambda *_: seen.append(torch.get_float32_matmul_precision()))
    torch.set_float32_matmul_precision("highest")
    try:
        predictor.predict(files[:1])
        seen.append(torch.get_float32_matmul_precision())
    finally:
        hook.remove()
        torch.set_float32_matmul_precision("high")  # as the run's own start has left it
    assert seen == ["high", "highest"]


def test_threads_that_predict_at_once_leave_the_program_s_arithmetic(finished: Path) -> None:
    recipe, entered, left = open_checkpoint(finished).recipe, threading.Event(), threading.Event()

    def another() -> None:
        with arithmetic_of(recipe):
            entered.set()
            left.wait(5)

    torch.set_float32_matmul_precision("highest")
    try:
        thread = threading.Thread(target=another)
        with arithmetic_of(recipe):
            thread.start()
            entered.wait(0.1)
        left.set()
        thread.join()
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision("high")


def test_autocast_and_device_of_the_program_around_it_change_nothing(finished: Path, files: list[str]) -> None:
    """Of a run in float32."""
    with torch.device("meta"):
        member = open_member(open_checkpoint(finished), torch.device("cpu"), (), "no")
    index = find_images(files[:2]).index(tuple(member.checkpoint.meta["findings"]))

    def made() -> list[Any]:
        logits = member_logits(member, index, files[:2], [torch.device("cpu")], 2, lambda _: None)[0].values_NK
        heat = [maps[0] for _, maps in member_heat(member, index, files[:2], [[0], [0]], torch.device("cpu"))]
        return [logits, *heat]

    alone = made()
    with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        around = made()
        assert torch.is_autocast_enabled("cpu") and torch.get_default_device().type == "meta"
    assert all(map(np.array_equal, alone, around))


def test_the_bare_network_and_its_transform(predictor: Predictor, files: list[str]) -> None:
    table = predictor.predict(files[0])
    with torch.no_grad():
        logits = predictor.model(predictor.transform(files[0])[None])[0]
    np.testing.assert_allclose(logits, table["logit"], atol=0.01)  # float32 beside bfloat16
    with Image.open(files[0]) as image:
        assert torch.equal(predictor.transform(np.asarray(image)), predictor.transform(files[0]))


def test_several_devices_share_whole_batches(predictor: Predictor, kept: Predictions, files: list[str]) -> None:
    (member,) = predictor._members
    images, ticks = find_images([*files, "gone.png"]), list[int]()
    index = images.index(predictor.findings)
    devices = [torch.device("cpu")] * 3  # of which two have a batch
    found, _ = member_logits(member, index, images.files, devices, 16, ticks.append)
    assert (found.values_NK == kept.logits_NC).all() and found.rows.tolist() == list(range(len(files)))
    assert [row for row, _ in found.unreadable] == [len(files)] and sorted(ticks) == [len(images) - 16, 16]


def test_heat_maps_cover_what_the_network_was_shown(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide, pixels = tmp_path / "wide.png", np.random.default_rng(0).integers(0, 255, (60, 90), dtype=np.uint8)
    Image.fromarray(pixels).save(wide)
    (found,) = predictor.explain([wide, tmp_path / "gone.png"], ["Edema"])
    assert found.heat.shape == (60, 90) and found.finding == "Edema" and found.file == str(wide)
    assert found.picture.size == (256, 171)
    with pytest.raises(ValueError, match="no finding Flu here; there are Atelectasis"):
        predictor.explain([wide], ["Flu"])
    (member,) = predictor._members
    augment = member.recipe.augment.model_copy(update={"crop": 16})
    recipe = member.recipe.model_copy(update={"augment": augment})
    cropped = replace(member, recipe=recipe, transform=replace(member.transform, spec=augment))

    def everywhere(_: Any, images: torch.Tensor, columns: list[int], **__: Any) -> torch.Tensor:
        return torch.ones(len(images), len(columns), *images.shape[-2:])

    monkeypatch.setattr("distcxr.engine.inference.gradcam", everywhere)
    index = find_images([wide]).index(predictor.findings)
    ((row, maps),) = member_heat(cropped, index, [str(wide)], [[9]], torch.device("cpu"))
    assert row == 0 and maps[9].sum() == 16 * 16 == maps[9][8:24, 8:24].sum()


def test_age_and_sex_come_from_the_table(tmp_path: Path) -> None:
    tiny.phantom(tmp_path, images=48, size=32)
    run = tiny.build(tmp_path, f"output={tmp_path / 'run'}", "model.head.metadata=[age,sex]")
    save_best(run)
    rows = run.setup.splits.test
    expected = predict(run.setup, rows).values_NK
    index = run.setup.index
    lines = [
        f"{file},{age:g},{sex}"
        for file, age, sex in zip(index.files(rows), index.age[rows], index.sex[rows], strict=True)
    ]
    run.setup.close()
    (tmp_path / "list.csv").write_text("\n".join(["path,age,sex", *lines]))
    with pytest.warns(UserWarning, match="run has no operating.json .* `distcxr test .*run` makes it"):
        predictor = distcxr.load(tmp_path / "run", device="cpu")
    table = predictor.predict(tmp_path / "list.csv")
    assert (table["logit"].to_numpy().reshape(expected.shape) == expected).all()
    assert (table["note"] == "").all() and table["positive"].isna().all() and table["above_negatives"].isna().all()
    assert np.array_equal(table["probability"], probabilities(table["logit"].to_numpy()))
    without = predictor.predict(index.files(rows[:1]))
    assert without["note"][0] == "age, sex unknown, which the network takes beside it"
    assert not np.array_equal(without["logit"], expected[0])


def copied(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_what_a_run_lacks_is_a_sentence(finished: Path, tmp_path: Path, files: list[str]) -> None:
    run = copied(finished, tmp_path)
    given = json.loads((run / "operating.json").read_text())

    def load() -> tuple[Predictor, str]:
        with pytest.warns(UserWarning) as caught:
            found = distcxr.load(run, device="cpu")
        return found, "\n".join(str(one.message) for one in caught)

    (run / "operating.json").write_text(json.dumps(given | {"step": 1}))
    found, problems = load()
    assert "operating.json is of other weights (step 1) than" in problems
    assert found.predict(files[0])["positive"].notna().any()  # chosen anew on what validation kept
    (run / "operating.json").write_text("{")
    assert "operating.json is damaged" in load()[1]
    (run / "operating.json").write_text(json.dumps(given))
    (run / "predictions_val.csv").unlink()
    found, problems = load()
    assert "no predictions_val.csv of these weights and views: how common a score is, is not known" in problems
    table = found.predict(files[0])
    assert table["positive"].notna().any() and table["above_negatives"].isna().all()
    (run / "operating.json").unlink()
    assert f"probabilities are not calibrated, and nothing is called positive. `distcxr test {run}`" in load()[1]
    meta = read_meta(run / "checkpoints" / "best")
    recipe = meta["recipe"] | {"train": meta["recipe"]["train"] | {"precision": "fp16"}}
    write_meta(run / "checkpoints" / "best", meta | {"recipe": recipe})
    assert "trained with train.precision=fp16, which cpu does not have: it is computed in float32" in load()[1]
    write_meta(run / "checkpoints" / "best", meta | {"format_version": 99})
    with pytest.raises(ValueError, match="has format 99; this distcxr reads formats"):
        distcxr.load(run)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(ValueError, match=r"run is not a checkpoint: it has no checkpoint\.json"):
        distcxr.load(run)
    with pytest.raises(ValueError, match="name a run folder"):
        distcxr.load()
    with pytest.raises(ValueError, match="there is no device 'tpu' here: there is cpu"):
        distcxr.load(finished, device="tpu")
    assert devices_of("cpu") == [torch.device("cpu")]


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["distcxr", "predict", *map(str, words), "--device", "cpu"])
    return main()


def test_the_verb(
    finished: Path, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    photo = np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    out = tmp_path / "out.json"
    words = (finished, files[0], tmp_path / "gone.png", tmp_path / "photo.png", "--out", out)
    assert call(monkeypatch, *words, "--explain", tmp_path / "heat", "--rule", "recall_90") == 0
    shown = capsys.readouterr()
    assert shown.out.endswith(f"written: {out}\n{NOT_CLINICAL}\n") and shown.out.startswith(f"{files[0]}\nfinding ")
    assert re.search(r"Cardiomegaly +\.\d{3} +\.\d{3}  (posi|nega)tive +\d+ % of 1\d +\d+ % of \d\n", shown.out)
    assert f"can't be read: {tmp_path / 'gone.png'}: the file can't be read: No such file" in shown.err
    assert f"warning: {tmp_path / 'photo.png'}: a colour photo?" in shown.err
    content = json.loads(out.read_text(), parse_constant=pytest.fail)
    assert [Path(one["file"]).name for one in content["images"]] == [Path(files[0]).name, "photo.png"]
    assert [one["file"] for one in content["unreadable"]] == [str(tmp_path / "gone.png")]
    assert content["about"] == NOT_CLINICAL and content["rule"] == "recall_90" and content["weights"][0]["step"] > 0
    called = [name for name, one in content["images"][0]["findings"].items() if one["positive"] == 1]
    pictures = {path.name for path in (tmp_path / "heat").iterdir() if path.name.startswith(Path(files[0]).stem)}
    assert called and pictures == {f"{Path(files[0]).stem}_{name}.png" for name in called}

    folder = Path(files[0]).parent
    out = tmp_path / "out.csv"
    out.write_text("what was there")
    assert call(monkeypatch, finished, folder, "--out", out, "--batch", "40") == 0
    assert re.search(r"finding +positive +of images +most probable", capsys.readouterr().out)
    table = pd.read_csv(out)
    assert len(table) == 96 * 14 and set(table["positive"].dropna()) == {0, 1}
    alone = table[table["file"].isin(files)]
    assert len(alone) == len(files) * 14
    kept = read_predictions(finished / "predictions_test.csv").logits_NC.ravel()
    np.testing.assert_allclose(alone["logit"], kept, atol=1e-3)  # in other batches


def test_dicoms_are_images_like_others(
    finished: Path, predictor: Predictor, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """By the verb, from a folder with names as archives have them, and in Python."""
    folder, pixels_NHW = tmp_path / "study", [np.asarray(Image.open(file)) for file in files[:2]]
    folder.mkdir()
    (folder / "IM0").write_bytes(dicom(pixels_NHW[0], ViewPosition="LL"))
    (folder / "b.dcm").write_bytes(dicom(255 - pixels_NHW[1], RLELossless, PhotometricInterpretation="MONOCHROME1"))
    (folder / "c.dcm").write_bytes(dicom(pixels_NHW[1], PixelData=None))
    assert call(monkeypatch, finished, folder, "--out", tmp_path / "out.csv", "--explain", tmp_path / "heat") == 0
    error = capsys.readouterr().err
    assert "IM0: a lateral view (LL), by its tags" in error and "c.dcm: a DICOM without pixels (Digital X-Ray" in error
    table, expected = pd.read_csv(tmp_path / "out.csv"), predictor.predict(files[:2])
    assert (table["logit"].dropna().to_numpy(np.float32) == expected["logit"].to_numpy()).all()
    assert {path.name.partition("_")[0] for path in (tmp_path / "heat").iterdir()} == {"IM0", "b"}
    assert torch.equal(predictor.transform(folder / "b.dcm"), predictor.transform(files[1]))
    (found,) = predictor.explain(folder / "IM0", ["Mass"])
    assert found.heat.shape == pixels_NHW[0].shape


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["{run}"], "name images after the run"),
        (["{image}"], "none of .* is a run folder or a checkpoint"),
        (["{run}", "{run}x", "{image}"], "runx does not exist: name run folders, then images"),
        (["{run}", "{image}", "--rule", "half"], "no threshold rule 'half' here; there are youden, max_f1"),
        (["{run}", "{image}x.png"], "no image can be read; .*x.png: the file can't be read"),
        (["{run}", "{image}", "--out", "out.txt"], "name a file that ends in .csv or .json"),
        (["{run}", "{image}", "--out", "none/out.csv"], "the folder none is not there"),
    ],
)
def test_mistakes(
    finished: Path, files: list[str], words: list[str], problem: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert call(monkeypatch, *(word.format(run=finished, image=files[0]) for word in words)) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(f"error: .*{problem}.*\n", error), error


def test_the_lines_of_the_documentation_run(
    finished: Path, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a").symlink_to(finished)
    (tmp_path / "images").mkdir()
    for name, file in zip(("chest1.png", "chest2.png"), files, strict=False):
        shutil.copy(file, tmp_path / "images" / name)
    (tmp_path / "list.csv").write_text("path\nimages/chest1.png\n")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "predict.md").read_text(), re.DOTALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(code, {})
    assert (tmp_path / "mass.png").is_file()
