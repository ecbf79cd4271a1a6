"""The cache's reader: the same pixels as from the files, in any order, from the host or the device."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import caches
import numpy as np
import pytest
import torch
from caches import SIZE
from reader_contract import (  # noqa: F401
    Check,
    test_an_early_end_leaves_a_clean_start,
    test_an_error_in_the_order_comes_through_and_leaves_a_clean_start,
    test_nothing_asked_nothing_given,
    test_requests_are_pulled_only_a_little_ahead,
    test_two_reads_at_once_are_refused,
)

from distcxr.data.index import SampleIndex
from distcxr.data.loader import Pixels, Request
from distcxr.data.readers.cache_reader import CacheReader
from distcxr.data.store.cache_format import open_cache
from distcxr.data.store.store_files import StoreError

ROW_GB = SIZE * SIZE / 1e9
KINDS = {
    "host": {}, "reading ahead": {}, "device": {"resident": "device"},
    "device in part": {"resident": "device", "device_gb": 7.5 * ROW_GB},
    "device for one image": {"resident": "device", "device_gb": 1.5 * ROW_GB},
    "device for none": {"resident": "device", "device_gb": 0.5 * ROW_GB},
}  # fmt: skip


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    return caches.dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def folder(index: SampleIndex, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    caches.build(index, folder)
    return folder


def make(index: SampleIndex, folder: Path, device: str = "cpu", **options: object) -> CacheReader:
    cache = open_cache(folder, index, SIZE)
    options = {"first_rows": np.arange(0)} | options
    return CacheReader(cache, device=torch.device(device), prefetch=2, max_batch_size=16, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=KINDS)
def reader(request: pytest.FixtureRequest, index: SampleIndex, folder: Path) -> Iterator[CacheReader]:
    made = make(index, folder, first_rows=np.array([2, 9, 4]), **KINDS[request.param])
    if request.param == "reading ahead":  # what a GPU gets
        made._pool = ThreadPoolExecutor(1)
    with closing(made):
        yield made


@pytest.fixture
def asked(index: SampleIndex) -> list[Request]:
    return requests(np.arange(len(index)), 3)


@pytest.fixture
def check(index: SampleIndex) -> Check:
    return lambda answer, request: assert_is(answer, index, request)


@pytest.fixture
def ahead() -> int:
    return 2


def requests(rows: np.ndarray, batch: int = 5) -> list[Request]:
    return [rows[start : start + batch] for start in range(0, len(rows), batch)]


def assert_is(pixels: Pixels, index: SampleIndex, rows: np.ndarray) -> None:
    assert pixels.pixels.shape == (len(rows), 1, SIZE, SIZE) and pixels.pixels.dtype == torch.uint8
    np.testing.assert_array_equal(pixels.pixels[:, 0].cpu(), [caches.expected(index, row) for row in rows])
    wanted = [
        (position, caches.BAD[bytes(index.path[row]).decode()]) for position, row in enumerate(rows) if bad(index, row)
    ]
    assert [position for position, _ in pixels.unreadable] == [position for position, _ in wanted]
    assert all(word in reason for (_, reason), (_, word) in zip(pixels.unreadable, wanted, strict=True))


def bad(index: SampleIndex, row: int) -> bool:
    return bytes(index.path[row]).decode() in caches.BAD


def test_pixels_order_and_bad_files_are_as_asked(reader: CacheReader, index: SampleIndex) -> None:
    rows = np.concatenate([np.random.default_rng(3).permutation(len(index)), [0, 0, 7]])
    for batch in (5, 1, 16):
        asked = requests(rows, batch)
        for answer, request in zip(reader.read(asked), asked, strict=True):
            assert_is(answer, index, request)


def test_what_was_handed_out_stays_as_it_is(reader: CacheReader, index: SampleIndex) -> None:
    asked = requests(np.arange(len(index)), 4)
    answers = list(reader.read(asked))
    for answer in answers:
        answer.pixels.add_(1)  # in the caller's own memory
    again = list(reader.read(asked))
    for answer, request in zip(again, asked, strict=True):
        assert_is(answer, index, request)


def test_memory_is_used_again_when_a_batch_is_gone(index: SampleIndex, folder: Path) -> None:
    rows = np.arange(4)
    with closing(make(index, folder)) as made:
        addresses = {answer.pixels.data_ptr() for answer in made.read(requests(np.tile(rows, 50), 4))}
        assert len(addresses) <= 2 and all(address % 64 == 0 for address in addresses)
        kept = [answer.pixels[0, 0] for answer in made.read(requests(np.tile(rows, 5), 4))]  # a part holds all
        assert len({part.data_ptr() for part in kept}) == 5


@pytest.mark.parametrize("resident", ["host", "device"])
def test_damaged_pixels_are_never_handed_out(index: SampleIndex, tmp_path: Path, resident: str) -> None:
    caches.build(index, tmp_path)
    file = caches.pixels_file(tmp_path)
    data = bytearray(file.read_bytes())
    data[4 * SIZE * SIZE] ^= 1
    file.write_bytes(data)
    with pytest.raises(RuntimeError, match=r"images/04\.png in it are damaged.*`distcxr cache RECIPE`"):
        made = make(index, tmp_path, resident=resident)
        list(made.read(requests(np.arange(16))))


def test_an_error_while_reading_ahead_comes_through_and_nothing_is_left(index: SampleIndex, tmp_path: Path) -> None:
    caches.build(index, tmp_path)
    made = make(index, tmp_path)
    made._pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    caches.pixels_file(tmp_path).write_bytes(b"")
    with pytest.raises(RuntimeError, match="damaged"):
        list(made.read(requests(np.arange(16), 2)))
    made.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


@pytest.mark.parametrize(("images", "kept"), [(7.5, 7), (2.5, 2), (100, 16)])
def test_first_rows_go_into_the_devices_memory_first(
    index: SampleIndex, folder: Path, images: float, kept: int
) -> None:
    first = np.array([5, 1, 11])
    with closing(make(index, folder, resident="device", device_gb=images * ROW_GB, first_rows=first)) as made:
        held = np.flatnonzero(made._slot[made._cache.row_of] >= 0)
        assert len(held) == len(made._resident) == kept
        assert set(first[:kept].tolist()) <= set(held.tolist())
        assert f"{'all 16' if kept == 16 else kept} of 16 held in the memory of cpu" in made.where


def test_too_little_device_memory_says_how_much(
    index: SampleIndex, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (5_000, 10_000))
    with pytest.raises(StoreError, match=r"needs 0\.01 MB and cuda:3 has 0\.01 MB free.*data\.cache\.device_gb"):
        CacheReader._check_free(SimpleNamespace(_device=torch.device("cuda:3")), 9_000)  # type: ignore[arg-type]


@pytest.mark.gpu
def test_a_gpu_gets_pinned_or_resident_pixels(index: SampleIndex, folder: Path) -> None:
    for options in KINDS.values():
        with closing(make(index, folder, "cuda", **options)) as made:
            for _ in range(3):  # memory is used again: a copy that came too late would show
                asked = requests(np.random.default_rng(1).permutation(16), 3)
                for answer, request in zip(made.read(asked), asked, strict=True):
                    assert answer.pixels.is_cuda if options else answer.pixels.is_pinned()
                    assert_is(answer, index, request)
