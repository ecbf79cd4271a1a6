"""Opening a pack: what is refused, what is not looked for, and a dataset without its folders."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
from pathlib import Path

import caches
import numpy as np
import packs
import pytest

from distcxr.data.dataset import open_dataset
from distcxr.data.index import SampleIndex
from distcxr.data.pixels.image_bytes import Part, UnreadableImage, read_file
from distcxr.data.read import read_index
from distcxr.data.sources.image_paths import FileListing, Listing
from distcxr.data.store import opened_store
from distcxr.data.store.pack_format import Both, Pack, PackListing, open_pack, pack_and_files, pack_folder
from distcxr.data.store.store_files import StoreError, read_json, write_json
from distcxr.phantom.writing import write_phantom
from distcxr.recipe import Recipe
from distcxr.recipe.data import Data

pytest.importorskip("imagecodecs")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    index = caches.dataset(tmp_path_factory.mktemp("data"))
    packs.build(index, index.root / "distcxr-pack")
    return index


@pytest.fixture
def folder(index: SampleIndex, tmp_path: Path) -> Path:
    """A copy of the pack, to be changed."""
    shutil.copytree(index.root / "distcxr-pack", tmp_path / "pack")
    return tmp_path / "pack"


def read(parts: list[Part]) -> list[bytes | str]:
    found: list[bytes | str] = []
    for part in parts:
        try:
            found.append(read_file(part)[0])
        except UnreadableImage as error:
            found.append(str(error))
    return found


def test_where_it_is(tmp_path: Path) -> None:
    assert pack_folder(Data(), tmp_path) == tmp_path / "distcxr-pack"
    elsewhere = Data.model_validate({"pack": {"path": "~/pack"}})
    assert pack_folder(elsewhere, tmp_path) == Path.home() / "pack"


def test_parts_come_in_the_order_of_the_index(index: SampleIndex, folder: Path) -> None:
    pack = open_pack(folder, index)
    rows = np.array([3, 0, 15, 3])
    parts = pack.parts(rows)
    streams = {file.name: file.read_bytes() for file in packs.shards(folder)}
    for row, part in zip(rows.tolist(), parts, strict=True):
        name = os.fsdecode(index.path[row])
        assert pack.path(pack.row_of[row]) == name
        assert (part.reason != "") == (name in caches.BAD)
        if not part.reason:
            whole = streams[Path(part.file).name]
            assert read_file(part)[0] == whole[part.offset : part.offset + part.num_bytes]
    pack.close()


@pytest.mark.parametrize("at", ["pread", "size"])
def test_a_damaged_image_is_named_and_the_others_are_read(index: SampleIndex, folder: Path, at: str) -> None:
    pack = Pack(folder)
    parts = pack.parts(np.arange(16))
    good = read(parts)
    shard = packs.shards(folder)[1]
    last = parts[-1]
    if at == "pread":
        packs.flip(shard, last.offset + last.num_bytes // 2)
    else:
        os.truncate(shard, last.offset + last.num_bytes - 1)
    bad = read(parts)
    assert bad[:-1] == good[:-1]
    what = "damaged" if at == "pread" else "cut short"
    assert bad[-1] == f"{shard} is {what} there; `distcxr pack RECIPE` repairs it"
    pack.close()
    again = Pack(folder)  # opening it is no error: training names the image and continues
    assert read(again.parts(np.arange(16))) == bad
    again.close()


def in_another_process(parts: list[Part], sender: multiprocessing.connection.Connection) -> None:
    sender.send(read(parts))


def test_other_processes_read_what_this_one_holds_open(index: SampleIndex, folder: Path) -> None:
    """Even if the files were removed meanwhile, as a new build does."""
    pack = open_pack(folder, index)
    parts = pack.parts(np.arange(16))
    expected = read(parts)
    shutil.rmtree(folder)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=in_another_process, args=(parts, sender))
    process.start()
    assert receiver.poll(60) and receiver.recv() == expected == read(parts)
    process.join()
    pack.close()


def test_where_a_process_may_not_be_looked_into_the_name_serves(index: SampleIndex, folder: Path) -> None:
    pack = open_pack(folder, index)
    parts = pack.parts(np.arange(16))
    expected = read(parts)
    assert read([part._replace(pid=2**22 + 1) for part in parts]) == expected
    pack.close()
    shutil.rmtree(folder)
    (answer,) = read([next(part for part in parts if not part.reason)._replace(pid=2**22 + 2)])
    assert isinstance(answer, str) and answer.endswith("can't be read: No such file or directory")


def test_what_can_not_be_used_is_refused_with_the_way_out(index: SampleIndex, folder: Path, tmp_path: Path) -> None:
    def refused(match: str, other: SampleIndex = index) -> None:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(StoreError, match=match) as error:
            open_pack(folder, other)
        assert "distcxr pack RECIPE" in str(error.value) and len(os.listdir("/proc/self/fd")) == before

    strangers = caches.index_of(index.root, [*map(os.fsdecode, index.path.tolist()), "zz.png", "00.png"])
    refused(r"2 of 18 images are not in it, such as zz\.png, 00\.png", strangers)
    meta = read_json(folder / "pack.json")
    write_json(folder / "pack.json", meta | {"format": 2})
    refused(r"another version of distcxr \(\(2, 1\), this one has \(1, 1\)\)")
    write_json(folder / "pack.json", meta)
    (entries,) = folder.glob("entries-*")
    packs.flip(entries, 200)
    refused(f"{entries.name} is damaged")
    packs.flip(entries, 200)
    packs.shards(folder)[1].unlink()
    refused("can't be read: No such file")
    (folder / "pack.json").write_text("{}")
    refused("pack.json is damaged")
    (folder / "pack.json").unlink()
    refused("is not finished")
    shutil.rmtree(folder)
    refused("there is no pack in")


def test_too_many_files_are_another_matter(index: SampleIndex, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(opened_store, "open_regular", refuse)
    with pytest.raises(StoreError, match=r"has 2 files, more than this process may open.*ulimit -n"):
        open_pack(folder, index)


def test_files_that_are_there_are_compared_and_others_not_looked_for(folder: Path, tmp_path: Path) -> None:
    index = caches.dataset(tmp_path / "data")
    packs.build(index, tmp_path / "data" / "pack")
    pack = open_pack(tmp_path / "data" / "pack", index)
    pack.check_sources()
    (index.root / "images/02.png").unlink()
    shutil.rmtree(index.root / "images_2")
    pack.check_sources()
    os.utime(index.root / "images/01.png", ns=(0, 5))
    with pytest.raises(StoreError, match=r"1 of 16 images have changed .*, such as images/01\.png\. Bring"):
        pack.check_sources()
    shutil.rmtree(index.root / "images")
    pack.check_sources()
    pack.close()


def test_a_listing_of_the_pack_is_that_of_the_folders(index: SampleIndex) -> None:
    listings: list[Listing] = [PackListing(index.root / "distcxr-pack"), FileListing(index.root)]
    listings.append(Both(*listings))
    for folder in ("images", "images_2", "", "nothing", "images/01.png", "images/nothing"):
        found = [sorted(set(listing.names(folder)) - {"distcxr-pack"}) for listing in listings]
        assert found[0] == found[1] == found[2], folder
        assert len({tuple(set(listing.folders(folder)) - {"distcxr-pack"}) for listing in listings}) == 1, folder


@pytest.mark.parametrize("dataset", ["nih", "csv", "folders", "chexpert"])
def test_every_dataset_reads_the_same_without_its_images(dataset: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_phantom(root, images=20, size=32, workers=1, layout=dataset)
    files = Data.model_validate({"dataset": dataset, "findings": "all"})
    with_pack = files.model_copy(update={"source": "pack"})
    whole = read_index(files, root)
    with pytest.raises(StoreError, match=r"there is no pack in .*distcxr pack RECIPE"):
        read_index(with_pack, root)
    packs.build(whole, pack_folder(files, whole.root))
    for name in {path.split(b"/")[0] for path in whole.path.tolist()}:
        shutil.rmtree(whole.root / os.fsdecode(name))
    for read_again in (read_index(with_pack, root), read_index(files, root, pack_and_files(files))):
        assert read_again.label_hash == whole.label_hash and read_again.root == whole.root
        for column in ("path", "patient_id", "targets_NC", "mask_NC", "split", "skipped"):
            np.testing.assert_array_equal(getattr(read_again, column), getattr(whole, column))
    with pytest.raises(ValueError, match=r"None of the|holds no folder"):
        read_index(files, root)


def test_who_was_seen_before_is_known_without_the_images(tmp_path: Path) -> None:
    """Weights of an earlier run, which read files and labels otherwise: its patients are looked up all the same."""
    root = tmp_path / "data"
    write_phantom(root, images=40, size=32, workers=1, layout="chexpert")
    data = {"dataset": "chexpert", "root": root, "findings": "chexpert14", "val_fraction": 0.3}
    earlier = Data.model_validate(data | {"uncertain": "zero"})
    whole = open_dataset(Recipe.model_validate({"data": data}))
    packs.build(whole.index, root / "distcxr-pack")
    for name in ("train", "valid"):
        shutil.rmtree(root / name)
    dataset = open_dataset(Recipe.model_validate({"data": data | {"source": "pack"}}))
    seen = dataset.patients_of(earlier, ["train", "val"])
    rows = np.concatenate([whole.splits.train, whole.splits.val])
    np.testing.assert_array_equal(seen, np.unique(whole.index.patient_id[rows]))
