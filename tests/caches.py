"""A folder of small PNGs of every sort, and a DICOM, its index, and its decoded cache."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from dicoms import dicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.uid import RLELossless

from distcxr.data.index import SampleIndex
from distcxr.data.pixels.decode import decode_grey
from distcxr.data.pixels.image_bytes import UnreadableImage, read_file
from distcxr.data.pixels.resize import resize_grey
from distcxr.data.store.cache_building import build_cache
from distcxr.data.store.store_building import Built

SIZE = 24
BAD = {"images/00.png": "zero bytes", "images/05.png": "truncated", "images_2/11.png": "neither a PNG"}


def png(number: int, mode: str = "L", side: tuple[int, int] = (40, 40)) -> bytes:
    """An image unlike that of any other number."""
    rng = np.random.default_rng(number)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, side).astype(np.uint16))
    else:
        image = Image.fromarray(rng.integers(0, 256, (*side, 4), dtype=np.uint8)).convert(mode)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def dataset(root: Path, num: int = 16) -> SampleIndex:
    """Images in two folders, grey and not, square and not, three of them broken, and an index in another order."""
    modes, sides = ("L", "RGBA", "P", "I;16", "1"), ((40, 40), (24, 24), (50, 31), (9, 12))
    names = [f"images{'_2' * (number > num // 2)}/{number:02d}.png" for number in range(num)]
    for number, name in enumerate(names):
        data = png(number, modes[number % 5], sides[number % 4])
        if number == 8:
            data = dicom(np.random.default_rng(number).integers(0, 4096, sides[0], dtype=np.uint16), RLELossless)
        if name in BAD:
            data = {"zero bytes": b"", "truncated": data[: len(data) // 2], "neither a PNG": b"no picture"}[BAD[name]]
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return index_of(root, [names[position] for position in np.random.default_rng(1).permutation(num)])


def index_of(root: Path, names: list[str]) -> SampleIndex:
    """An index of these files."""
    num = len(names)
    return SampleIndex(
        root=root, findings=("Mass",), path=np.array([os.fsencode(name) for name in names]),
        patient_id=np.arange(num), targets_NC=np.zeros((num, 1), np.uint8), mask_NC=np.ones((num, 1), np.uint8),
        age=np.zeros(num, np.float32), sex=np.full(num, "M"), view=np.full(num, "PA"), split=np.full(num, ""),
        label_hash="0" * 64, skipped=np.zeros(0, dtype="S1"),
    )  # fmt: skip


def build(index: SampleIndex, folder: Path, size: int = SIZE, workers: int = 2) -> Built:
    """The cache of `index`."""
    return build_cache(index, folder, size, workers=workers)


def expected(index: SampleIndex, row: int, size: int = SIZE) -> NDArray[np.uint8]:
    """What a reader has to give for a row of the index: uint8 [S, S], 0 for a broken file."""
    try:
        return resize_grey(decode_grey(read_file(index.files([row])[0])[0]), size)
    except UnreadableImage:
        return np.zeros((size, size), dtype=np.uint8)


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, which may be killed."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)


def content(folder: Path) -> dict[str, bytes]:
    """The files of a cache by name."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def pixels_file(folder: Path) -> Path:
    """The one pixel file in a folder."""
    (file,) = folder.glob("pixels-*.u8")
    return file
