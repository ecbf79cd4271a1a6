"""Pictures for reader tests: what Pillow makes of them, every kind of PNG, JPEG, DICOM, every class of broken file."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from dicoms import dicom
from PIL import Image
from pydicom import dcmread
from pydicom.misc import is_dicom
from pydicom.uid import RLELossless

from distcxr.data.index import SampleIndex
from distcxr.data.loader import Pixels, Request
from distcxr.data.pixels.decode import decode_grey
from distcxr.data.pixels.remarks import remarks

_ids: dict[str, int] = {}


def ids(files: Sequence[str]) -> Request:
    """A request for the files, in order: the sample ids that `locate` knows them by."""
    return np.array([_ids.setdefault(file, len(_ids)) for file in files], dtype=np.int64)


def locate(request: Request) -> list[str]:
    """What an index is to a reader: the files of a request, in order."""
    files = list(_ids)
    return [files[sample_id] for sample_id in request.tolist()]


def requests(files: list[str], batch: int) -> list[Request]:
    """The files in order, `batch` at a time."""
    return [ids(files[start : start + batch]) for start in range(0, len(files), batch)]


def by_pillow(file: str | Path, size: int) -> torch.Tensor:
    """What every reader has to give for `file`, uint8 [S, S]; 16-bit samples by their high byte."""
    if is_dicom(file):
        grey = Image.fromarray(dcmread(file).pixel_array)
    else:
        with Image.open(file) as image:
            deep = image.mode.startswith("I")
            grey = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if deep else image.convert("L")
    return torch.from_numpy(np.array(grey.resize((size, size), Image.Resampling.BILINEAR)))


def assert_is(pixels: Pixels, files: list[str], size: int) -> None:
    """Within one grey level of Pillow, at the rim, too, and nothing unreadable."""
    assert pixels.pixels.dtype == torch.uint8 and pixels.pixels.shape == (len(files), 1, size, size)
    expected = torch.stack([by_pillow(file, size) for file in files])
    assert (pixels.pixels[:, 0].int() - expected.int()).abs().max() <= 1
    assert pixels.unreadable == ()


def assert_remark(data: bytes, expected: str | None) -> None:
    """That a file's only remark, where one is expected, matches this; for a network of 32 pixels."""
    found = remarks(data, decode_grey(data), 32)
    assert len(found) == (expected is not None) and re.search(expected or "", "".join(found)), found


def saved(mode: str, array: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """An image file of that mode."""
    file = io.BytesIO()
    image = Image.fromarray(array)
    (image if mode == image.mode else image.convert(mode)).save(file, kind, **options)
    return file.getvalue()


def kinds(rng: np.random.Generator, side: int = 96) -> dict[str, bytes]:
    """A noise image of each kind of PNG and JPEG, and a DICOM, by name."""
    colour = rng.integers(0, 256, (side, side, 4)).astype(np.uint8)
    grey, deep = colour[..., 0], rng.integers(0, 65536, (side, side)).astype(np.uint16)
    flat = np.stack([grey, grey, grey, np.full_like(grey, 255)], axis=2)
    return {
        "L": saved("L", grey), "1": saved("1", grey), "RGB": saved("RGB", colour), "RGBA": saved("RGBA", colour),
        "LA": saved("LA", colour), "P": saved("P", colour[..., :3]), "16 bits": saved("I;16", deep),
        "NIH's RGBA": saved("RGBA", flat), "uncompressed": saved("L", grey, compress_level=0),
        "JPEG": saved("L", grey, "JPEG"), "RGB JPEG": saved("RGB", colour, "JPEG"),
        "progressive": saved("RGB", colour, "JPEG", progressive=True), "CMYK JPEG": saved("CMYK", colour, "JPEG"),
        "DICOM": dicom(grey, RLELossless),
    }  # fmt: skip


def broken(whole: bytes) -> dict[str, bytes]:
    """Each class of broken file, made of a whole 8-bit grey PNG; by a word that the reason has to hold."""
    header = whole[8:33]
    width = int.from_bytes(whole[16:20])
    photo = saved("L", np.arange(64 * 64).reshape(64, 64).astype(np.uint8), "JPEG")
    short = zlib.compress(bytes(3 * (width + 1)))  # three rows, whatever the header has
    return {
        "zero bytes": b"",
        "neither a PNG nor a JPEG": b"no picture at all",
        "truncated: the file ends": whole[: len(whole) // 2],
        "wrong CRC": whole[:60] + bytes([whole[60] ^ 1]) + whole[61:],
        "truncated pixel data": whole[:8] + header + _chunk(b"IDAT", short) + _chunk(b"IEND", b""),
        "corrupt pixel data": whole[:8] + header + _chunk(b"IDAT", b"no stream") + _chunk(b"IEND", b""),
        "without its end-of-image marker": photo[: len(photo) // 2],
        "corrupt JPEG": photo[:3] + b"no picture at all",
    }


def _chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)


def index_of(root: Path, files: list[str], *, seed: int = 0) -> SampleIndex:
    """An index of `files` (relative to `root`) with three findings, drawn at random as labels and their masks."""
    rng, num = np.random.default_rng(seed), len(files)
    return SampleIndex(
        root=root.absolute(),
        findings=("A", "B", "C"),
        path=np.array([file.encode() for file in files], dtype=np.bytes_),
        patient_id=np.arange(num),
        targets_NC=rng.integers(0, 2, (num, 3), dtype=np.uint8),
        mask_NC=rng.integers(0, 2, (num, 3), dtype=np.uint8),
        age=np.full(num, np.nan, dtype=np.float32),
        sex=np.full(num, "", dtype="U1"),
        view=np.full(num, "", dtype="U2"),
        split=np.full(num, ""),
        label_hash="0" * 64,
        skipped=np.array([], dtype="S1"),
    )
