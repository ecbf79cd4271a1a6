"""`distcxr cache RECIPE`: build, run again, repair; and a training run that reads what it wrote."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tiny

from distcxr.cli import main


def call(monkeypatch: pytest.MonkeyPatch, folder: Path, *more: str) -> int:
    tiny.recipe(folder)
    root = f"data.root={folder / 'phantom'}"
    monkeypatch.setattr("sys.argv", ["distcxr", "cache", str(folder / "tiny.yaml"), root, *more])
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
    assert f"{data}/distcxr-cache/32px: 24 images of 32 x 32 pixels, 0.02 MB" in said
    assert "24 images decoded" in said and "6 images can't be read" in said
    assert f"images/{images[0].name}: truncated" in said and "and 1 more, in" in said

    assert call(monkeypatch, tmp_path) == 0
    said = capsys.readouterr().out
    assert "nothing to do: every image was checked" in said and "6 images can't be read" in said

    images[3].write_bytes(whole)
    os.utime(images[3], ns=(0, 1))
    assert call(monkeypatch, tmp_path) == 0
    said = capsys.readouterr().out
    assert "1 image decoded" in said and ", 1 changed" in said and "5 images can't be read" in said

    assert call(monkeypatch, tmp_path, "data.image_size=16", f"data.cache.path={tmp_path / 'small'}") == 0
    assert f"{tmp_path / 'small'}: 24 images of 16 x 16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--workers", "0"), "--workers 0: at least 1"),
        (("data.cache.path=/proc/nowhere",), "the cache can't be written"),
        (("data.imagesize=3",), "imagesize"),
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


def test_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.phantom(tmp_path, images=12)
    with monkeypatch.context() as patch:
        patch.setattr("distcxr.data.cache.build.resize_grey", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert call(monkeypatch, tmp_path) == 130
    assert "the same command resumes" in capsys.readouterr().err
    assert call(monkeypatch, tmp_path, "--workers", "2") == 0


def test_training_from_the_cache_gives_the_same_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.phantom(tmp_path)
    assert call(monkeypatch, tmp_path) == 0
    losses = []
    for name, more in {"torch": (), "cache": (), "device": ("data.cache.resident=device",)}.items():
        loader = "torch" if name == "torch" else "cache"
        run = tmp_path / name
        tiny.train(tmp_path, f"output={run}", "train.max_steps=3", f"data.loader={loader}", "eval.splits=[]", *more)
        losses.append([row["loss"] for row in tiny.rows(run / "steps.csv")])
    assert losses[0] == losses[1] == losses[2] and len(losses[0]) == 3
