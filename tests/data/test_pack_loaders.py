"""The same pixels from a pack as from the files, whoever reads them; damage named; what `data.loader` may be."""

from __future__ import annotations

import logging
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import caches
import numpy as np
import packs
import pytest
import torch
from host_kernels import HostKernels
from nih_files import real_xrays
from torch import Tensor

from distcxr.data.index import SampleIndex
from distcxr.data.loader import PixelReader
from distcxr.data.pixels.cuda.table import resize_on_gpu
from distcxr.data.pixels.image_bytes import Locate
from distcxr.data.pixels.resize import resize_grey
from distcxr.data.readers.choose import choose_reader
from distcxr.data.readers.dali_decode import DaliDecoder, Resize
from distcxr.data.readers.dali_reader import DaliReader
from distcxr.data.readers.make import PackReader, Rank
from distcxr.data.readers.torch_reader import TorchReader
from distcxr.data.store.pack_format import Pack, open_pack
from distcxr.data.store.store_files import StoreError
from distcxr.recipe.data import Data

pytest.importorskip("imagecodecs")

SIZE = 24


def resized(size: int) -> Callable[[Sequence[Tensor]], Tensor]:
    """Stands in for the GPU's kernel."""
    return lambda images: torch.stack(
        [torch.from_numpy(resize_grey(np.ascontiguousarray(image.numpy()), size).copy()) for image in images]
    )


def decoder(locate: Locate, size: int, resize: Resize) -> DaliDecoder:
    """All on the CPU, with this instead of the GPU's kernel."""

    class OnHost(DaliDecoder):
        def _resizer(self) -> Resize:
            return resize

    return OnHost(locate, size, max_batch_size=8, num_threads=2, device_id=None)


MAKE: dict[str, Callable[[Pack], PixelReader]] = {
    "torch": lambda pack: TorchReader(pack.parts, SIZE, num_workers=2, pin_memory=False),
    "torch in process": lambda pack: TorchReader(pack.parts, SIZE, num_workers=0, pin_memory=False),
    "dali": lambda pack: DaliReader(pack.parts, SIZE, max_batch_size=8, num_threads=2, device_id=None),
    "dali decodes": lambda pack: decoder(pack.parts, SIZE, resized(SIZE)),
}
ROWS = [np.array(rows) for rows in ([5, 1, 1, 9], [0], list(range(8)), list(range(8, 16)))]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    index = caches.dataset(tmp_path_factory.mktemp("data"))
    packs.build(index, index.root / "distcxr-pack")
    return index


@pytest.fixture(scope="module", params=MAKE)
def reader(request: pytest.FixtureRequest, index: SampleIndex) -> Iterator[PackReader]:
    with closing(reader_of(request.param, open_pack(index.root / "distcxr-pack", index))) as made:
        yield made


def reader_of(name: str, pack: Pack) -> PackReader:
    return PackReader(MAKE[name](pack), pack)


def of_files(index: SampleIndex, rows: np.ndarray) -> np.ndarray:
    return np.stack([caches.expected(index, row, SIZE) for row in rows.tolist()])


def test_pixels_order_and_reasons_are_those_of_the_files(reader: PackReader, index: SampleIndex) -> None:
    for _ in range(2):  # two epochs
        answers = list(reader.read(ROWS))
        assert len(answers) == len(ROWS)
        for answer, rows in zip(answers, ROWS, strict=True):
            pixels = answer.pixels[:, 0].numpy()
            tolerance = 1 if isinstance(reader.inner, DaliReader) and not isinstance(reader.inner, DaliDecoder) else 0
            assert np.abs(pixels.astype(int) - of_files(index, rows)).max() <= tolerance
            names = index.file_names(rows)
            bad = [position for position, name in enumerate(names) if any(name in path for path in caches.BAD)]
            assert [position for position, _ in answer.unreadable] == bad
            for position, reason in answer.unreadable:
                assert reason.startswith(next(why[:9] for path, why in caches.BAD.items() if names[position] in path))


@pytest.mark.parametrize("name", MAKE)
def test_damage_is_named_and_the_run_goes_on(name: str, index: SampleIndex, tmp_path: Path) -> None:
    good = index.take(np.flatnonzero(~np.isin(index.path, [path.encode() for path in caches.BAD])))
    packs.build(good, tmp_path / "pack")
    pack = open_pack(tmp_path / "pack", good)
    parts = pack.parts(np.arange(len(good)))
    first, second = packs.shards(tmp_path / "pack")
    flipped = next(position for position, part in enumerate(parts) if part.file == str(first))
    packs.flip(first, parts[flipped].offset + 9)  # the header: a decoder that saw it could do anything
    cut = [position for position, part in enumerate(parts) if part.file == str(second)]
    second.write_bytes(b"")
    with closing(reader_of(name, pack)) as reader:
        for _ in range(2):
            requests = np.array_split(np.arange(len(good)), 3)
            found: dict[int, str] = {}
            for request, answer in zip(requests, reader.read(requests), strict=True):
                found |= {int(request[position]): reason for position, reason in answer.unreadable}
                for position, row in enumerate(request.tolist()):
                    expected = 0 if row in (flipped, *cut) else caches.expected(good, row, SIZE).astype(int)
                    assert np.abs(answer.pixels[position, 0].numpy() - expected).max() <= (name == "dali")
            assert sorted(found) == sorted([flipped, *cut])
            assert found[flipped] == f"{first} is damaged there; `distcxr pack RECIPE` repairs it"
            assert found[cut[0]] == f"{second} is cut short there; `distcxr pack RECIPE` repairs it"


@pytest.mark.parametrize("name", MAKE)
def test_a_new_build_leaves_readers_what_they_opened(name: str, tmp_path: Path) -> None:
    index = caches.dataset(tmp_path / "data")
    folder = index.root / "distcxr-pack"
    packs.build(index, folder)
    rows = np.arange(8)
    expected = of_files(index, rows)
    with closing(reader_of(name, open_pack(folder, index))) as reader:
        for path in index.path.tolist():
            (index.root / path.decode()).write_bytes(caches.png(50, side=(30, 20)))
        assert packs.build(index, folder).num_made == 16
        (answer,) = reader.read([rows])
        assert np.abs(answer.pixels[:, 0].numpy().astype(int) - expected).max() <= (name == "dali")


def on_host(size: int) -> Callable[[Sequence[Tensor]], Tensor]:
    """The GPU's own resize, its kernel compiled for the CPU."""
    kernels = HostKernels()
    return lambda images: resize_on_gpu(images, size, kernels)


def test_dalis_images_resized_by_the_kernel_equal_those_of_the_files(index: SampleIndex, tmp_path: Path) -> None:
    """All that a GPU does, on the CPU: nothing but nvJPEG2000 is left out."""
    files = real_xrays(every=40)
    xrays = caches.index_of(Path("/"), [str(file)[1:] for file in files])
    packs.build(xrays, tmp_path)
    for of, folder, size in ((xrays, tmp_path, 224), (index, index.root / "distcxr-pack", SIZE)):
        pack = open_pack(folder, of)
        inner = decoder(pack.parts, size, on_host(size))
        with closing(PackReader(inner, pack)) as reader:
            asked = np.array_split(np.arange(len(of)), len(of) // 2)
            for answer, request in zip(reader.read(asked), asked, strict=True):
                expected = np.stack([caches.expected(of, row, size) for row in request.tolist()])
                np.testing.assert_array_equal(answer.pixels[:, 0].numpy(), expected)


def test_what_workers_are_sent_does_not_grow_with_the_dataset(index: SampleIndex) -> None:
    with closing(open_pack(index.root / "distcxr-pack", index)) as pack:
        sent = pickle.dumps((0, pack.parts(np.arange(16))))
    assert len(sent) < 16 * 60 + 400  # numbers; the two shards' names once each, and three reasons


def pick(index: SampleIndex, **data: Any) -> PixelReader:
    spec = {"source": "pack", "image_size": SIZE, "num_workers": 0, "root": index.root} | data
    return choose_reader(
        Data.model_validate(spec), index, max_batch_size=8, device=torch.device("cpu"), local_world_size=1,
        first_rows=np.arange(16), decided_by_main=lambda decide: decide(),
    )  # fmt: skip


@pytest.mark.parametrize(("loader", "kind"), [("torch", TorchReader), ("dali", DaliReader), ("auto", object)])
def test_the_reader_that_is_chosen(
    loader: str, kind: type, index: SampleIndex, caplog: pytest.LogCaptureFixture
) -> None:
    (index.root / "distcxr-cache").mkdir(exist_ok=True)
    with caplog.at_level(logging.INFO), closing(pick(index, loader=loader)) as reader:
        assert isinstance(reader, PackReader) and isinstance(reader.inner, kind)
        assert not isinstance(reader.inner, DaliDecoder)
        (answer,) = reader.read([ROWS[0]])
        assert np.abs(answer.pixels[:, 0].numpy().astype(int) - of_files(index, ROWS[0])).max() <= 1
    output = caplog.messages[-1]
    assert output.startswith("loader ") and output.endswith(f"come from the 2 shards in {index.root / 'distcxr-pack'}")
    measured = [line for line in caplog.messages if line.startswith("measured on 13 images")]
    assert len(measured) == (loader == "auto") and all("dali gives" in line for line in measured)
    assert "distcxr cache" not in caplog.text


@pytest.mark.parametrize("is_right", [True, False])
def test_a_gpu_that_decodes_otherwise_than_the_cpu_is_not_used(
    is_right: bool, index: SampleIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU instead of the GPU: pixels are compared before the reader is taken, though it was asked for."""

    def made(rank: Rank) -> PixelReader:
        right = resized(SIZE)
        resize = right if is_right else lambda images: right(images) ^ torch.tensor(1, dtype=torch.uint8)
        return decoder(rank.locate, SIZE, resize)

    monkeypatch.setattr(Rank, "on_gpu", True)
    monkeypatch.setattr(Rank, "_dali", made)
    if is_right:
        with closing(pick(index, loader="dali")) as reader:
            assert isinstance(reader, PackReader) and isinstance(reader.inner, DaliDecoder)
    else:
        with pytest.raises(ValueError, match=r"data\.loader=dali does not work here: its pixels differ .* 13 of 13 im"):
            pick(index, loader="dali")


def test_a_pack_that_is_out_of_date_is_refused(tmp_path: Path) -> None:
    index = caches.dataset(tmp_path / "data")
    with pytest.raises(StoreError, match="there is no pack in"):
        pick(index, loader="torch")
    packs.build(index, index.root / "distcxr-pack")
    (index.root / "images/01.png").write_bytes(caches.png(77, side=(33, 33)))
    with pytest.raises(StoreError, match=r"1 of 16 images have changed.*distcxr pack RECIPE"):
        pick(index, loader="torch")
    packs.build(index, index.root / "distcxr-pack")
    pick(index, loader="torch").close()


def test_without_imagecodecs_a_run_does_not_begin(index: SampleIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(ValueError, match=r"a pack needs imagecodecs .*pip install"):
        pick(index, loader="torch")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"loader": "cache"}, "data.loader: cache does not read packs .*use torch, dali or auto"),
        ({"loader": "gpu"}, "data.loader: gpu does not read packs"),
        ({"dataset": "chestmnist"}, "data.source: pack does not go with data.dataset: chestmnist"),
    ],
)
def test_what_does_not_go_with_a_pack(data: dict[str, str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Data.model_validate({"source": "pack"} | data)
