"""A finished run that several files of tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of three epochs, with images drawn."""
    folder = tmp_path_factory.mktemp("finished")
    tiny.phantom(folder)
    pictures = ("logging.images=4", "logging.val_images=4", "logging.val_images_every=2")
    tiny.train(folder, f"output={folder / 'run'}", *pictures, tiny.BF16)
    return folder / "run"
