"""The readers of PNGs against Pillow: pixels, order, bad files, early ends, errors."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from host_kernels import host_decoder
from nih_files import real_xrays
from pictures import assert_is, broken, ids, kinds, locate, requests
from PIL import Image
from reader_contract import (  # noqa: F401
    Check,
    test_an_early_end_leaves_a_clean_start,
    test_an_error_in_the_order_comes_through_and_leaves_a_clean_start,
    test_nothing_asked_nothing_given,
    test_requests_are_pulled_only_a_little_ahead,
    test_two_reads_at_once_are_refused,
)

from distcxr.data.loader import PixelReader, Pixels, Request
from distcxr.data.pixels.decode import decode_grey
from distcxr.data.readers import dali_reader
from distcxr.data.readers.dali_reader import DaliReader
from distcxr.data.readers.gpu_reader import GpuReader
from distcxr.data.readers.torch_reader import TorchReader

SIZE, BATCH = 48, 4
MAKE: dict[str, Callable[[int], PixelReader]] = {
    "torch": lambda size: TorchReader(locate, size, num_workers=2, pin_memory=False),
    "torch in process": lambda size: TorchReader(locate, size, num_workers=0, pin_memory=False),
    "dali": lambda size: DaliReader(locate, size, max_batch_size=32, num_threads=2, device_id=None),
    "gpu": lambda size: gpu_reader(size, "gpu"),
    "gpu, inflated by the CPU": lambda size: gpu_reader(size, "cpu"),
}


def gpu_reader(size: int, inflate: Literal["gpu", "cpu"]) -> GpuReader:
    """The GPU's loader, its kernels compiled for the CPU."""
    decoder = host_decoder(size, inflate)
    return GpuReader(decoder, locate, size, device=torch.device("cpu"), num_threads=2, wave=BATCH, prefetch=1)


@pytest.fixture(scope="module", params=MAKE)
def reader(request: pytest.FixtureRequest) -> Iterator[PixelReader]:
    """One for the whole file, as in a training run."""
    with closing(MAKE[request.param](SIZE)) as made:
        yield made


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """21 grey images of several sizes, larger and smaller than the output, square and not."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    shapes = [(96, 96), (128, 128), (80, 120), (100, 64), (48, 48), (20, 30), (97, 131)] * 3
    written = []
    for number, shape in enumerate(shapes):
        image = rng.integers(0, 256, shape).astype(np.uint8)
        Image.fromarray(image).save(folder / f"{number}.png")
        written.append(str(folder / f"{number}.png"))
    return written


@pytest.fixture
def asked(files: list[str]) -> list[Request]:
    return requests(files * 2, BATCH)


@pytest.fixture
def check() -> Check:
    return lambda answer, request: assert_is(answer, locate(request), SIZE)


@pytest.fixture
def ahead() -> int:
    return 5


def test_pixels_and_order_are_as_asked(reader: PixelReader, files: list[str]) -> None:
    order = [files[place] for place in np.random.default_rng(3).permutation(len(files))] + files[:3] * 2
    for batch in (BATCH, 1, 7):  # 27 files: the last batch is shorter
        answers = list(reader.read(requests(order, batch)))
        asked = requests(order, batch)
        assert len(answers) == len(asked)
        for answer, request in zip(answers, asked, strict=True):
            assert_is(answer, locate(request), SIZE)


def test_batch_sizes_may_vary(reader: PixelReader, files: list[str]) -> None:
    asked = [ids(files[:n]) for n in (3, 1, 16, 2, 16, 1)]
    for answer, request in zip(reader.read(asked), asked, strict=True):
        assert_is(answer, locate(request), SIZE)


def test_bad_files_are_named_and_the_rest_is_right(reader: PixelReader, files: list[str], tmp_path: Path) -> None:
    bad = broken(Path(files[0]).read_bytes())
    mixed = []
    for number, data in enumerate(bad.values()):
        (tmp_path / f"{number}.png").write_bytes(data)
        mixed += [files[number], str(tmp_path / f"{number}.png")]
    mixed.append(str(tmp_path / "absent.png"))
    places = [*range(1, 2 * len(bad), 2), 2 * len(bad)]
    for _ in range(2):  # in a second epoch, too
        (answer,) = reader.read([ids(mixed)])
        assert [place for place, _ in answer.unreadable] == places
        for (_, reason), word in zip(answer.unreadable, [*bad, "can't be read: No such file"], strict=True):
            assert word in reason
        for place in range(0, 2 * len(bad), 2):
            good = Pixels(answer.pixels[place : place + 1], ())
            assert_is(good, mixed[place : place + 1], SIZE)
        assert answer.pixels[places].max() == 0


def test_a_file_that_changes_is_checked_anew(reader: PixelReader, files: list[str], tmp_path: Path) -> None:
    file = tmp_path / "changing.png"
    for content, readable in ((files[0], True), (files[1], True), (None, False), (files[2], True)):
        file.write_bytes(Path(content).read_bytes() if content else Path(files[2]).read_bytes()[:-40])
        os.utime(file, ns=(time.time_ns(), time.time_ns()))
        (answer,) = reader.read([ids([str(file)])])
        assert (not answer.unreadable) == readable
        if content:
            assert_is(answer, [content], SIZE)


def test_every_kind_of_png_gives_the_same_grey(reader: PixelReader, tmp_path: Path) -> None:
    for name, data in kinds(np.random.default_rng(5)).items():
        (tmp_path / f"{name}.png").write_bytes(data)
        file = str(tmp_path / f"{name}.png")
        (answer,) = reader.read([ids([file])])
        assert_is(answer, [file], SIZE)


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("size", [224, 320])
def test_real_xrays_are_within_a_grey_level_of_pillow(name: str, size: int) -> None:
    images = [str(file) for file in real_xrays(every=15)]
    with closing(MAKE[name](size)) as made:
        for answer, request in zip(made.read(requests(images, 8)), requests(images, 8), strict=True):
            assert_is(answer, locate(request), size)


def test_an_error_in_decoding_comes_through_and_leaves_a_clean_start(
    monkeypatch: pytest.MonkeyPatch, files: list[str]
) -> None:
    """Not a bad file but a broken program: out of memory, say. Threads must hand it on, and nobody may hang."""

    def broken_once(data: bytes) -> np.ndarray:
        monkeypatch.undo()
        raise MemoryError("no room for pixels")

    with closing(MAKE["dali"](SIZE)) as made:
        monkeypatch.setattr(dali_reader, "decode_grey", broken_once)
        with pytest.raises(MemoryError, match="no room"):
            list(made.read(requests(files, BATCH)))
        assert_is(next(made.read(requests(files, BATCH))), files[:BATCH], SIZE)


@pytest.mark.parametrize("name", ["torch", "dali", "gpu"])
def test_a_reader_that_waits_for_its_consumer_costs_no_cpu(name: str, files: list[str]) -> None:
    with closing(MAKE[name](SIZE)) as made, closing(made.read(requests(files * 4, BATCH))) as answers:
        next(answers)
        time.sleep(0.5)  # what is read ahead is read
        before = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - before < 0.1


def test_dali_holds_no_more_decoded_images_than_it_says(monkeypatch: pytest.MonkeyPatch, files: list[str]) -> None:
    """They are a megabyte each: two batches being decoded and two in DALI, whether the consumer is fast or slow."""
    living: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()
    most, lock = 0, threading.Lock()

    def counted(data: bytes) -> np.ndarray:
        nonlocal most
        image = decode_grey(data).copy()
        with lock:
            living[id(image)] = image
            most = max(most, len(living))
        return image

    monkeypatch.setattr(dali_reader, "decode_grey", counted)
    with closing(DaliReader(locate, SIZE, max_batch_size=BATCH, num_threads=2, device_id=None, prefetch=2)) as made:
        for number, answer in enumerate(made.read(requests(files * 8, BATCH))):
            if number % 10 == 5:
                time.sleep(0.05)
            assert len(answer.pixels) in (BATCH, len(files * 8) % BATCH)
        assert 2 * BATCH <= most <= 4 * BATCH
        gc.collect()
        assert len(living) <= BATCH  # DALI lets go of the last batch when the next one comes


def test_closing_dali_early_leaves_nothing_in_its_threads(monkeypatch: pytest.MonkeyPatch, files: list[str]) -> None:
    decoded = 0

    def slow(data: bytes) -> np.ndarray:
        nonlocal decoded
        time.sleep(0.02)
        decoded += 1
        return decode_grey(data)

    monkeypatch.setattr(dali_reader, "decode_grey", slow)
    with closing(DaliReader(locate, SIZE, max_batch_size=16, num_threads=1, device_id=None)) as made:
        answers = made.read(requests(files * 4, 16))
        next(answers)
        answers.close()
        at_close = decoded
        assert at_close < 40  # 16 handed out, 32 asked for ahead: most of those were called off
        time.sleep(0.1)
        assert decoded == at_close


def test_dali_says_when_it_broke(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An image without pixels, by force: no hang, and no second use."""
    with closing(DaliReader(locate, SIZE, max_batch_size=4, num_threads=1, device_id=None)) as made:
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match=r"(?s)DALI broke .*data.loader=torch"):
            patch.setattr("distcxr.data.readers.dali_reader.decode_grey", lambda _: np.empty((0, 5), dtype=np.uint8))
            patch.setattr(
                "distcxr.data.readers.dali_reader.resize_rim", lambda _, size: np.zeros((4, size), dtype=np.uint8)
            )
            list(made.read(requests(files, BATCH)))
        with pytest.raises(AssertionError, match="broken"):
            next(made.read(requests(files, BATCH)))


@pytest.mark.gpu
@pytest.mark.parametrize("size", [SIZE, 20])
def test_dali_on_a_gpu_gives_the_same_pixels(files: list[str], size: int) -> None:
    pytest.importorskip("nvidia.dali")
    with closing(DaliReader(locate, size, max_batch_size=8, num_threads=2, device_id=0)) as made:
        for _ in range(3):  # buffers are used again: a copy that came too late would show
            answers = list(made.read(requests(files * 4, 8)))
            for answer, request in zip(answers, requests(files * 4, 8), strict=True):
                assert answer.pixels.is_cuda
                assert_is(Pixels(answer.pixels.cpu(), answer.unreadable), locate(request), size)


@pytest.mark.gpu
def test_dali_on_a_busy_gpu_gives_the_same_pixels(files: list[str]) -> None:
    """The consumer's stream is far behind: nothing that its queued work will read may be used again before."""
    pytest.importorskip("nvidia.dali")
    heavy = torch.ones(4096, 4096, device="cuda")
    with closing(DaliReader(locate, SIZE, max_batch_size=8, num_threads=2, device_id=0)) as made:
        sums = []
        for answer in made.read(requests(files * 4, 8)):
            for _ in range(20):
                heavy = heavy @ heavy * 1e-4
            sums.append(answer.pixels.long().sum(dim=(1, 2, 3)))
        with closing(MAKE["dali"](SIZE)) as on_cpu:
            expected = torch.cat([a.pixels.long().sum(dim=(1, 2, 3)) for a in on_cpu.read(requests(files * 4, 8))])
        assert (torch.cat(sums).cpu() - expected).abs().max() <= SIZE * SIZE  # one grey level a pixel
