"""Real X-rays for tests: the two that come with the repository, and more from DISTCXR_NIH_ROOT."""

from __future__ import annotations

import os
from pathlib import Path


def real_xrays(every: int) -> list[Path]:
    """The fixtures, then every so many-th image of the dataset, if there is one."""
    files = sorted((Path(__file__).parent / "fixtures" / "nih").glob("*.png"))
    assert len(files) == 2
    root = os.environ.get("DISTCXR_NIH_ROOT")
    return files + (sorted((Path(root) / "images").glob("*.png"))[::every] if root else [])
