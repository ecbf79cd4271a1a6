"""ChestMNIST's file: its labels as an index, its arrays as batches."""

from __future__ import annotations

import pickle
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from distcxr.data.index import MissingDataError, SampleIndex
from distcxr.data.labels import NIH15
from distcxr.data.loader import PixelReader
from distcxr.data.read import read_index
from distcxr.data.readers.array_reader import ArrayReader
from distcxr.data.readers.choose import choose_reader
from distcxr.data.sources.chestmnist import array_rows
from distcxr.recipe.data import Data

COUNTS = {"train": 9, "val": 3, "test": 4}


def arrays(side: int = 28) -> dict[str, NDArray[Any]]:
    """What a file of 16 images holds; labels of image k in its split are those of the bits of k."""
    rng = np.random.default_rng(0)
    made: dict[str, NDArray[Any]] = {}
    for split, count in COUNTS.items():
        made[f"{split}_images"] = rng.integers(0, 256, (count, side, side), dtype=np.uint8)
        made[f"{split}_labels"] = (np.arange(count)[:, None] >> np.arange(14) & 1).astype(np.uint8)
    return made


def written(folder: Path, name: str = "chestmnist.npz", *, packed: bool = True, **changed: Any) -> Path:
    """The file, with some arrays changed, or left out where None."""
    kept = {key: array for key, array in (arrays() | changed).items() if array is not None}
    (np.savez_compressed if packed else np.savez)(folder / name, **kept)
    return folder / name


def read(root: Path) -> SampleIndex:
    return read_index(Data.model_validate({"dataset": "chestmnist"}), root)


def test_index(tmp_path: Path) -> None:
    file = written(tmp_path)
    assert Data.model_validate({"dataset": "chestmnist"}).source == "npz"
    index = read(tmp_path)  # the folder, or the file
    assert index.root == read(file).root == file
    assert index.findings == NIH15 and len(index) == 16
    assert index.targets_NC[5, :3].tolist() == [1, 0, 1] and index.targets_NC[0].tolist() == [0] * 14 + [1]
    assert index.targets_NC[5, 14] == 0 and index.mask_NC.all()
    assert index.split.tolist() == ["train"] * 9 + ["val"] * 3 + ["test"] * 4
    assert index.file_names([0, 9, 15]) == ["train/000000", "val/000000", "test/000003"]
    assert len(set(index.patient_id.tolist())) == 16
    split, row = array_rows(index)
    assert split.tolist() == [0] * 9 + [1] * 3 + [2] * 4 and row.tolist() == [*range(9), *range(3), *range(4)]


def test_the_hash_is_of_the_labels(tmp_path: Path) -> None:
    before = read(written(tmp_path)).label_hash
    assert read(written(tmp_path, packed=False)).label_hash == before
    assert read(written(tmp_path, test_labels=1 - arrays()["test_labels"])).label_hash != before


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "mapped"])
@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("size", [28, 20, 64])
def test_pixels(tmp_path: Path, packed: bool, threads: int, size: int) -> None:
    """The arrays' own pixels, or what Pillow's bilinear makes of them, smaller and larger."""
    index = read(written(tmp_path, packed=packed))
    order = np.random.default_rng(1).permutation(len(index))
    requests = np.array_split(order, 3)
    images = np.concatenate([arrays()[f"{split}_images"] for split in COUNTS])
    expected = [Image.fromarray(images[row]).resize((size, size), Image.Resampling.BILINEAR) for row in order]
    with closing(ArrayReader(index, size, num_threads=threads, pin_memory=False)) as reader:
        assert ("mapped" in reader.where) is not packed
        for _ in range(2):  # epochs
            answers = list(reader.read(requests))
            got = torch.cat([answer.pixels for answer in answers])
            assert got.shape == (16, 1, size, size) and got.dtype == torch.uint8
            difference = np.abs(
                got[:, 0].numpy().astype(int) - np.stack([np.asarray(image, int) for image in expected])
            )
            assert difference.max() <= (0 if size == 28 else 1)
            assert not any(answer.unreadable for answer in answers)


def test_closing_a_read_early_leaves_a_clean_start(tmp_path: Path) -> None:
    index = read(written(tmp_path))
    requests = [np.array([row]) for row in range(16)]
    with closing(ArrayReader(index, 28, num_threads=2, pin_memory=False)) as reader:
        with closing(reader.read(requests)) as first:
            next(first)
            with pytest.raises(AssertionError, match="one read at a time"):
                next(reader.read(requests))
        assert len(list(reader.read(requests))) == 16


def chosen(index: SampleIndex, **data: Any) -> PixelReader:
    return choose_reader(
        Data.model_validate({"dataset": "chestmnist", "image_size": 28, **data}), index, max_batch_size=4,
        device=torch.device("cpu"), local_world_size=1, first_rows=np.arange(4), decided_by_main=lambda it: it(),
    )  # fmt: skip


def test_its_reader_is_chosen_and_no_other(tmp_path: Path) -> None:
    with closing(chosen(read(written(tmp_path)), num_workers=1)) as reader:
        assert isinstance(reader, ArrayReader) and "28 x 28 pixels" in reader.where
    wrong = [({"loader": "cache"}, "data.loader: cache reads image files"), ({"source": "png"}, "does not go with")]
    for data, message in wrong:
        with pytest.raises(ValueError, match=message):
            Data.model_validate({"dataset": "chestmnist", **data})
    with pytest.raises(ValueError, match=r"data.source: npz does not go with data.dataset: nih"):
        Data.model_validate({"source": "npz"})


def test_missing_and_ambiguous_files(tmp_path: Path) -> None:
    for absent in (tmp_path, tmp_path / "nowhere.npz"):
        with pytest.raises(MissingDataError, match=r"data.dataset=chestmnist reads chestmnist.npz"):
            read(absent)
    written(tmp_path)
    written(tmp_path, "chestmnist_64.npz")
    with pytest.raises(ValueError, match=r"holds chestmnist.npz, chestmnist_64.npz: set data.root"):
        read(tmp_path)


LABELS = arrays()["train_labels"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"val_labels": None}, "has no val_labels; it holds train_images.npy"),
        ({"train_labels": LABELS[:, :1]}, r"train_labels is uint8 \[9, 1\]; 0 or 1 for 14 findings"),
        ({"train_labels": LABELS + 1}, "0 or 1 for 14 findings"),
        ({"test_labels": np.array([{}], dtype=object)}, r"(?i)can.t be read \(test_labels\): .*object"),
        ({"val_images": None}, "has no val_images"),
        ({"train_images": arrays()["train_images"][:5]}, r"uint8 \[5, 28, 28\]; grey uint8 images for the 9 rows"),
        ({"train_images": arrays()["train_images"].astype(float)}, r"train_images is float64"),
        ({"train_images": np.zeros((9, 28, 28, 3), np.uint8)}, r"\[9, 28, 28, 3\]"),
    ],
)
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "mapped"])
def test_refused(tmp_path: Path, changed: dict[str, Any], message: str, packed: bool) -> None:
    file = written(tmp_path, packed=packed, **changed)
    with pytest.raises(ValueError, match=message) as caught:
        ArrayReader(read(file), 28, num_threads=0, pin_memory=False)
    assert str(file) in str(caught.value)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    file = written(tmp_path)
    whole = file.read_bytes()
    at = whole.index(b"train_labels.npy") + 60
    for data in (b"", b"no npz", whole[: len(whole) // 2], whole[:at] + bytes(20) + whole[at + 20 :]):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=r"chestmnist.npz can't be read"):
            read(file)
    file.write_bytes(pickle.dumps(arrays()))
    with pytest.raises(ValueError, match="can't be read"):
        read(file)
