"""Opening a decoded cache: what it gives is what the files hold, and whatever is wrong with it is an error."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import caches
import numpy as np
import pytest
from caches import SIZE

from distcxr.data.index import SampleIndex
from distcxr.data.pixels.decode import decode_grey
from distcxr.data.pixels.resize import resize_grey
from distcxr.data.store.cache_format import cache_folder, open_cache
from distcxr.data.store.store_files import CACHE, StoreError, read_json, write_json
from distcxr.recipe.data import Cache, Data


def gather(index: SampleIndex, folder: Path, rows: np.ndarray) -> np.ndarray:
    cache = open_cache(folder, index, SIZE)
    out = np.full((len(rows), SIZE * SIZE), 7, dtype=np.uint8)
    try:
        cache.gather(cache.row_of[rows], out)
    finally:
        cache.close()
    return out


def test_where_it_is(tmp_path: Path) -> None:
    assert cache_folder(Data(image_size=320), tmp_path) == tmp_path / "distcxr-cache" / "320px"
    assert cache_folder(Data(cache=Cache(path=tmp_path / "x")), Path("/data")) == tmp_path / "x"


def test_every_kind_of_file_comes_back_as_it_was_decoded(index: SampleIndex, folder: Path) -> None:
    rows = np.arange(len(index))
    wanted = np.stack([caches.expected(index, row).reshape(-1) for row in rows])
    assert (wanted.max(axis=1) > 0).sum() == len(index) - len(caches.BAD)
    np.testing.assert_array_equal(gather(index, folder, rows), wanted)
    cache = open_cache(folder, index, SIZE)
    out = np.empty_like(wanted)
    for _ in range(2):  # the first time with system calls, the second from the map
        cache.gather(cache.row_of[rows], out)
        np.testing.assert_array_equal(out, wanted)
        out[:] = 9
    for path, word in caches.BAD.items():
        (row,) = np.flatnonzero(index.path == path.encode())
        assert word in cache.reason(int(cache.row_of[row]))
    cache.check_sources()


def test_a_part_of_the_index_opens_too(index: SampleIndex, folder: Path) -> None:
    part = index.take([3, 1, 9])
    np.testing.assert_array_equal(gather(part, folder, np.arange(3)), gather(index, folder, np.array([3, 1, 9])))


def refused(index: SampleIndex, folder: Path, reason: str, size: int = SIZE) -> None:
    with pytest.raises(StoreError, match=f"(?s){re.escape(str(folder))}.*{reason}.*`distcxr cache RECIPE`"):
        open_cache(folder, index, size)


def test_none_there(index: SampleIndex, tmp_path: Path) -> None:
    refused(index, tmp_path / "nowhere", "")


def test_unfinished(index: SampleIndex, folder: Path) -> None:
    (folder / "cache.json").rename(folder / "building.json")
    refused(index, folder, "not finished")


def test_another_size(index: SampleIndex, folder: Path) -> None:
    refused(index, folder, "24 pixels a side and data.image_size=32", size=32)


@pytest.mark.parametrize("version", ["version", "codec"])
def test_another_version(index: SampleIndex, folder: Path, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CACHE, version, 99)
    refused(index, folder, "another version")


def test_images_that_are_not_in_it(index: SampleIndex, folder: Path) -> None:
    names = [os.fsdecode(path) for path in index.path.tolist()]
    refused(caches.index_of(index.root, [*names, "images/a.png", "zz.png"]), folder, "2 of 18 .*images/a.png, zz.png")


@pytest.mark.parametrize("change", ["shorter", "longer", "gone"])
def test_pixels_of_another_length(index: SampleIndex, folder: Path, change: str) -> None:
    file = caches.pixels_file(folder)
    if change == "gone":
        file.unlink()
    else:
        os.truncate(file, file.stat().st_size + (1 if change == "longer" else -1))
    refused(index, folder, "No such file" if change == "gone" else "instead of 9,216")


def test_every_flipped_bit_of_the_small_files_is_noticed(index: SampleIndex, folder: Path) -> None:
    rng = np.random.default_rng(2)
    for file in (folder / "cache.json", next(folder.glob("entries-*.npy"))):
        whole = file.read_bytes()
        for position in rng.integers(0, len(whole), 60).tolist():
            flipped = bytearray(whole)
            flipped[position] ^= 1 << int(rng.integers(8))
            file.write_bytes(flipped)
            try:
                open_cache(folder, index, SIZE).close()
            except StoreError:
                continue
            before, after = json.loads(whole), json.loads(flipped)  # white space, or a capital in an escape
            assert before == after
        file.write_bytes(whole)


def test_a_flipped_bit_in_the_pixels_names_the_image(index: SampleIndex, folder: Path) -> None:
    file = caches.pixels_file(folder)
    data = bytearray(file.read_bytes())
    data[5 * SIZE * SIZE + 300] ^= 16
    file.write_bytes(data)
    (bad,) = np.flatnonzero(index.path == b"images/05.png")  # sorted by path it is number 5
    rest = np.delete(np.arange(len(index)), bad)
    assert len(gather(index, folder, rest)) == len(rest)
    with pytest.raises(RuntimeError, match=r"images/05\.png in it are damaged.*`distcxr cache RECIPE`"):
        gather(index, folder, np.array([bad]))


def test_cut_short_while_in_use_is_an_error_and_no_crash(index: SampleIndex, folder: Path) -> None:
    cache = open_cache(folder, index, SIZE)
    rows, out = np.arange(8), np.empty((8, SIZE * SIZE), dtype=np.uint8)
    cache.gather(rows, out)
    os.truncate(caches.pixels_file(folder), 0)
    for again in (rows, np.arange(8, 16)):
        with pytest.raises(RuntimeError, match=r"cut short|damaged"):
            cache.gather(again, out)


def test_changed_sources_are_named(index: SampleIndex, folder: Path) -> None:
    cache = open_cache(folder, index, SIZE)
    file = index.root / "images/03.png"
    state = file.stat()
    os.utime(file, ns=(0, state.st_mtime_ns + 1))
    with pytest.raises(StoreError, match=r"1 of 16 images have changed .*images/03\.png\. .*`distcxr cache RECIPE`"):
        cache.check_sources()
    os.utime(file, ns=(0, state.st_mtime_ns))
    cache.check_sources()
    file.write_bytes(file.read_bytes() + b"x")
    os.utime(file, ns=(0, state.st_mtime_ns))
    with pytest.raises(StoreError, match="images/03"):
        cache.check_sources()
    file.unlink()
    with pytest.raises(StoreError, match="images/03"):
        cache.check_sources()


def test_names_that_are_no_text(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    name = os.fsdecode(b"\xff\xe9.png")
    (root / name).write_bytes(b"")
    (root / "é.png").write_bytes(caches.png(1))
    index = caches.index_of(root, [name, "é.png"])
    caches.build(index, tmp_path / "cache")
    cache = open_cache(tmp_path / "cache", index, SIZE)
    cache.check_sources()
    assert cache.reason(int(cache.row_of[0])) == "zero bytes"


def test_json_is_replaced_or_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})
    monkeypatch.setattr("distcxr.runfolder.whole.flush", lambda _: (_ for _ in ()).throw(OSError("no power")))
    with pytest.raises(OSError, match="no power"):
        write_json(file, {"a": 2})
    assert read_json(file) == {"a": 1}


def test_pixels_are_those_of_this_codec() -> None:
    """If this fails and the change is meant, raise `CODEC`, so that older caches are refused, and write it here."""
    digest = hashlib.sha256()
    for file in sorted((Path(__file__).parents[2] / "fixtures" / "nih").glob("*.png")):
        for size in (224, 96):
            digest.update(resize_grey(decode_grey(file.read_bytes()), size).tobytes())
    assert (CACHE.codec, digest.hexdigest()[:16]) == (1, "34f77c4de26df8fc")
