"""What holds for building a cache and building a pack alike."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import caches
import pytest
from caches import SIZE

from distcxr.data.index import SampleIndex
from distcxr.data.store.cache_building import build_cache
from distcxr.data.store.pack_building import build_pack
from distcxr.data.store.store_building import Built
from distcxr.data.store.store_files import StoreError

pytest.importorskip("imagecodecs")

Build = Callable[..., Built]
FORMATS: dict[str, Build] = {
    "cache": partial(build_cache, image_size=SIZE, workers=1), "pack": partial(build_pack, workers=1),
}  # fmt: skip
LEFT = {
    "cache": ("pixels-00000000.u8", "building.part", "cache.part", ".cache.json.123.part", ".building.json.123.part"),
    "pack": ("shard-00007-00000000.j2k", "shard-00008-00000000.j2k.part", "pack.part", ".pack.json.123.part"),
}


@pytest.fixture(params=FORMATS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def build(name: str) -> Build:
    return FORMATS[name]


def test_a_folder_that_can_not_be_written(index: SampleIndex, tmp_path: Path, name: str, build: Build) -> None:
    (tmp_path / "file").write_text("")
    advice = rf"can't be written: Not a directory\. Set data\.{name}\.path to another folder, and run the same command"
    with pytest.raises(StoreError, match=advice):
        build(index, tmp_path / "file" / "store")


def test_two_builders_do_not_meet(index: SampleIndex, tmp_path: Path, name: str, build: Build) -> None:
    refused = 0

    def second(*_: object) -> None:
        nonlocal refused
        with pytest.raises(StoreError, match=f"another process is building this {name}"):
            build(index, tmp_path / "store")
        refused += 1

    build(index, tmp_path / "store", report=second)
    assert refused == {"cache": 1, "pack": 16}[name]
    built = build(index, tmp_path / "store")
    assert (built.num_images, built.num_made, built.num_resumed, built.num_damaged) == (16, 0, 0, 0)


def test_a_file_system_without_locks_is_warned_of(
    index: SampleIndex, tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert build(index, tmp_path / "store").num_made == 16
    assert "let one process alone use this folder" in caplog.text


def test_a_second_run_with_nothing_to_do_writes_nothing(index: SampleIndex, tmp_path: Path, build: Build) -> None:
    build(index, tmp_path / "store")
    before = caches.content(tmp_path / "store")
    for part in (index, index.take([4, 2])):  # a store may hold more than is asked for
        built = build(part, tmp_path / "store")
        assert (built.num_images, built.num_made, built.num_resumed, len(built.unreadable)) == (16, 0, 0, 3)
        assert caches.content(tmp_path / "store") == before


def test_leftovers_go_and_other_files_stay(index: SampleIndex, tmp_path: Path, name: str, build: Build) -> None:
    folder = tmp_path / "store"
    build(index, folder)
    before = caches.content(folder)
    for left in (*LEFT[name], "entries-00000000.npy"):
        (folder / left).write_bytes(b"of a build that was given up")
    mine = {"mine.txt": b"precious", "images_003.tar.gz.part": b"half a download", "building.txt": b"where"}
    for file, data in mine.items():
        (folder / file).write_bytes(data)
    build(index, folder)
    assert caches.content(folder) == before | mine
    (index.root / "images/01.png").write_bytes(caches.png(99, side=(7, 5)))
    assert build(index, folder).num_made == 1
    assert mine.items() <= caches.content(folder).items()


def test_the_two_formats_do_not_share_a_folder(index: SampleIndex, tmp_path: Path, name: str, build: Build) -> None:
    other = "pack" if name == "cache" else "cache"
    FORMATS[other](index, tmp_path / "store")
    before = caches.content(tmp_path / "store")
    with pytest.raises(StoreError, match=rf"holds a (decoded )?{other}: set data\.{name}\.path"):
        build(index, tmp_path / "store")
    assert caches.content(tmp_path / "store") == before
    shutil.rmtree(tmp_path / "store")
    build(index, tmp_path / "store")
