from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from run_folders import write_run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; not to be changed."""
    return write_run(tmp_path_factory.mktemp("runs") / "densenet121" / "monday")


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / "run", ignore=shutil.ignore_patterns("report.*")))
