"""Synthetic data that the recipes are tried on: NIH's layout, and a small dataset of two classes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny


@pytest.fixture(scope="session")
def nih(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 synthetic X-rays as NIH ships them."""
    return tiny.phantom(tmp_path_factory.mktemp("nih"), images=160)


@pytest.fixture(scope="session")
def heart(tmp_path_factory: pytest.TempPathFactory, nih: Path) -> Path:
    """Two folders of images, normal and abnormal; a file's name begins with its patient."""
    root = tmp_path_factory.mktemp("heart")
    for row in tiny.rows(nih / "Data_Entry_2017_v2020.csv"):
        folder = root / ("normal" if row["Finding Labels"] == "No Finding" else "abnormal")
        folder.mkdir(exist_ok=True)
        shutil.copy(nih / "images" / row["Image Index"], folder)
    return root
