"""Building a pack: whole or not there, whatever happens meanwhile, and brought up to date on request."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import caches
import numpy as np
import packs
import pytest
from packs import SHARD

from distcxr.data.index import SampleIndex
from distcxr.data.pixels.image_bytes import read_file
from distcxr.data.store import pack_building
from distcxr.data.store.pack_format import open_pack
from distcxr.data.store.pack_shards import read_shard_end
from distcxr.data.store.store_files import MADE, PACK, StoreError

pytest.importorskip("imagecodecs")

MANY = 60

BUILD = """
import os, signal, sys, time
from pathlib import Path
import caches
from distcxr.data.store import pack_building as build

root, folder, kill_after, num = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])
before = len(list(folder.glob("*.j2k")))
index = caches.index_of(root, [f"images/{number:02d}.png" for number in range(num)])
build.SHARD_IMAGES = 8

def report(what, done, total):
    if what == "encoding" and done >= kill_after:
        while len(list(folder.glob("*.j2k"))) < before + done // 8:  # shards reach the disk a moment later
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

build.build_pack(index, folder, workers=2, report=report)
"""


@pytest.fixture(scope="module")
def many(many: SampleIndex) -> SampleIndex:
    return many.take(np.arange(MANY))


@pytest.fixture
def made(index: SampleIndex, tmp_path: Path) -> tuple[SampleIndex, Path]:
    """16 images of every sort, 3 of them broken, and their pack of two shards."""
    packs.build(index, tmp_path / "pack")
    return index, tmp_path / "pack"


def killed(index: SampleIndex, folder: Path, kill_after: int) -> None:
    assert caches.run_python(BUILD, index.root, folder, kill_after, MANY).returncode == -signal.SIGKILL


def copied(index: SampleIndex, root: Path) -> SampleIndex:
    shutil.copytree(index.root, root)
    return caches.index_of(root, [os.fsdecode(path) for path in index.path.tolist()])


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_holds_every_image_bit_for_bit(made: tuple[SampleIndex, Path], tmp_path: Path) -> None:
    index, folder = made
    found = packs.holds(folder, index)
    assert set(found) == {os.fsdecode(path) for path in index.path.tolist()}
    assert {name for name, got in found.items() if isinstance(got, str)} == set(caches.BAD)
    assert len(packs.shards(folder)) == 2 and len(names(folder)) == 5
    built = packs.build(index, tmp_path / "another", workers=1)
    assert (built.num_images, built.num_shards, built.num_made, built.num_new) == (16, 2, 16, 0)
    for one, other in zip(packs.shards(folder), packs.shards(tmp_path / "another"), strict=True):
        assert one.read_bytes() == other.read_bytes()
    for path, why in caches.BAD.items():
        assert why in built.unreadable[path]


def test_each_codestream_is_decoded_again_before_it_counts(
    made: tuple[SampleIndex, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, _ = made
    real = pack_building.encode_htj2k

    def wrong(image: np.ndarray) -> bytes:
        changed = image.copy()
        changed[-1, -1] ^= 1
        return real(changed if image.shape == (9, 12) else image)

    monkeypatch.setattr(pack_building, "encode_htj2k", wrong)
    with pytest.raises(StoreError, match=r"images.*\.png: HTJ2K gives other pixels than the file"):
        packs.build(index, tmp_path / "wrong")
    assert not (tmp_path / "wrong" / "pack.json").exists() and not list((tmp_path / "wrong").glob("*.part"))


def test_killed_in_the_middle_it_resumes_with_whole_shards(many: SampleIndex, tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    killed(many, folder, 20)
    first = {file.name for file in packs.shards(folder)}
    assert len(first) == 2 and list(folder.glob("*.part"))
    with pytest.raises(StoreError, match="not finished"):
        open_pack(folder, many)
    killed(many, folder, 19)
    assert first < {file.name for file in packs.shards(folder)} and len(packs.shards(folder)) == 4
    built = packs.build(many, folder)
    assert (built.num_resumed, built.num_made) == (4 * SHARD, MANY - 4 * SHARD)
    assert (built.num_changed, built.num_damaged, built.num_new, len(built.unreadable)) == (0, 0, 0, 7)
    assert first < names(folder) and len(packs.holds(folder, many)) == MANY


def test_an_update_killed_in_the_middle_leaves_the_pack_as_it_was(many: SampleIndex, tmp_path: Path) -> None:
    index, folder = copied(many, tmp_path / "data"), tmp_path / "p"
    packs.build(index, folder)
    before = caches.content(folder)
    held = open_pack(folder, index)
    for number in (4, 12, 50):  # of three shards
        (index.root / f"images/{number:02d}.png").write_bytes(caches.png(100 + number))
    killed(index, folder, 20)
    after = caches.content(folder)
    assert before.items() <= after.items() and len(after) > len(before)
    built = packs.build(index, folder)
    assert (built.num_changed, built.num_made) == (3, 1)
    assert len(packs.holds(folder, index)) == MANY and len(names(folder)) == len(before)
    assert len(names(folder) - before.keys()) == 4  # three shards and the entries
    old = read_file(held.parts(np.array([4]))[0])[0]  # a running job has what it opened
    held.close()
    assert old in before[f"{sorted(before)[-8]}"] and (folder / sorted(before)[-8]).exists() is False


def test_what_changed_while_it_lay_unfinished_is_read_anew(many: SampleIndex, tmp_path: Path) -> None:
    index, folder = copied(many, tmp_path / "data"), tmp_path / "p"
    killed(index, folder, 20)
    (index.root / "images/01.png").write_bytes(caches.png(99, side=(41, 40)))
    built = packs.build(index, folder)
    assert (built.num_resumed, built.num_made) == (15, 45) and len(packs.holds(folder, index)) == MANY


@pytest.mark.parametrize("damage", ["json", "entries", "no entries", "all but shards"])
def test_without_its_table_nothing_is_encoded_again(made: tuple[SampleIndex, Path], damage: str) -> None:
    index, folder = made
    (entries,) = folder.glob("entries-*")
    before = [file.name for file in packs.shards(folder)]
    if damage == "json":
        (folder / "pack.json").write_bytes((folder / "pack.json").read_bytes()[:-9])
    elif damage == "entries":
        packs.flip(entries, 300)
    else:
        entries.unlink()
        (folder / "pack.json").unlink(missing_ok=damage != "no entries")
    with pytest.raises(StoreError, match=r"damaged|not finished|can't be read.*distcxr pack"):
        open_pack(folder, index)
    built = packs.build(index, folder)
    assert (built.num_made, built.num_resumed) == (0, 16)
    assert [file.name for file in packs.shards(folder)] == before
    packs.holds(folder, index)


@pytest.mark.parametrize("from_end", [30, 100, 300])
def test_a_shard_whose_own_table_is_damaged_is_not_trusted(made: tuple[SampleIndex, Path], from_end: int) -> None:
    index, folder = made
    shard = packs.shards(folder)[0]
    packs.flip(shard, shard.stat().st_size - from_end)
    assert packs.build(index, folder).num_made == 0  # pack.json and its table know better
    (folder / "pack.json").unlink()
    built = packs.build(index, folder)
    assert (built.num_made, built.num_resumed) == (8, 8)
    packs.holds(folder, index)


@pytest.mark.parametrize("version", ["version", "codec"])
def test_another_version_is_made_anew(
    made: tuple[SampleIndex, Path], monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    index, folder = made
    monkeypatch.setattr(PACK, version, 9)
    before = names(folder)
    with pytest.raises(StoreError, match="another version of distcxr"):
        open_pack(folder, index)
    assert packs.build(index, folder).num_made == 16
    assert len(names(folder)) == len(before) and not {name for name in before & names(folder) if name[0] in "se"}


def test_a_full_disk_is_an_error_before_and_on_the_way(
    made: tuple[SampleIndex, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, folder = made[0], tmp_path / "full"
    usage = type("Usage", (), {"free": 10_000})()
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: usage)
        with pytest.raises(StoreError, match=r"takes about 0\.0[23] MB.*0\.01 MB is free.*data\.pack\.path"):
            packs.build(index, folder)
    assert names(folder) == {"lock"}
    real, calls = os.fsync, 0

    def fails(fd: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 2:  # a shard and its name are there
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(StoreError, match=r"No space left.*run the same command again: what is done is kept"):
            packs.build(index, folder, workers=1)
    assert not list(folder.glob("*.part")) and not (folder / "pack.json").exists()
    built = packs.build(index, folder)
    assert (built.num_resumed, built.num_made) == (8, 8)


def test_a_jpeg_is_expected_to_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.JPG").write_bytes(b"x" * 1_000_000)
    usage = type("Usage", (), {"free": 2_000_000})()
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(StoreError, match=r"takes about 3\.00 MB.*2\.00 MB is free"):
        packs.build(caches.index_of(tmp_path, ["one.JPG"]), tmp_path / "pack")


# An earlier pack brought up to date.


def replace(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 10**9))


CHANGES: dict[str, tuple[Callable[[Path], None], int]] = {
    "another image": (lambda root: replace(root / "images/01.png", caches.png(99)), 3),
    "mended": (lambda root: replace(root / "images/05.png", caches.png(98)), 2),
    "broken": (lambda root: replace(root / "images/03.png", b"broken"), 4),
    "broken otherwise": (lambda root: replace(root / "images/05.png", b"broken"), 3),
}


@pytest.mark.parametrize("name", CHANGES)
def test_only_what_changed_is_encoded_again(made: tuple[SampleIndex, Path], name: str) -> None:
    index, folder = made
    alter, num_unreadable = CHANGES[name]
    before, held = packs.shards(folder), open_pack(folder, index)
    alter(index.root)
    with pytest.raises(
        StoreError, match=r"1 of 16 images have changed since it was built, such as images/0.\.png.*distcxr pack"
    ):
        held.check_sources()
    built = packs.build(index, folder)
    assert (built.num_changed, built.num_made, built.num_damaged, built.num_new) == (1, 1, 0, 0)
    assert len(built.unreadable) == num_unreadable
    after = packs.shards(folder)
    assert len(after) == 2 and after[0] == before[1] and not before[0].exists()
    packs.holds(folder, index)
    pack = open_pack(folder, index)
    pack.check_sources()
    pack.close()
    held.close()


def test_a_touch_writes_only_the_table(made: tuple[SampleIndex, Path]) -> None:
    index, folder = made
    before = caches.content(folder)
    os.utime(index.root / "images/01.png", ns=(0, 5))
    assert packs.build(index, folder).num_made == 0
    after = caches.content(folder)
    assert {name for name in before if name in after} == {"lock", "pack.json", *(f.name for f in packs.shards(folder))}
    pack = open_pack(folder, index)
    pack.check_sources()
    pack.close()


def test_two_recipes_may_share_a_pack(made: tuple[SampleIndex, Path]) -> None:
    """What one of them does not name is kept and kept up to date all the same."""
    index, folder = made
    replace(index.root / "images/01.png", caches.png(99, side=(7, 5)))
    one = index.take(np.flatnonzero(index.path == b"images/04.png"))
    built = packs.build(one, folder)
    assert (built.num_images, built.num_changed, built.num_made) == (16, 1, 1)
    found = packs.holds(folder, index)["images/01.png"]
    assert isinstance(found, np.ndarray) and found.shape == (7, 5)


def test_damaged_and_new_images_are_made(made: tuple[SampleIndex, Path], tmp_path: Path) -> None:
    index, _ = made
    folder = tmp_path / "less"
    packs.build(index.take(np.flatnonzero(~np.isin(index.path, [b"images/04.png", b"images_2/12.png"]))), folder)
    first, second = packs.shards(folder)
    packs.flip(first, 200)
    built = packs.build(index, folder)
    assert (built.num_changed, built.num_damaged, built.num_new, built.num_made) == (0, 1, 2, 3)
    assert len(packs.holds(folder, index)) == 16 and not first.exists() and second.exists()


@pytest.mark.parametrize("length", [0, 100, -1])
def test_a_shard_cut_short_is_mended(made: tuple[SampleIndex, Path], length: int) -> None:
    index, folder = made
    shard = packs.shards(folder)[1]
    shard.write_bytes(shard.read_bytes()[:length])
    assert packs.build(index, folder).num_made <= 8
    packs.holds(folder, index)


def test_a_missing_shard_is_made_and_the_others_stay(made: tuple[SampleIndex, Path]) -> None:
    index, folder = made
    first, second = packs.shards(folder)
    first.unlink()
    with pytest.raises(StoreError, match=f"{first.name} can't be read: No such file"):
        open_pack(folder, index)
    rest = index.take(np.flatnonzero(np.isin(index.path, read_held(second))))  # another recipe may want the others
    built = packs.build(rest, folder)
    assert (built.num_made, built.num_damaged, built.num_resumed) == (8, 8, 0)
    assert second.exists() and len(packs.holds(folder, index)) == 16


def test_small_shards_are_joined_when_images_come(made: tuple[SampleIndex, Path], tmp_path: Path) -> None:
    index = made[0]
    for num in (8, 9, 10, 11, 13):
        built = packs.build(index.take(np.argsort(index.path)[:num]), tmp_path / "growing")
        assert (built.num_images, built.num_shards) == (num, 1 + (num > 8))
    packs.holds(tmp_path / "growing", index)


def test_images_without_a_file_stay_and_are_checked(made: tuple[SampleIndex, Path]) -> None:
    index, folder = made
    shutil.rmtree(index.root / "images")
    built = packs.build(index, folder)
    assert (built.num_made, built.num_without_file, built.num_images) == (0, 9, 16)
    shutil.rmtree(index.root / "images_2")
    assert packs.build(index, folder).num_without_file == 16
    before = caches.content(folder)
    packs.flip(packs.shards(folder)[0], 200)
    damaged = caches.content(folder)
    with pytest.raises(
        StoreError,
        match=r"1 damaged images of which the files are not there, such as images/01.*copy shard-00000\S+ again",
    ):
        packs.build(index, folder)
    assert caches.content(folder) == damaged != before
    os.truncate(packs.shards(folder)[0], 10)  # more images than the message names: their shards are named all the same
    packs.flip(packs.shards(folder)[1], 200)
    with pytest.raises(StoreError, match=r"[5-9] damaged images .*copy shard-00000\S+, shard-00001\S+ again"):
        packs.build(index, folder)


def test_images_of_a_missing_shard_do_not_leave_the_pack_unnoticed(made: tuple[SampleIndex, Path]) -> None:
    index, folder = made
    shard = packs.shards(folder)[0]
    held = read_held(shard)
    shard.unlink()
    first = index.path == held[0]
    (index.root / os.fsdecode(held[0])).rename(index.root / "away")
    before = caches.content(folder)
    with pytest.raises(
        StoreError, match=rf"{shard.name} is missing, and so are the files of 1 of its images: copy it again"
    ):
        packs.build(index.take(np.flatnonzero(~first)), folder)
    assert caches.content(folder) == before
    (folder / "pack.json").unlink()
    assert packs.build(index.take(np.flatnonzero(~first)), folder).num_images == 15


def read_held(shard: Path) -> list[bytes]:
    """Paths of the readable images in a shard."""
    with shard.open("rb") as stream:
        entries, _ = read_shard_end(stream.fileno())
    paths: list[bytes] = entries["path"][entries["state"] == MADE].tolist()
    return paths
