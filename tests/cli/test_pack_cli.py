"""`distcxr pack RECIPE` where image files or shards are not there, and training from the pack."""

from __future__ import annotations

import shutil
from pathlib import Path

import packs
import pytest
import tiny
from safetensors.numpy import load_file

from distcxr.cli import main
from distcxr.data.dataset import open_dataset
from distcxr.phantom.writing import write_phantom

pytest.importorskip("imagecodecs")


def test_decoded_arrays_are_not_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_phantom(tmp_path / "phantom", images=12, size=32, workers=1, layout="chestmnist")
    assert tiny.command(monkeypatch, tmp_path, "pack", "data.dataset=chestmnist", "data.loader=auto") == 2
    assert "chestmnist is one file of decoded arrays" in capsys.readouterr().err


def test_images_without_a_file_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiny.phantom(tmp_path, images=12)
    assert tiny.command(monkeypatch, tmp_path, "pack") == 0
    assert tiny.command(monkeypatch, tmp_path, "pack", "data.source=pack") == 0
    shutil.rmtree(data / "images")
    assert tiny.command(monkeypatch, tmp_path, "pack") == 0
    output = capsys.readouterr().out
    assert output.count("nothing to do") == 2
    assert "12 images without a file here: the pack's own checksums were compared" in output


def test_a_missing_shard_is_named_where_the_image_files_are_not_there_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiny.phantom(tmp_path, images=12)
    assert tiny.command(monkeypatch, tmp_path, "pack") == 0
    capsys.readouterr()
    before = sorted((data / "distcxr-pack").iterdir())
    shard = packs.shards(data / "distcxr-pack")[0]
    shard.rename(tmp_path / "elsewhere")
    (data / "images").rename(data / "gone")
    assert tiny.command(monkeypatch, tmp_path, "pack") == 2
    output = capsys.readouterr().err
    assert f"{shard} can't be read: No such file" in output and "copy it again" in output
    assert "That takes the image files, and: None of the 12 images" in output
    (tmp_path / "elsewhere").rename(shard)
    assert tiny.command(monkeypatch, tmp_path, "pack") == 0 and sorted((data / "distcxr-pack").iterdir()) == before


def test_without_image_files_a_pack_that_is_there_is_pointed_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny.phantom(tmp_path, images=12)
    assert tiny.command(monkeypatch, tmp_path, "pack") == 0
    shutil.rmtree(data / "images")
    with pytest.raises(ValueError, match=rf"None of the 12 images .*\n[^$]*A pack is in {data}.*: data\.source=pack"):
        open_dataset(tiny.recipe(tmp_path))
    shutil.rmtree(data / "distcxr-pack")
    with pytest.raises(ValueError, match="None of the 12 images") as raised:
        open_dataset(tiny.recipe(tmp_path))
    assert "pack" not in str(raised.value)


def test_a_command_without_a_recipe_gets_just_that_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb, missing in (
        ("pack", "RECIPE"),
        ("cache", "RECIPE"),
        ("submit", "RECIPE"),
        ("explain", "RUN"),
    ):
        monkeypatch.setattr("sys.argv", ["distcxr", verb])
        assert main() == 2
        assert capsys.readouterr().err == f"error: Missing argument '{missing}'; see distcxr {verb} --help\n"


def test_training_from_the_pack_gives_the_same_weights_without_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a run begun with the files resumes with the pack."""
    data = tiny.phantom(tmp_path)
    more = ("eval.splits=[]", "checkpoint.every=2st", "logging.every=1st")
    tiny.train(tmp_path, f"output={tmp_path / 'png'}", "train.max_steps=4", *more)
    tiny.train(tmp_path, f"output={tmp_path / 'both'}", "train.max_steps=2", *more)
    assert tiny.command(monkeypatch, tmp_path, "pack") == 0
    shutil.rmtree(data / "images")
    tiny.train(tmp_path, f"output={tmp_path / 'both'}", "train.max_steps=4", "data.source=pack", *more)
    tiny.train(tmp_path, f"output={tmp_path / 'pack'}", "train.max_steps=4", "data.source=pack", *more)
    losses = {
        name: [row["loss"] for row in tiny.rows(tmp_path / name / "steps.csv")] for name in ("png", "both", "pack")
    }
    assert losses["png"] == losses["both"] == losses["pack"] and len(losses["png"]) == 4
    weights = []
    for name in losses:
        (file,) = (tmp_path / name).glob("**/*4/model.safetensors")
        weights.append(load_file(file))
    for key, value in weights[0].items():
        assert (value == weights[1][key]).all() and (value == weights[2][key]).all(), key
