"""ChestMNIST: ChestX-ray14 as arrays of 28, 64, 128 or 224 pixels in one npz file, split by MedMNIST.

    train_images, val_images, test_images      uint8 [N, S, S]
    train_labels, val_labels, test_labels      [N, 14], 0 or 1, in the order of `NIH14`

An image without a finding shows "No Finding", the fifteenth column here, as in NIH's label file. Patients, age, sex and
view are not in the file. Source: Yang et al., "MedMNIST v2", Scientific Data 2023, https://medmnist.com

Shapes: N images of a split, S side.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from distcxr.data.index import MissingDataError, SampleIndex
from distcxr.data.labels import NIH14, NIH15
from distcxr.data.sources.image_paths import Lister
from distcxr.data.sources.label_columns import each_its_own, make_index
from distcxr.recipe.data import Data
from distcxr.regular import most_unpacked

SPLITS = ("train", "val", "test")

_LAYOUT = """\
data.dataset=chestmnist reads chestmnist.npz (28 px) or chestmnist_64.npz, _128 or _224 from https://medmnist.com:
data.root is the file, or a folder that holds one of them"""


def read_chestmnist(root: Path, data: Data, lister: Lister) -> SampleIndex:
    """Index the images of a MedMNIST file of chest X-rays; its pixels are not read, and no image file is looked for.

    `root` is the file or a folder that holds one; `index.root` is the file, and paths are `train/000000`: the split and
    the row in its array, `array_rows`.
    """
    file = _find(root)
    labels = [read_array(file, f"{split}_labels") for split in SPLITS]
    for split, array in zip(SPLITS, labels, strict=True):
        if array.ndim != 2 or array.shape[1] != len(NIH14) or not np.isin(array, (0, 1)).all():
            raise ValueError(
                f"{file}: {split}_labels is {array.dtype} {list(array.shape)}; 0 or 1 for {len(NIH14)} findings, "
                f"[N, {len(NIH14)}], is expected. Is it ChestMNIST?"
            )
    shown_NC = np.concatenate(labels).astype(np.uint8)
    targets_NC = np.column_stack([shown_NC, ~shown_NC.any(axis=1)]).astype(np.uint8)
    counts = [len(array) for array in labels]
    paths = [f"{split}/{row:06d}" for split, count in zip(SPLITS, counts, strict=True) for row in range(count)]
    return make_index(
        file,
        NIH15,
        paths,
        targets_NC,
        patient_id=each_its_own(paths),
        label_hash=hashlib.sha256(targets_NC.tobytes()).hexdigest(),
        split=np.repeat(SPLITS, counts),
        named_by_path=True,
    )


def array_rows(index: SampleIndex) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each sample of a ChestMNIST index: which of `SPLITS` its pixels are in, and the row there; int64 [N] both."""
    parts = np.char.partition(index.path, b"/")
    split = np.searchsorted(np.sort(np.array(SPLITS, dtype="S")), parts[:, 0])
    return np.argsort(SPLITS)[split].astype(np.int64), parts[:, 2].astype(np.int64)


def read_array(file: Path, name: str) -> NDArray[np.generic]:
    """One array of an npz file: mapped where it is stored as it is, read into memory where it is compressed.
    Raises ValueError, naming file and array, when it is not there or can't be read. Nothing is ever unpickled."""
    member = f"{name}.npy"
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if member in names:
                return _read_member(file, archive, archive.getinfo(member))
    except MemoryError as error:
        raise ValueError(f"{file} can't be read ({name}): its header claims more than there is memory for") from error
    except Exception as error:  # zipfile and numpy document few of what they raise for damaged files
        raise ValueError(f"{file} can't be read ({name}): {error}. Download it again") from error
    raise ValueError(f"{file} has no {name}; it holds {', '.join(names) or 'nothing'}")


def _read_member(file: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[np.generic]:
    if info.compress_type != zipfile.ZIP_STORED:
        if info.file_size > most_unpacked(info.compress_size):
            raise ValueError(f"{info.compress_size:,} bytes claim to decompress to {info.file_size:,}")
        with archive.open(info) as packed:
            _read_header(packed, info.file_size)  # before an array of the size that it claims is allocated
        with archive.open(info) as packed:
            return np.lib.format.read_array(packed, allow_pickle=False)
    with file.open("rb") as stream:
        stream.seek(info.header_offset + 26)  # the member's own header: lengths of its name and extra field
        name_bytes, extra_bytes = struct.unpack("<HH", stream.read(4))
        stream.seek(name_bytes + extra_bytes, os.SEEK_CUR)
        shape, by_columns, dtype = _read_header(stream, info.file_size)
        return np.memmap(file, dtype, "r", stream.tell(), shape, "F" if by_columns else "C")


def _read_header(stream: IO[bytes], num_bytes: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of the array in a .npy file; ValueError where it holds no numbers or the file is small."""
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read_header(stream)
    if dtype.kind not in "biuf":
        raise ValueError(f"it holds {dtype}, not numbers")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > num_bytes:
        raise ValueError(f"an array of {list(shape)} does not fit into its {num_bytes:,} bytes")
    return shape, by_columns, dtype


def _find(root: Path) -> Path:
    if root.is_file():
        return root
    found = sorted(path for path in root.glob("chestmnist*.npz") if path.is_file()) if root.is_dir() else []
    if not found:
        raise MissingDataError(f"{root} neither is such a file nor holds one.\n{_LAYOUT}")
    if len(found) > 1:
        raise ValueError(
            f"{root} holds {', '.join(file.name for file in found)}: set data.root to the file that is meant"
        )
    return found[0]
