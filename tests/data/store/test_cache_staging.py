"""Copying a cache to a node's own disk: once for all ranks, whole or not at all."""

from __future__ import annotations

import errno
import logging
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import caches
import numpy as np
import pytest
from caches import SIZE

from distcxr.data.index import SampleIndex
from distcxr.data.store.cache_format import open_cache
from distcxr.data.store.cache_staging import stage
from distcxr.data.store.store_files import StoreError

RANK = """
import logging, sys, time
from pathlib import Path
from distcxr.data.store.cache_staging import stage
import distcxr.data.store.cache_staging as module

logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
copy = module.shutil.copyfile
module.shutil.copyfile = lambda *files: (time.sleep(0.2), copy(*files))
print("staged", stage(Path(sys.argv[1]), Path(sys.argv[2])))
"""


def whole(index: SampleIndex, folder: Path) -> bool:
    cache = open_cache(folder, index, SIZE)
    out = np.empty((len(index), SIZE * SIZE), dtype=np.uint8)
    cache.gather(cache.row_of, out)
    return all((out[row].reshape(SIZE, SIZE) == caches.expected(index, row)).all() for row in range(len(index)))


def test_four_ranks_copy_once(index: SampleIndex, folder: Path, tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", RANK, str(folder), str(tmp_path / "local")]
    ranks = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environ, text=True) for _ in range(4)]
    output = [rank.communicate(timeout=60)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * 4
    assert sum(": copied 0.01 MB from " in text for text in output) == 1
    assert sum("the copy of" in text for text in output) == 3
    (target,) = {text.split("staged ")[1].strip() for text in output}
    assert whole(index, Path(target)) and Path(target).parent == tmp_path / "local"


def test_another_build_replaces_the_copy_and_other_caches_stay(
    index: SampleIndex, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "distcxr")
    local = tmp_path / "local"
    first = stage(folder, local)
    shutil.copytree(folder, tmp_path / "elsewhere" / "cache")
    other = stage(tmp_path / "elsewhere" / "cache", local)
    assert other != first
    held = open_cache(first, index, SIZE)
    old = caches.pixels_file(first)
    (index.root / "images/01.png").write_bytes(caches.png(50))
    caches.build(index, folder)
    assert stage(folder, local) == first
    assert whole(index, first) and not old.exists() and old.name in caches.content(other)
    held.gather(held.row_of, np.empty((len(index), SIZE * SIZE), dtype=np.uint8))  # a running job has its file still
    caplog.clear()
    assert stage(folder, local) == first
    assert "the copy of" in caplog.text


@pytest.mark.parametrize("harm", ["cut short", "killed"])
def test_a_copy_that_is_not_whole_is_made_again(index: SampleIndex, folder: Path, tmp_path: Path, harm: str) -> None:
    target = stage(folder, tmp_path / "local")
    if harm == "killed":
        (target / "cache.json").unlink()
    os.truncate(caches.pixels_file(target), 100)
    assert whole(index, stage(folder, tmp_path / "local"))


def test_too_little_space(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 4_000})()
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    message = rf"stage_to=.*local: the cache in .*cache takes 0\.01 MB and 0\.00 MB is free in .* on {platform.node()};"
    with pytest.raises(StoreError, match=message):
        stage(folder, tmp_path / "local")


def test_variables_are_filled_in_on_each_node(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "own"))
    monkeypatch.setenv("JOB", "7")
    assert stage(folder, Path("$NODE_DISK/${JOB}x")).parent == tmp_path / "own" / "7x"
    monkeypatch.setenv("JOB", "")
    with pytest.raises(StoreError, match=rf"stage_to=.*: \$JOB is not set on {platform.node()}"):
        stage(folder, Path("$NODE_DISK/$JOB"))


def test_a_disk_that_runs_full_leaves_no_copy(
    index: SampleIndex, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, to: Path) -> None:
        Path(to).write_bytes(Path(source).read_bytes()[:50])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfile", full)
        with pytest.raises(StoreError, match=r"can't be copied to .*local.*: No space left"):
            stage(folder, tmp_path / "local")
    assert whole(index, stage(folder, tmp_path / "local"))


def test_a_place_that_can_not_be_written_and_a_cache_that_is_not_there(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"can't be copied to .*Not a directory"):
        stage(folder, tmp_path / "file")
    with pytest.raises(StoreError, match=r"there is no decoded cache in .*nowhere"):
        stage(tmp_path / "nowhere", tmp_path / "local")
    caches.pixels_file(folder).unlink()
    with pytest.raises(StoreError, match="No such file"):
        stage(folder, tmp_path / "local")
