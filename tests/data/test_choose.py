"""Which reader is chosen, with how many workers, and the line that says why."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from host_kernels import host_decoder
from pictures import index_of
from PIL import Image

from distcxr.data.index import SampleIndex
from distcxr.data.loader import PixelReader
from distcxr.data.pixels.png_gpu import PngDecoder
from distcxr.data.readers import budget, choose
from distcxr.data.readers.budget import thread_budget
from distcxr.data.readers.cache_reader import CacheReader
from distcxr.data.readers.choose import choose_reader
from distcxr.data.readers.dali_reader import DaliReader
from distcxr.data.readers.gpu_reader import GpuReader
from distcxr.data.readers.make import WAVES, Rank
from distcxr.data.readers.reader_speed import Speed
from distcxr.data.readers.torch_reader import TorchReader
from distcxr.data.store.cache_building import build_cache
from distcxr.data.store.cache_format import cache_folder
from distcxr.recipe.data import Data


@pytest.mark.parametrize(
    ("cpus", "world", "environ", "cores"),
    [
        (16, 1, {}, 16),
        (16, 4, {}, 4),
        (2, 2, {}, 1),
        (1, 4, {}, 1),
        (8, 4, {"SLURM_CPUS_PER_TASK": "8", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, 8),  # one task per rank
        (64, 4, {"SLURM_CPUS_PER_TASK": "8", "SLURM_TASKS_PER_NODE": "4"}, 8),  # not bound to its CPUs
        (32, 4, {"SLURM_CPUS_PER_TASK": "32", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, 8),  # one task per node
        (64, 4, {"SLURM_CPUS_PER_TASK": "32"}, 8),
    ],
)
def test_thread_budget(
    cpus: int, world: int, environ: dict[str, str], cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)))
    monkeypatch.setattr(budget, "_cgroup_cpus", lambda: None)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert thread_budget(world) == cores


def test_thread_budget_minds_the_containers_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "membership").write_text("0::/a/b\n")
    (tmp_path / "a" / "cpu.max").write_text("600000 100000\n")
    (tmp_path / "a" / "b" / "cpu.max").write_text("max 100000\n")
    limit = budget._cgroup_cpus(tmp_path, tmp_path / "membership")
    assert limit == 6
    (tmp_path / "cpu" / "job").mkdir(parents=True)
    (tmp_path / "cpu" / "job" / "cpu.cfs_quota_us").write_text("250000\n")
    (tmp_path / "cpu" / "job" / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "membership").write_text("4:memory:/job\n1:cpu:/job\n")
    assert budget._cgroup_cpus(tmp_path, tmp_path / "membership") == 2.5
    (tmp_path / "cpu" / "job" / "cpu.cfs_quota_us").write_text("-1\n")
    assert budget._cgroup_cpus(tmp_path, tmp_path / "membership") is None
    monkeypatch.setattr(budget, "_cgroup_cpus", lambda: 6.0)
    assert [thread_budget(world) for world in (1, 2, 4, 8)] == [6, 3, 1, 1]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    """Ten images, the last two of them broken."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    names = [f"{number}.png" for number in range(10)]
    for name in names[:8]:
        Image.fromarray(rng.integers(0, 256, (64, 64)).astype(np.uint8)).save(root / name)
    (root / names[8]).write_bytes(b"")
    (root / names[9]).write_bytes(b"no picture")
    return index_of(root, names)


def pick(index: SampleIndex, world: int = 1, device: str = "cpu", rows: list[int] | None = None, **data: Any) -> Any:
    """The reader of rank 0, closed at once: what it is and what it says of itself is asked here, not what it reads."""
    reader = choose_reader(
        Data.model_validate({"image_size": 32} | data),
        index,
        max_batch_size=4,
        device=torch.device(device),
        local_world_size=world,
        first_rows=np.array(range(len(index)) if rows is None else rows, dtype=np.int64),
        decided_by_main=lambda decide: decide(),
    )
    reader.close()
    return reader


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="distcxr")
    return caplog


@pytest.fixture
def tries_dali(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `auto` tries where there is a GPU."""
    monkeypatch.setattr(choose, "_candidates", lambda _: ("torch", "dali"))


def measured_as(monkeypatch: pytest.MonkeyPatch, *, torch_: float, dali: float) -> None:
    """Images per second that the measurements are to give."""
    monkeypatch.setattr(choose, "speed_of_decoding", lambda *_, **__: Speed(torch_, 3.0))
    monkeypatch.setattr(choose, "speed_of_reader", lambda *_, **__: Speed(dali, 4.0))


def test_what_is_asked_for_is_taken(
    index: SampleIndex, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(choose, "thread_budget", lambda world: 4 // world)
    assert isinstance(pick(index, loader="torch"), TorchReader)
    assert "loader torch (as asked)" in said.text and "4 worker processes" in said.text
    pick(index, world=4, loader="torch")
    assert "in the calling process" in said.text
    assert isinstance(pick(index, loader="dali", num_workers=3), DaliReader)
    assert "by 3 threads of distcxr (DALI has no GPU PNG decoder); DALI resizes on the CPU" in said.text
    assert isinstance(pick(index, loader="dali", num_workers=0), DaliReader)
    assert "by 1 thread of distcxr" in said.text


def test_without_a_gpu_auto_takes_torch_and_does_not_import_dali(
    index: SampleIndex, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    """DALI is the same decoder there with a slower resize, and takes two seconds to try."""
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    assert isinstance(pick(index), TorchReader)
    assert "loader torch (the fastest on a CPU)" in said.text and "dali" not in said.text


@pytest.mark.usefixtures("tries_dali")
@pytest.mark.parametrize(("dali", "kind"), [(900.0, "torch"), (1100.0, "dali")])
def test_auto_takes_the_faster_and_says_what_would_be_faster_still(
    dali: float, kind: str, index: SampleIndex, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    measured_as(monkeypatch, torch_=1000.0, dali=dali)
    monkeypatch.setattr(choose, "thread_budget", lambda world: 2)
    many = index.take(np.arange(8).repeat(14_015))
    assert isinstance(pick(many, image_size=224), {"torch": TorchReader, "dali": DaliReader}[kind])
    lines = [record.getMessage() for record in said.records]
    assert len(lines) == 3
    assert lines[0].startswith("measured on 32 images, for each rank: torch gives 1,000 img/s (3.00 ms of a core")
    assert f"dali gives {dali:,.0f} img/s (4.00 ms" in lines[0]
    # 112,120 images of 224 x 224 at 3 ms on two cores
    assert "`distcxr cache RECIPE` writes 5.6 GB once (about 3 min on the 2 cores here)" in lines[1]
    assert lines[2].startswith(f"loader {kind} (measured fastest)")


@pytest.mark.usefixtures("tries_dali")
def test_auto_measures_real_files_in_about_two_seconds(index: SampleIndex, said: pytest.LogCaptureFixture) -> None:
    start = time.monotonic()
    pick(index, num_workers=1)
    assert time.monotonic() - start < 6  # on a busy machine
    figures = re.search(
        r"on 8 images.* torch gives (\S+) img/s .(\S+) ms.* dali gives (\S+) img/s .(\S+) ms", said.text
    )
    assert figures is not None
    torch_rate, torch_ms, dali_rate, dali_ms = (float(figure.replace(",", "")) for figure in figures.groups())
    for rate, core_ms in ((torch_rate, torch_ms), (dali_rate, dali_ms)):  # 64 x 64 pixels, one core
        assert 0.001 < 1e3 / rate < 20 and core_ms == pytest.approx(1e3 / rate, abs=0.006)  # shown with two decimals
    assert ("loader torch" in said.text) == (torch_rate >= dali_rate)


def test_auto_with_hardly_a_file(index: SampleIndex, said: pytest.LogCaptureFixture) -> None:
    pick(index, rows=[3])
    assert "measured on 1 image, " in said.text


@pytest.mark.parametrize("rows", [[8, 9], []])
def test_auto_without_a_readable_file_takes_torch(
    rows: list[int], index: SampleIndex, said: pytest.LogCaptureFixture
) -> None:
    assert isinstance(pick(index, rows=rows), TorchReader)
    assert f"loader torch (none of the {len(rows)} images tried can be read, so nothing was measured)" in said.text


def test_all_ranks_take_what_rank_0_decided(index: SampleIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0's answer arrives from outside: this rank measures nothing and builds the same kind."""

    def never(*_: object, **__: object) -> Speed:
        raise AssertionError("only rank 0 measures")

    monkeypatch.setattr(choose, "speed_of_decoding", never)
    arguments: dict[str, Any] = {
        "max_batch_size": 4, "device": torch.device("cpu"), "local_world_size": 2, "first_rows": np.arange(8),
    }  # fmt: skip
    for kind, reader in (("torch", TorchReader), ("dali", DaliReader)):
        said_by_main = lambda _, kind=kind: (kind, "measured")  # noqa: E731
        with closing(choose_reader(Data(image_size=32), index, decided_by_main=said_by_main, **arguments)) as made:
            assert isinstance(made, reader)


@pytest.fixture
def cached(index: SampleIndex, tmp_path: Path) -> SampleIndex:
    """The same images in a folder of their own, with their decoded cache."""
    shutil.copytree(index.root, tmp_path / "images")
    copied = replace(index, root=tmp_path / "images")
    build_cache(copied, cache_folder(Data(image_size=32), copied.root), 32, workers=1)
    return copied


def test_auto_takes_a_whole_cache_and_measures_nothing(cached: SampleIndex, said: pytest.LogCaptureFixture) -> None:
    assert isinstance(pick(cached), CacheReader)
    assert "32px is whole, and nothing reads faster): decoded images come from" in said.text
    assert "measured" not in said.text


def change_a_source(index: SampleIndex) -> str:
    os.utime(index.root / "3.png", ns=(1, 1))
    return "1 of 10 images have changed since it was built, such as 3.png"


def cut_the_pixels(index: SampleIndex) -> str:
    (pixels,) = (index.root / "distcxr-cache" / "32px").glob("*.u8")
    with pixels.open("r+b") as file:
        file.truncate(100)
    return "has 100 bytes instead of"


def lose_the_settings(index: SampleIndex) -> str:
    (index.root / "distcxr-cache" / "32px" / "cache.json").unlink()
    return "there is no decoded cache in"


@pytest.mark.parametrize("spoil", [change_a_source, cut_the_pixels, lose_the_settings])
def test_a_cache_that_can_not_be_used(
    spoil: Callable[[SampleIndex], str], cached: SampleIndex, said: pytest.LogCaptureFixture
) -> None:
    """Asked for, it is an error with the reason and the command; `auto` logs the reason and continues with PNGs."""
    why = spoil(cached)
    with pytest.raises(ValueError, match=f"{why}.*`distcxr cache RECIPE`"):
        pick(cached, loader="cache")
    assert isinstance(pick(cached), TorchReader | DaliReader)
    assert "data.loader=auto continues without the decoded cache:" in said.text and why in said.text
    assert "measured on 8 images" in said.text


def test_a_cache_is_staged_first(cached: SampleIndex, tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    pick(cached, loader="cache", cache={"stage_to": tmp_path / "fast"})
    assert f"decoded images come from {tmp_path / 'fast'}" in said.text
    with pytest.raises(ValueError, match=r"data\.cache\.stage_to=/proc"):
        pick(cached, loader="cache", cache={"stage_to": "/proc/nowhere"})


def test_dali_missing_says_how_to_get_it(
    index: SampleIndex, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(ValueError, match=r"nvidia-dali-cuda130.*nvidia-dali-cuda120.*data.loader=torch"):
        pick(index, loader="dali")
    monkeypatch.setattr(choose, "_candidates", lambda _: ("torch", "dali"))
    assert isinstance(pick(index), TorchReader)
    assert "dali failed: DALI does not work here" in said.text and "nvidia.dali" in said.text
    assert "loader torch (nothing else works here)" in said.text


@pytest.mark.usefixtures("tries_dali")
def test_auto_trains_on_when_dali_breaks_while_measured(
    index: SampleIndex, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    def breaks(*_: object, **__: object) -> Speed:
        raise RuntimeError("DALI broke (CUDA out of memory)")

    monkeypatch.setattr(choose, "speed_of_reader", breaks)
    assert isinstance(pick(index), TorchReader)
    assert "dali failed: DALI broke (CUDA out of memory)" in said.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_dali_without_the_gpu_it_is_to_use(index: SampleIndex, said: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match=r"DALI does not work here .*data.loader=torch"):
        pick(index, loader="dali", device="cuda:0")
    assert isinstance(pick(index, device="cuda:0"), TorchReader)
    assert "dali failed: DALI does not work here" in said.text


@pytest.fixture
def decoding(index: SampleIndex, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Ranks that think they have a GPU, whose kernels are compiled for the CPU; img/s that each kind is to have."""
    speeds, made = {"torch": 1000.0, "dali": 900.0, "gpu": 1000.0, "gpu_filters": 1000.0}, dict[int, str]()

    def make(rank: Rank, kind: str) -> PixelReader:
        if kind not in ("gpu", "gpu_filters"):
            return make_other(replace(rank, device=torch.device("cpu")), kind)  # type: ignore[arg-type]
        decoder = host_decoder(rank.data.image_size, "gpu" if kind == "gpu" else "cpu")
        reader = replace(rank, device=torch.device("cpu")).gpu_reader(decoder, WAVES[kind])
        made[id(reader)] = kind
        return reader

    make_other = Rank.make
    monkeypatch.setattr(choose, "_PROVEN", True)
    monkeypatch.setattr(Rank, "make", make)
    monkeypatch.setattr(choose, "speed_of_decoding", lambda *_, **__: Speed(speeds["torch"], 3.0))
    monkeypatch.setattr(
        choose, "speed_of_reader", lambda reader, *_, **__: Speed(speeds[made.get(id(reader), "dali")], 4.0)
    )
    return speeds


@pytest.mark.parametrize(
    ("gpu", "gpu_filters", "taken"),
    [(1400.0, 1000.0, "torch"), (1600.0, 1000.0, "gpu"), (1600.0, 1700.0, "gpu_filters")],
)
def test_auto_takes_the_gpu_where_it_is_much_faster(
    gpu: float, gpu_filters: float, taken: str, index: SampleIndex, decoding: dict[str, float],
    said: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The GPU's time is training's, too."""
    decoding |= {"gpu": gpu, "gpu_filters": gpu_filters}
    assert isinstance(pick(index, device="cuda:0"), TorchReader if taken == "torch" else GpuReader)
    assert f"gpu gives {gpu:,.0f} img/s" in said.text and f"gpu_filters gives {gpu_filters:,.0f} img/s" in said.text
    assert f"loader {taken} (measured fastest)" in said.text


def test_auto_does_not_try_what_no_gpu_has_proven(
    index: SampleIndex, decoding: dict[str, float], monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    """A fault on a GPU would end the process; who asks for it by name means to try it."""
    decoding |= {"gpu": 9000.0, "gpu_filters": 9000.0}
    monkeypatch.setattr(choose, "_PROVEN", False)
    assert isinstance(pick(index, device="cuda:0"), TorchReader)
    assert "dali gives" in said.text and "gpu gives" not in said.text and "gpu_filters gives" not in said.text
    assert isinstance(pick(index, device="cuda:0", loader="gpu"), GpuReader)


@pytest.mark.parametrize(("inflate", "taken"), [("auto", "gpu_filters"), ("gpu", "gpu"), ("cpu", "gpu_filters")])
def test_who_inflates_is_measured_or_as_asked(
    inflate: str, taken: str, index: SampleIndex, decoding: dict[str, float], said: pytest.LogCaptureFixture
) -> None:
    decoding["gpu_filters"] = 1001.0
    assert isinstance(pick(index, device="cuda:0", loader="gpu", gpu={"inflate": inflate}), GpuReader)
    assert f"loader {taken} (" in said.text and "torch gives" not in said.text


def test_a_gpu_whose_pixels_are_wrong_is_not_taken(
    index: SampleIndex, decoding: dict[str, float], monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    decoding |= {"gpu": 9000.0, "gpu_filters": 9000.0}
    right = PngDecoder.decode

    def wrong(self: PngDecoder, images: Any, out_BSS: torch.Tensor) -> torch.Tensor:
        verdicts = right(self, images, out_BSS)
        out_BSS[0, 3, 3] += 1
        return verdicts

    monkeypatch.setattr(PngDecoder, "decode", wrong)
    assert isinstance(pick(index, device="cuda:0"), TorchReader)
    for kind in ("gpu", "gpu_filters"):
        assert f"; {kind} failed: its pixels differ from the CPU's in 1 of 8 images" in said.text
    with pytest.raises(ValueError, match=r"data\.loader=gpu does not work here: its pixels differ"):
        pick(index, device="cuda:0", loader="gpu")


def test_the_gpu_loader_without_a_gpu(index: SampleIndex) -> None:
    with pytest.raises(ValueError, match=r"data\.loader=gpu needs a GPU, and this rank has none.*loader=auto"):
        pick(index, loader="gpu")


@pytest.mark.gpu
def test_auto_measures_on_the_gpu(index: SampleIndex, said: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("nvidia.dali")
    pick(index, device="cuda", num_workers=2)
    assert re.search(r"on 8 images.* torch gives \S+ img/s .*dali gives \S+ img/s", said.text)
