"""A pack decoded on the GPU: the same pixels as on the CPU, whatever the images' sizes; damage named."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import caches
import numpy as np
import packs
import pytest
import tiny
import torch
from nih_files import real_xrays

from distcxr.data.index import SampleIndex
from distcxr.data.read import read_index
from distcxr.data.readers.choose import choose_reader
from distcxr.data.readers.dali_decode import DaliDecoder
from distcxr.data.readers.make import PackReader
from distcxr.data.store.pack_building import build_pack
from distcxr.data.store.pack_format import open_pack
from distcxr.recipe.data import Data

pytest.importorskip("imagecodecs")
pytest.importorskip("nvidia.dali")
pytestmark = pytest.mark.gpu


def picked(index: SampleIndex, size: int, loader: str = "dali") -> PackReader:
    """What a rank with a GPU reads with."""
    data = Data.model_validate({"source": "pack", "loader": loader, "image_size": size, "root": index.root})
    reader = choose_reader(
        data, index, max_batch_size=16, device=torch.device("cuda"), local_world_size=1,
        first_rows=np.arange(len(index)), decided_by_main=lambda decide: decide(),
    )  # fmt: skip
    assert isinstance(reader, PackReader)
    return reader


@pytest.mark.parametrize("size", [24, 64])
def test_small_images_of_every_sort(size: int, tmp_path: Path) -> None:
    """From 9 x 12 pixels on, square and not, larger and smaller than the output; three are broken."""
    index = caches.dataset(tmp_path / "data")
    packs.build(index, index.root / "distcxr-pack")
    rows = np.arange(16)
    with closing(picked(index, size)) as reader:
        assert isinstance(reader._inner, DaliDecoder)
        for _ in range(3):
            (answer,) = reader.read([rows])
            assert answer.pixels.is_cuda and len(answer.unreadable) == 3
            expected = np.stack([caches.expected(index, row, size) for row in rows.tolist()])
            np.testing.assert_array_equal(answer.pixels[:, 0].cpu().numpy(), expected)


@pytest.mark.parametrize("size", [224, 512])
def test_real_xrays_bit_for_bit_in_order(size: int, tmp_path: Path) -> None:
    files = real_xrays(every=10)
    index = caches.index_of(Path("/"), [str(file)[1:] for file in files])
    build_pack(index, tmp_path, workers=4)
    rows = np.random.default_rng(0).permutation(np.repeat(np.arange(len(files)), 3))
    asked, pack = np.array_split(rows, -(-len(rows) // 16)), open_pack(tmp_path, index)
    inner = DaliDecoder(pack.parts, size, max_batch_size=16, num_threads=4, device_id=0)
    with closing(PackReader(inner, pack)) as reader:
        for answer, request in zip(reader.read(asked), asked, strict=True):
            assert answer.unreadable == ()
            for place, row in enumerate(request.tolist()):
                expected = caches.expected(index, row, size)
                np.testing.assert_array_equal(answer.pixels[place, 0].cpu().numpy(), expected)


def test_a_damaged_image_is_named_and_the_gpu_goes_on(tmp_path: Path) -> None:
    index = caches.dataset(tmp_path / "data")
    folder = index.root / "distcxr-pack"
    packs.build(index, folder)
    pack = open_pack(folder, index)
    row = next(row for row, part in enumerate(pack.parts(np.arange(16))) if not part.reason)
    part = pack.parts(np.array([row]))[0]
    pack.close()
    packs.flip(Path(part.file), part.offset + 9)
    with closing(picked(index, 24)) as reader:
        (answer,) = reader.read([np.array([row])])
        assert answer.unreadable == ((0, f"{part.file} is damaged there; `distcxr pack RECIPE` repairs it"),)
        assert answer.pixels.max() == 0


def test_auto_measures_and_a_run_trains_without_the_images(tmp_path: Path) -> None:
    data = tiny.phantom(tmp_path)
    build_pack(read_index(tiny.recipe(tmp_path).data, data), data / "distcxr-pack", workers=2)
    shutil.rmtree(data / "images")
    for loader in ("auto", "dali", "torch"):
        output = tmp_path / loader
        more = ("data.source=pack", f"data.loader={loader}", "eval.splits=[]", "train.max_steps=3")
        tiny.train(tmp_path, f"output={output}", *more)
        assert len(tiny.rows(output / "steps.csv")) >= 1
