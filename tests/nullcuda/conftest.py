"""The null CUDA, built once, and the images that its scenarios read."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import host_kernels
import pytest
import tiny
from nullcuda import build
from nullcuda.scenario import Found, found

from distcxr.data.read import read_index
from distcxr.data.store.cache_building import build_cache
from distcxr.data.store.cache_format import cache_folder

Run = Callable[..., Found]


@pytest.fixture(scope="session")
def run_scenario() -> Iterator[Run]:
    """`found` with the library and the data; skips where the library can't be built."""
    if (reason := build.why_not()) is not None:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="nullcuda_") as folder:
        library, data = build.build(Path(folder)), Path(folder) / "data"
        data.mkdir()
        _write_images(data)
        kernels = host_kernels.compiled(host_kernels.SOURCE)
        yield partial(found, folder=data, library=library, NULLCUDA_KERNELS=str(kernels))


def _write_images(folder: Path) -> None:
    root = tiny.phantom(folder)
    data = tiny.recipe(folder, "data.loader=cache").data
    index = read_index(data, root)
    build_cache(index, cache_folder(data, index.root), data.image_size, workers=1)
