"""Building a decoded cache: whole or not there, whatever happens meanwhile, and brought up to date on request."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import caches
import numpy as np
import pytest
from caches import SIZE

from distcxr.data.index import SampleIndex
from distcxr.data.store.cache_format import open_cache
from distcxr.data.store.store_files import StoreError

MANY = 80

BUILD = """
import os, resource, signal, sys
from pathlib import Path
import caches, numpy as np
from distcxr.data.store.cache_building import build_cache

root, folder, kill_after, max_file, num = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])
index = caches.index_of(root, [f"images/{number:02d}.png" for number in range(num)])
resource.setrlimit(resource.RLIMIT_FSIZE, (max_file, resource.RLIM_INFINITY))

def report(what, done, total):
    if done >= kill_after:
        os.kill(os.getpid(), signal.SIGKILL)

build_cache(index, folder, caches.SIZE, workers=2, report=report)
"""


def in_process(index: SampleIndex, folder: Path, kill_after: int = 10**6, max_file: int = 10**9) -> tuple[int, str]:
    done = caches.run_python(BUILD, index.root, folder, kill_after, max_file, MANY)
    return done.returncode, done.stderr


def same(first: Path, second: Path) -> bool:
    """Whether two caches hold the same bytes, under whatever names."""
    kinds = ("pixels-*.u8", "entries-*.npy")
    files = [[file.read_bytes() for kind in kinds for file in folder.glob(kind)] for folder in (first, second)]
    assert len(files[0]) == len(files[1]) == 2
    return files[0] == files[1] and len(list(first.iterdir())) == len(list(second.iterdir())) == 4


@pytest.fixture(scope="module")
def straight(many: SampleIndex, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight") / "cache"
    built = caches.build(many, folder)
    assert (built.num_images, built.num_made, built.num_resumed) == (MANY, MANY, 0)
    assert len(built.unreadable) == 9
    return folder


def test_killed_in_the_middle_and_resumed_is_the_same_cache(many: SampleIndex, straight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    for kill_after in (32, 16):
        assert in_process(many, folder, kill_after)[0] == -signal.SIGKILL
        with pytest.raises(StoreError, match="not finished"):
            open_cache(folder, many, SIZE)
    # What a power cut may leave besides: pixels that never reached the disk, and an entry that did not.
    with caches.pixels_file(folder).open("r+b") as pixels:
        pixels.write(bytes(3 * SIZE * SIZE))
    built = caches.build(many, folder)
    assert 0 < built.num_resumed < MANY and built.num_resumed + built.num_made == MANY
    assert same(folder, straight)


def test_what_changed_while_it_lay_unfinished_is_read_anew(many: SampleIndex, straight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    assert in_process(many, folder, 64)[0] == -signal.SIGKILL
    times = {}
    for name in many.path.tolist():
        file = many.root / os.fsdecode(name)
        times[file] = file.stat().st_mtime_ns
        os.utime(file, ns=(0, times[file] + 10**9))
    try:
        assert caches.build(many, folder).num_resumed == 0
    finally:
        for file, mtime_ns in times.items():
            os.utime(file, ns=(0, mtime_ns))


@pytest.mark.parametrize("damage", ["json", "entries", "pixels"])
def test_a_damaged_unfinished_build_starts_anew(many: SampleIndex, straight: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "cache"
    assert in_process(many, folder, 32)[0] == -signal.SIGKILL
    file = {"json": folder / "building.json", "entries": folder / "building.entries"}.get(damage)
    if file is None:
        caches.pixels_file(folder).unlink()
    else:
        file.write_bytes(file.read_bytes()[:-100])
    assert caches.build(many, folder).num_resumed == 0
    assert same(folder, straight)


def test_another_size_does_not_resume_it(many: SampleIndex, tmp_path: Path) -> None:
    assert in_process(many, tmp_path / "cache", 32)[0] == -signal.SIGKILL
    assert caches.build(many, tmp_path / "cache", size=16).num_resumed == 0
    assert len(open_cache(tmp_path / "cache", many, 16).entries) == MANY


def test_a_full_disk_is_an_error_at_once_and_leaves_nothing(many: SampleIndex, straight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    code, output = in_process(many, folder, max_file=MANY * SIZE * SIZE - 1)
    assert code == 1 and "StoreError" in output.splitlines()[-1]
    assert "File too large. It takes 0.05 MB and" in output and "data.cache.path" in output
    assert list(folder.glob("pixels-*")) == []
    with pytest.raises(StoreError, match="there is no decoded cache"):
        open_cache(folder, many, SIZE)
    assert caches.build(many, folder).num_resumed == 0
    assert same(folder, straight)


def test_too_little_space_names_both_sizes(many: SampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 10_000_000})()
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(StoreError, match=r"takes 20\.97 MB and 10\.00 MB is free"):
        caches.build(many, tmp_path / "cache", size=512)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_runs_full_on_the_way(
    many: SampleIndex, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    folder, real, calls = tmp_path / "cache", os.pwrite, 0

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls > 60:
            raise OSError(number, os.strerror(number))
        return real(fd, data[: 1 + len(data) // 2], offset)  # short writes on the way there

    def no_promise(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not here")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        patch.setattr(os, "posix_fallocate", no_promise)
        with pytest.raises(StoreError, match=f"{os.strerror(number)}.*what is done is kept"):
            caches.build(many, folder)
    with pytest.raises(StoreError, match="not finished"):
        open_cache(folder, many, SIZE)
    assert caches.build(many, folder).num_resumed > 0
    assert same(folder, straight)


@pytest.mark.parametrize("call", ["posix_fallocate", "fsync"])
def test_no_step_may_fail_silently(
    many: SampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StoreError, match="No space left"):
        caches.build(many, tmp_path / "cache")
    assert not (tmp_path / "cache" / "cache.json").exists()


# An earlier cache brought up to date.


def replace(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 10**9))


def touch(index: SampleIndex) -> None:
    os.utime(index.root / "images/01.png", ns=(0, 5))


def change(index: SampleIndex) -> None:
    replace(index.root / "images/01.png", caches.png(99))


def mend(index: SampleIndex) -> None:
    replace(index.root / "images/05.png", caches.png(98))


def break_(index: SampleIndex) -> None:
    replace(index.root / "images/03.png", b"broken")


def remove(index: SampleIndex) -> None:
    (index.root / "images/02.png").unlink()


CHANGES: dict[Callable[[SampleIndex], None], tuple[int, int]] = {
    touch: (0, 3), change: (1, 3), mend: (1, 2), break_: (1, 4), remove: (1, 4),
}  # fmt: skip


@pytest.mark.parametrize("alter", CHANGES)
def test_only_what_changed_is_read_again(
    index: SampleIndex, folder: Path, alter: Callable[[SampleIndex], None]
) -> None:
    before = caches.content(folder)
    held = open_cache(folder, index, SIZE)
    alter(index)
    with pytest.raises(StoreError, match="changed"):
        held.check_sources()
    built = caches.build(index, folder)
    num_changed, num_unreadable = CHANGES[alter]
    assert (built.num_changed, built.num_damaged, built.num_new) == (num_changed, 0, 0)
    assert built.num_made == num_changed and len(built.unreadable) == num_unreadable
    cache = open_cache(folder, index, SIZE)
    cache.check_sources()
    out = np.empty((len(index), SIZE * SIZE), dtype=np.uint8)
    cache.gather(cache.row_of, out)
    np.testing.assert_array_equal(out, [caches.expected(index, row).reshape(-1) for row in range(len(index))])
    held.gather(held.row_of, out)  # a running job has its old pixels still
    old = next(data for name, data in before.items() if name.startswith("pixels"))
    assert out[np.argsort(held.row_of)].tobytes() == old
    assert len(caches.content(folder)) == 4


def test_damaged_pixels_and_new_images_are_made(index: SampleIndex, tmp_path: Path) -> None:
    folder = tmp_path / "less"
    caches.build(index.take(np.flatnonzero(index.path != b"images/04.png")), folder)
    file = caches.pixels_file(folder)
    data = bytearray(file.read_bytes())
    data[3 * SIZE * SIZE] ^= 1
    file.write_bytes(data)
    built = caches.build(index, folder)
    assert (built.num_changed, built.num_damaged, built.num_new, built.num_made) == (0, 1, 1, 2)
    caches.build(index, tmp_path / "straight")
    assert same(folder, tmp_path / "straight")
