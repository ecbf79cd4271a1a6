"""The pack of a folder of small images (see `caches`), made with few images a shard, and what it should hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from distcxr.data.index import SampleIndex
from distcxr.data.pixels.decode import decode_grey
from distcxr.data.pixels.image_bytes import UnreadableImage, read_file
from distcxr.data.store import pack_building
from distcxr.data.store.pack_building import build_pack
from distcxr.data.store.pack_format import Pack
from distcxr.data.store.store_building import Built

SHARD = 8


def build(index: SampleIndex, folder: Path, workers: int = 2) -> Built:
    """The pack of `index`, `SHARD` images a shard."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack_building, "SHARD_IMAGES", SHARD)
        return build_pack(index, folder, workers=workers)


def shards(folder: Path) -> list[Path]:
    """Shard files in a folder, by number."""
    return sorted(folder.glob("shard-*.j2k"))


def holds(folder: Path, index: SampleIndex) -> dict[str, NDArray[np.uint8] | str]:
    """Pixels by path, or why there are none, after comparing everything with the files of `index`."""
    pack = Pack(folder)
    found: dict[str, NDArray[np.uint8] | str] = {}
    try:
        for row, part in enumerate(pack.parts(np.arange(len(pack.entries)))):
            try:
                found[pack.path(row)] = decode_grey(read_file(part)[0])
                assert found[pack.path(row)].shape == (pack.entries["height"][row], pack.entries["width"][row])
            except UnreadableImage as error:
                found[pack.path(row)] = str(error)
        for name, got in found.items():
            try:
                np.testing.assert_array_equal(decode_grey(read_file(index.root / name)[0]), got)
            except UnreadableImage as error:
                assert got == str(error) or "No such file" in str(error)
        assert not list(folder.glob("*.part")) and len(list(folder.glob("entries-*"))) == 1
        assert [file.name for file in shards(folder)] == sorted(file.name for file in pack.files)
    finally:
        pack.close()
    return found


def flip(file: Path, at: int) -> None:
    """Change one bit of a file in place."""
    with file.open("r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)[0]
        stream.seek(at)
        stream.write(bytes([byte ^ 1]))
