"""`distcxr cache RECIPE` and `distcxr pack RECIPE`: build, run again, repair; and training from the cache."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import packs
import pytest
import tiny

pytest.importorskip("imagecodecs")

WRITTEN = {
    "cache": "distcxr-cache/32px: 24 images of 32 x 32 pixels, 0.02 MB",
    "pack": "distcxr-pack: 24 images in 1",
}
MADE_BY = {"cache": "cache_building.resize_grey", "pack": "pack_building.encode_htj2k"}


@pytest.mark.parametrize(("verb", "done"), [("cache", "decoded"), ("pack", "encoded")])
def test_build_again_and_repair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str, done: str
) -> None:
    data = tiny.phantom(tmp_path, images=24)
    images = sorted((data / "images").iterdir())
    whole = images[3].read_bytes()
    for number in range(6):
        images[number].write_bytes(whole[:40])
    assert tiny.command(monkeypatch, tmp_path, verb, "--workers", "2") == 0
    output = capsys.readouterr().out
    assert f"{data}/{WRITTEN[verb]}" in output
    assert f"24 images {done}" in output and "6 images can't be read" in output
    assert f"images/{images[0].name}: truncated" in output and "and 1 more, in" in output

    assert tiny.command(monkeypatch, tmp_path, verb) == 0
    output = capsys.readouterr().out
    assert "nothing to do: every image was checked" in output and "6 images can't be read" in output

    images[3].write_bytes(whole)
    os.utime(images[3], ns=(0, 1))
    if verb == "pack":
        packs.flip(packs.shards(data / "distcxr-pack")[0], 99)
    assert tiny.command(monkeypatch, tmp_path, verb) == 0
    output = capsys.readouterr().out
    made = "2 images encoded" if verb == "pack" else "1 image decoded"
    assert made in output and ", 1 changed" in output and "5 images can't be read" in output
    assert (", 1 changed, 1 damaged" in output) == (verb == "pack")

    if verb == "cache":  # the same images as an array that numpy opens without reading it
        array = tmp_path / "images.npy"
        assert tiny.command(monkeypatch, tmp_path, "cache", "--export-npy", str(array)) == 0
        assert "images.npy: uint8 [24, 32, 32]" in capsys.readouterr().out
        held, names = np.load(array, mmap_mode="r"), (tmp_path / "images.npy.txt").read_text().splitlines()
        assert isinstance(held, np.memmap) and names == [f"images/{image.name}" for image in images]
        assert (held.reshape(-1) == np.fromfile(next((data / "distcxr-cache" / "32px").glob("*.u8")), np.uint8)).all()
        assert not held[0].any() and held[3].any()  # unreadable, and one that was mended


@pytest.mark.parametrize(
    ("verb", "arguments", "problem"),
    [
        ("cache", ("--workers", "0"), "--workers 0: at least 1"),
        ("cache", ("--export-npy", "images.npz"), "images.npz: name a file that ends in .npy"),
        ("cache", ("data.cache.path=/proc/nowhere",), "the cache can't be written"),
        ("cache", ("data.imagesize=3",), "imagesize"),
        ("cache", ("data.source=pack",), "a cache is decoded from the image files; add data.source=png"),
        ("pack", ("--workers", "0"), "--workers 0: at least 1"),
        ("pack", ("data.pack.path=/proc/nowhere",), "the pack can't be written"),
        ("pack", ("data.pack.pth=3",), "pth"),
        ("pack", ("data.source=pack", "data.loader=cache"), "data.loader: cache does not read packs"),
    ],
)
def test_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    verb: str, arguments: tuple[str, ...], problem: str,
) -> None:  # fmt: skip
    tiny.phantom(tmp_path, images=12)
    assert tiny.command(monkeypatch, tmp_path, verb, *arguments) == 2
    output = capsys.readouterr().err
    assert output.startswith("error: ") and problem in output


@pytest.mark.parametrize("verb", MADE_BY)
def test_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    tiny.phantom(tmp_path, images=12)
    with monkeypatch.context() as patch:
        patch.setattr(f"distcxr.data.store.{MADE_BY[verb]}", Mock(side_effect=KeyboardInterrupt))
        assert tiny.command(monkeypatch, tmp_path, verb) == 130
    assert "the same command resumes" in capsys.readouterr().err
    assert tiny.command(monkeypatch, tmp_path, verb, "--workers", "2") == 0


def test_a_cache_of_another_size_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.phantom(tmp_path, images=12)
    more = ("data.image_size=16", f"data.cache.path={tmp_path / 'small'}")
    assert tiny.command(monkeypatch, tmp_path, "cache", *more) == 0
    assert f"{tmp_path / 'small'}: 12 images of 16 x 16" in capsys.readouterr().out


def test_training_from_the_cache_gives_the_same_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.phantom(tmp_path)
    assert tiny.command(monkeypatch, tmp_path, "cache") == 0
    losses = []
    for name, more in {"torch": (), "cache": (), "device": ("data.cache.resident=device",)}.items():
        loader = "torch" if name == "torch" else "cache"
        run = tmp_path / name
        tiny.train(tmp_path, f"output={run}", "train.max_steps=3", f"data.loader={loader}", "eval.splits=[]", *more)
        losses.append([row["loss"] for row in tiny.rows(run / "steps.csv")])
    assert losses[0] == losses[1] == losses[2] and len(losses[0]) == 3
