"""`distcxr pack RECIPE`: build, run again, repair; and a training run that reads what it wrote."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import packs
import pytest
import tiny
from safetensors.numpy import load_file

from distcxr.cli import main
from distcxr.data.dataset import open_dataset
from distcxr.data.phantom.dataset import write_phantom

pytest.importorskip("imagecodecs")


def call(monkeypatch: pytest.MonkeyPatch, folder: Path, *more: str, verb: str = "pack") -> int:
    tiny.recipe(folder)
    root = f"data.root={folder / 'phantom'}"
    monkeypatch.setattr("sys.argv", ["distcxr", verb, str(folder / "tiny.yaml"), root, *more])
    return main()


def test_build_again_and_repair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiny.phantom(tmp_path, images=24)
    images = sorted((data / "images").iterdir())
    whole = images[3].read_bytes()
    for number in range(6):
        images[number].write_bytes(whole[:40])
    assert call(monkeypatch, tmp_path, "--workers", "2") == 0
    said = capsys.readouterr().out
    assert f"{data}/distcxr-pack: 24 images in 1 shard, 0.0" in said
    assert "24 images encoded" in said and "6 images can't be read" in said
    assert f"images/{images[0].name}: truncated" in said and "and 1 more, in" in said

    assert call(monkeypatch, tmp_path, "data.source=pack") == 0
    said = capsys.readouterr().out
    assert "nothing to do: every image was checked" in said and "6 images can't be read" in said

    images[3].write_bytes(whole)
    os.utime(images[3], ns=(0, 1))
    packs.flip(packs.shards(data / "distcxr-pack")[0], 99)
    assert call(monkeypatch, tmp_path) == 0
    said = capsys.readouterr().out
    assert "2 images encoded" in said and ", 1 changed, 1 damaged" in said and "5 images can't be read" in said

    shutil.rmtree(data / "images")
    assert call(monkeypatch, tmp_path) == 0
    said = capsys.readouterr().out
    assert "nothing to do" in said and "24 images without a file here: the pack's own checksums were compared" in said


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--workers", "0"), "--workers 0: at least 1"),
        (("data.pack.path=/proc/nowhere",), "the pack can't be written"),
        (("data.pack.pth=3",), "pth"),
        (("data.source=pack", "data.loader=cache"), "data.loader: cache does not read packs"),
    ],
)
def test_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...], problem: str,
) -> None:  # fmt: skip
    tiny.phantom(tmp_path, images=12)
    assert call(monkeypatch, tmp_path, *arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and problem in said


def test_decoded_arrays_are_not_packed_and_a_pack_not_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_phantom(tmp_path / "phantom", images=12, size=32, workers=1, layout="chestmnist")
    assert call(monkeypatch, tmp_path, "data.dataset=chestmnist", "data.loader=auto") == 2
    assert "chestmnist is one file of decoded arrays" in capsys.readouterr().err
    assert call(monkeypatch, tmp_path, "data.source=pack", verb="cache") == 2
    assert "a cache is decoded from the image files; add data.source=png" in capsys.readouterr().err


def test_a_missing_shard_is_named_where_the_image_files_are_not_there_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiny.phantom(tmp_path, images=12)
    assert call(monkeypatch, tmp_path) == 0
    capsys.readouterr()
    before = sorted((data / "distcxr-pack").iterdir())
    shard = packs.shards(data / "distcxr-pack")[0]
    shard.rename(tmp_path / "elsewhere")
    (data / "images").rename(data / "gone")
    assert call(monkeypatch, tmp_path) == 2
    said = capsys.readouterr().err
    assert f"{shard} can't be read: No such file" in said and "copy it again" in said
    assert "That takes the image files, and: None of the 12 images" in said
    (tmp_path / "elsewhere").rename(shard)
    assert call(monkeypatch, tmp_path) == 0 and sorted((data / "distcxr-pack").iterdir()) == before


def test_without_image_files_a_pack_that_is_there_is_pointed_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny.phantom(tmp_path, images=12)
    assert call(monkeypatch, tmp_path) == 0
    shutil.rmtree(data / "images")
    with pytest.raises(ValueError, match=rf"None of the 12 images .*\n[^$]*A pack is in {data}.*: data\.source=pack"):
        open_dataset(tiny.recipe(tmp_path))
    shutil.rmtree(data / "distcxr-pack")
    with pytest.raises(ValueError, match="None of the 12 images") as raised:
        open_dataset(tiny.recipe(tmp_path))
    assert "pack" not in str(raised.value)


def test_a_command_without_a_recipe_is_told_just_that(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb, missing in (
        ("pack", "RECIPE"),
        ("cache", "RECIPE"),
        ("submit", "RECIPE"),
        ("explain", "RECIPE"),
    ):
        monkeypatch.setattr("sys.argv", ["distcxr", verb])
        assert main() == 2
        assert capsys.readouterr().err == f"error: Missing argument '{missing}'; see distcxr {verb} --help\n"


def test_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.phantom(tmp_path, images=12)
    with monkeypatch.context() as patch:
        patch.setattr("distcxr.data.pack.images.encode_htj2k", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert call(monkeypatch, tmp_path) == 130
    assert "the same command resumes" in capsys.readouterr().err
    assert call(monkeypatch, tmp_path, "--workers", "2") == 0


def test_training_from_the_pack_gives_the_same_weights_without_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a run begun with the files goes on with the pack."""
    data = tiny.phantom(tmp_path)
    more = ("eval.splits=[]", "checkpoint.every=2st", "logging.every=1st")
    tiny.train(tmp_path, f"output={tmp_path / 'png'}", "train.max_steps=4", *more)
    tiny.train(tmp_path, f"output={tmp_path / 'both'}", "train.max_steps=2", *more)
    assert call(monkeypatch, tmp_path) == 0
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
