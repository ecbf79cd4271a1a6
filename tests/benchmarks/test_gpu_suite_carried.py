"""What is carried to a machine without a network: wheels in pieces, libraries with one GPU's code, few images."""

from __future__ import annotations

import base64
import hashlib
import os
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from gpu_suite.fatbin import keep_architecture, trim_wheel
from gpu_suite.wheels import divide, take
from gpu_suite.xrays import LISTS, TABLE, encode_anew, pick

from distcxr.data.pixels.decode import decode_grey
from distcxr.phantom.draw import draw_xray
from distcxr.phantom.png_encoder import encode_png


def wheel(folder: Path, name: str, module: str, size: int = 0) -> Path:
    """A wheel of one module, in the package `shared` that every one adds to."""
    files = {
        f"shared/{module}.py": f"NAME = {name!r}\n".encode(),
        f"shared/{module}.bin": os.urandom(size),
        f"{name}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{name}-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"{name}-1.0.dist-info/RECORD"
    hashes = {
        file: base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=") for file, data in files.items()
    }
    lines = [f"{file},sha256={hashes[file].decode()},{len(data)}" for file, data in files.items()]
    file = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
        archive.writestr(record, "\n".join([*lines, f"{record},,"]))
    return file


def test_wheels_are_cut_carried_joined_and_installed_together(tmp_path: Path) -> None:
    wheels = [wheel(tmp_path, "small", "one"), wheel(tmp_path, "large", "two", 50_000)]
    available, carry, scratch = 20_000, tmp_path / "carry", tmp_path / "scratch"
    sizes = dict(divide(wheels, carry, "second", available))
    assert list(sizes) == ["second-1", "second-2", "second-3"] and max(sizes.values()) <= available
    assert sum(sizes.values()) == sum(one.stat().st_size for one in wheels)
    site, note = take([carry / "second-1"], scratch)
    assert note == "1 wheels installed; pieces are missing of large-1.0-py3-none-any.whl"
    assert site is not None and sorted(file.name for file in (site / "shared").glob("*.py")) == ["one.py"]
    site, note = take([carry / "second-2", carry / "second-3"], scratch)
    assert note == "2 wheels installed" and site is not None
    assert sorted(file.name for file in (site / "shared").glob("*.py")) == ["one.py", "two.py"]
    assert (site / "shared" / "two.bin").stat().st_size == 50_000
    assert take([], scratch) == (site, "2 wheels, installed before")
    assert [folder.name for folder in scratch.glob("site-*")] == [site.name]


def container(*entries: tuple[int, int, bytes]) -> bytes:
    """A fat binary of (kind, architecture, body)."""
    bodies = b"".join(struct.pack("<HHIQ", kind, 257, 64, len(body)) + bytes(12) + struct.pack("<I", architecture)
                      + bytes(32) + body for kind, architecture, body in entries)  # fmt: skip
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(bodies)) + bodies


def test_one_architecture_is_left_in_a_library(tmp_path: Path) -> None:
    hopper, turing, ptx = (2, 90, b"H" * 40), (2, 75, b"T" * 24), (1, 90, b"P" * 8)
    noise = struct.pack("<IHH", 0xBA55ED50, 1, 16) + b"only looks like one"
    library = b"code" + container(turing, hopper, ptx) + noise + container((2, 75, b"S" * 16))
    kept = keep_architecture(library, 90)
    expected = container((2, 75, bytes(24)), hopper, (1, 90, bytes(8))) + noise + container((2, 75, b"S" * 16))
    assert kept == b"code" + expected

    big = tmp_path / "big-1.0-py3-none-any.whl"
    with zipfile.ZipFile(big, "w") as archive:
        archive.writestr("big/lib.so.2", library)
        archive.writestr("big/impl.cpython-312-x86_64-linux-gnu.so", b"mine")
        archive.writestr("big/impl.cpython-311-x86_64-linux-gnu.so", b"another's")
        archive.writestr("big-1.0.dist-info/RECORD", "big/lib.so.2,,\nbig/impl.cpython-311-x86_64-linux-gnu.so,,\n")
    (tmp_path / "out").mkdir()
    with zipfile.ZipFile(trim_wheel(big, tmp_path / "out", architecture=90, python="312")) as archive:
        assert archive.testzip() is None and archive.read("big/lib.so.2") == kept
        assert "big/impl.cpython-311-x86_64-linux-gnu.so" not in archive.namelist()
        assert archive.read("big/impl.cpython-312-x86_64-linux-gnu.so") == b"mine"
        assert archive.read("big-1.0.dist-info/RECORD") == b"big/lib.so.2,,\n"


def test_a_few_real_images_come_with_their_rows(tmp_path: Path) -> None:
    root = tmp_path / "nih"
    names = [f"{number:08}_000.png" for number in range(40)]
    for number, name in enumerate(names):
        (root / f"images_{number % 2:03}" / "images").mkdir(parents=True, exist_ok=True)
        (root / f"images_{number % 2:03}" / "images" / name).write_bytes(name.encode())
    (root / TABLE).write_text("\n".join(["Image Index,Finding Labels", *(f"{name},Mass" for name in names)]))
    for name, part in zip(LISTS, (names[:30], names[30:]), strict=True):
        (root / name).write_text("\n".join(part))
    pick(root, tmp_path / "few", 8)
    kept = sorted(file.name for file in (tmp_path / "few" / "images").iterdir())
    assert len(kept) == 8 and all((tmp_path / "few" / "images" / name).read_bytes() == name.encode() for name in kept)
    header, *rows = (tmp_path / "few" / TABLE).read_text().splitlines()
    assert header == "Image Index,Finding Labels" and rows == [f"{name},Mass" for name in kept]
    lists = [(tmp_path / "few" / name).read_text().split() for name in LISTS]
    assert sorted(lists[0] + lists[1]) == kept and set(lists[0]) <= set(names[:30]) and lists[1]
    with pytest.raises(ValueError, match="40 PNGs in images\\*/, fewer than 41"):
        pick(root, tmp_path / "many", 41)


def test_phantoms_have_nihs_row_filters_and_bytes(tmp_path: Path) -> None:
    file = tmp_path / "one.png"
    file.write_bytes(encode_png(draw_xray((), np.random.default_rng(0), 1024, "F", "PA")))
    encode_anew(file)
    image = decode_grey(file.read_bytes())
    assert image.shape == (1024, 1024)
    assert 330_000 < file.stat().st_size < 430_000
    content, at, stream = file.read_bytes(), 8, b""
    while at < len(content):
        (size,) = struct.unpack_from(">I", content, at)
        if content[at + 4 : at + 8] == b"IDAT":
            stream += content[at + 8 : at + 8 + size]
        at += 12 + size
    filters = np.bincount(np.frombuffer(zlib.decompress(stream), dtype=np.uint8).reshape(1024, 1025)[:, 0], minlength=5)
    assert filters[3] > 200 and filters[4] > 200 and filters[3] + filters[4] > 900  # Average and Paeth
