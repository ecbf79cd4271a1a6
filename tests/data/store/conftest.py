"""Folders of images that several tests of stores use."""

from __future__ import annotations

from pathlib import Path

import caches
import pytest

from distcxr.data.index import SampleIndex


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    """80 images, every ninth of them broken. They have to stay as they are."""
    root = tmp_path_factory.mktemp("many")
    (root / "images").mkdir()
    names = [f"images/{number:02d}.png" for number in range(80)]
    for number, name in enumerate(names):
        (root / name).write_bytes(caches.png(number) if number % 9 else b"broken")
    return caches.index_of(root, names)


@pytest.fixture
def index(tmp_path: Path) -> SampleIndex:
    """16 images of every sort, 3 of them broken."""
    return caches.dataset(tmp_path / "data")


@pytest.fixture
def folder(tmp_path: Path, index: SampleIndex) -> Path:
    """The cache of `index`."""
    caches.build(index, tmp_path / "cache")
    return tmp_path / "cache"
