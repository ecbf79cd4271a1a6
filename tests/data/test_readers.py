"""Both readers against Pillow: pixels, order, bad files, early ends, dead workers."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch
from nih_files import real_xrays
from PIL import Image

from distcxr.data.loader import PixelReader, Pixels, Request
from distcxr.data.loaders.dali import DaliReader
from distcxr.data.loaders.torch import TorchReader
from distcxr.data.pixels.png import Header

SIZE, BATCH = 48, 4
TOLERANCE = {"torch": 0, "torch in process": 0, "dali": 1}
MAKE: dict[str, Callable[[int], PixelReader]] = {
    "torch": lambda size: TorchReader(size, num_workers=2, pin_memory=False),
    "torch in process": lambda size: TorchReader(size, num_workers=0, pin_memory=False),
    "dali": lambda size: DaliReader(size, max_batch_size=16, num_threads=2, device_id=None),
}


@pytest.fixture(scope="module", params=MAKE)
def reader(request: pytest.FixtureRequest) -> Iterator[tuple[PixelReader, int]]:
    """A reader and its largest difference from Pillow; one for the whole file, as in a training run."""
    made = MAKE[request.param](SIZE)
    with closing(made):
        yield made, TOLERANCE[request.param]


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


def requests(files: list[str], batch: int = BATCH) -> list[Request]:
    rows = np.arange(len(files), dtype=np.int64)
    return [Request(rows[i : i + batch], files[i : i + batch]) for i in range(0, len(files), batch)]


def by_pillow(file: str, size: int = SIZE) -> torch.Tensor:
    grey = Image.open(file).convert("L").resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(grey))


def assert_is(pixels: Pixels, files: list[str], tolerance: int, size: int = SIZE) -> None:
    assert pixels.pixels.dtype == torch.uint8 and pixels.pixels.shape == (len(files), 1, size, size)
    expected = torch.stack([by_pillow(file, size) for file in files])
    assert (pixels.pixels[:, 0].int() - expected.int()).abs().max() <= tolerance
    assert pixels.unreadable == ()


def test_pixels_and_order_are_as_asked(reader: tuple[PixelReader, int], files: list[str]) -> None:
    order = [files[place] for place in np.random.default_rng(3).permutation(len(files))] + files[:3] * 2
    for batch in (BATCH, 1, 7):  # 27 files: the last batch is shorter
        answers = list(reader[0].read(requests(order, batch)))
        asked = requests(order, batch)
        assert len(answers) == len(asked)
        for answer, request in zip(answers, asked, strict=True):
            assert_is(answer, request.files, reader[1])


def test_batch_sizes_may_vary(reader: tuple[PixelReader, int], files: list[str]) -> None:
    asked = [Request(np.arange(n), files[:n]) for n in (3, 1, 16, 2, 16, 1)]
    for answer, request in zip(reader[0].read(asked), asked, strict=True):
        assert_is(answer, request.files, reader[1])


def test_nothing_asked_nothing_given(reader: tuple[PixelReader, int], files: list[str]) -> None:
    assert list(reader[0].read([])) == []
    assert_is(next(reader[0].read(requests(files))), files[:BATCH], reader[1])


def test_an_early_end_leaves_a_clean_start(reader: tuple[PixelReader, int], files: list[str]) -> None:
    many = requests(files * 2)
    for stop_after in (0, 1, 2):
        with closing(reader[0].read(many)) as answers:
            for _ in range(stop_after):
                next(answers)
        other = requests(files[::-1], 5)
        for answer, request in zip(reader[0].read(other), other, strict=True):
            assert_is(answer, request.files, reader[1])


def test_requests_are_pulled_only_a_little_ahead(reader: tuple[PixelReader, int], files: list[str]) -> None:
    pulled = 0

    def endless() -> Iterator[Request]:
        nonlocal pulled
        while True:
            pulled += 1
            yield Request(np.arange(2), files[:2])

    with closing(reader[0].read(endless())) as answers:
        for used in range(1, 20):
            next(answers)
            assert pulled <= used + 5


def test_an_error_in_the_order_comes_through_and_leaves_a_clean_start(
    reader: tuple[PixelReader, int], files: list[str]
) -> None:
    def broken() -> Iterator[Request]:
        yield from requests(files[:12])
        raise RuntimeError("the order broke")

    with pytest.raises(RuntimeError, match="the order broke"):
        list(reader[0].read(broken()))
    answers = list(reader[0].read(requests(files)))
    assert_is(answers[0], files[:BATCH], reader[1])
    assert len(answers) == len(requests(files))


def test_two_reads_at_once_are_refused(reader: tuple[PixelReader, int], files: list[str]) -> None:
    with closing(reader[0].read(requests(files))) as first:
        next(first)
        with pytest.raises(AssertionError, match="one read at a time"):
            next(reader[0].read(requests(files)))


def test_bad_files_are_named_and_the_rest_is_right(
    reader: tuple[PixelReader, int], files: list[str], tmp_path: Path
) -> None:
    whole = Path(files[0]).read_bytes()
    bad = {
        "truncated": whole[: len(whole) // 2],
        "zero bytes": b"",
        "not a PNG": b"no picture at all",
        "wrong CRC": whole[:60] + bytes([whole[60] ^ 1]) + whole[61:],
    }
    mixed = []
    for number, data in enumerate(bad.values()):
        (tmp_path / f"{number}.png").write_bytes(data)
        mixed += [files[number], str(tmp_path / f"{number}.png")]
    mixed.append(str(tmp_path / "absent.png"))
    for _ in range(2):  # in a second epoch, too
        (answer,) = reader[0].read([Request(np.arange(9), mixed)])
        assert [place for place, _ in answer.unreadable] == [1, 3, 5, 7, 8]
        for (_, reason), word in zip(answer.unreadable, [*bad, "can't be read: No such file"], strict=True):
            assert word in reason
        for place in range(0, 8, 2):
            good = Pixels(answer.pixels[place : place + 1], ())
            assert_is(good, mixed[place : place + 1], reader[1])
        assert answer.pixels[[1, 3, 5, 7, 8]].max() == 0


def test_a_file_that_changes_is_checked_anew(reader: tuple[PixelReader, int], files: list[str], tmp_path: Path) -> None:
    file = tmp_path / "changing.png"
    for content, readable in ((files[0], True), (files[1], True), (None, False), (files[2], True)):
        file.write_bytes(Path(content).read_bytes() if content else Path(files[2]).read_bytes()[:-40])
        os.utime(file, ns=(time.time_ns(), time.time_ns()))
        (answer,) = reader[0].read([Request(np.arange(1), [str(file)])])
        assert (not answer.unreadable) == readable
        if content:
            assert_is(answer, [content], reader[1])


def save(mode: str, array: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(array)
    (image if mode == image.mode else image.convert(mode)).save(file, "PNG", **options)
    return file.getvalue()


def test_every_kind_of_png_gives_the_same_grey(reader: tuple[PixelReader, int], tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    colour = rng.integers(0, 256, (96, 96, 4)).astype(np.uint8)
    grey, deep = colour[..., 0], rng.integers(0, 65536, (96, 96)).astype(np.uint16)
    flat = np.stack([grey, grey, grey, np.full_like(grey, 255)], axis=2)
    kinds = {
        "L": save("L", grey), "1": save("1", grey), "RGB": save("RGB", colour), "RGBA": save("RGBA", colour),
        "LA": save("LA", colour), "P": save("P", colour[..., :3]), "16 bits": save("I;16", deep),
        "NIH's RGBA": save("RGBA", flat), "uncompressed": save("L", grey, compress_level=0),
    }  # fmt: skip
    for name, data in kinds.items():
        (tmp_path / f"{name}.png").write_bytes(data)
    files = [str(tmp_path / f"{name}.png") for name in kinds]
    expected = []
    for name, data in kinds.items():
        image = Image.open(io.BytesIO(data))
        value = Image.fromarray((deep >> 8).astype(np.uint8)) if name == "16 bits" else image.convert("L")
        expected.append(np.array(value.resize((SIZE, SIZE), Image.Resampling.BILINEAR)))
    (answer,) = reader[0].read([Request(np.arange(len(files)), files)])
    assert answer.unreadable == ()
    difference = np.abs(answer.pixels[:, 0].numpy().astype(int) - np.stack(expected)).max(axis=(1, 2))
    assert dict(zip(kinds, difference, strict=True)) == pytest.approx(dict.fromkeys(kinds, 0), abs=reader[1])


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("size", [224, 320])
def test_real_xrays_are_within_a_grey_level_of_pillow(name: str, size: int) -> None:
    images = [str(file) for file in real_xrays(every=15)]
    with closing(MAKE[name](size)) as made:
        for answer, request in zip(made.read(requests(images, 8)), requests(images, 8), strict=True):
            assert_is(answer, request.files, TOLERANCE[name], size)


def test_the_global_random_state_is_left_alone(files: list[str]) -> None:
    """Dropout's masks must not depend on which loader feeds it."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with closing(MAKE["torch"](SIZE)) as made:
        list(made.read(requests(files)))
        list(made.read(requests(files)))
    assert torch.equal(before, torch.get_rng_state())


def test_a_killed_worker_is_an_error_within_seconds_and_the_next_read_works(files: list[str]) -> None:
    with closing(TorchReader(SIZE, num_workers=1, pin_memory=False)) as made:
        before = {child.pid for child in active_children()}
        answers = made.read(requests(files * 20))
        next(answers)
        (worker,) = (child for child in active_children() if child.pid not in before)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(RuntimeError, match="a decoding worker died"):
            list(answers)
        assert time.monotonic() - start < 15
        assert_is(next(made.read(requests(files))), files[:BATCH], 0)


def test_a_signal_to_the_whole_job_leaves_the_workers_at_work(files: list[str]) -> None:
    with closing(TorchReader(SIZE, num_workers=1, pin_memory=False)) as made:
        before = {child.pid for child in active_children()}
        answers = made.read(requests(files))
        received = [next(answers)]
        (worker,) = (child for child in active_children() if child.pid not in before)
        assert worker.pid is not None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(worker.pid, number)
        received += list(answers)
        assert len(received) == len(requests(files))
    assert not worker.is_alive()


ORPHANS = """
import sys, time
import numpy as np
from multiprocessing import active_children
from distcxr.data.loader import Request
from distcxr.data.loaders.torch import TorchReader

if __name__ == "__main__":
    reader = TorchReader(32, num_workers=2, pin_memory=False)
    answers = reader.read([Request(np.arange(1), [sys.argv[1]])] * 100)
    next(answers)
    sys.stdout.write(" ".join(str(child.pid) for child in active_children()) + "\\n")
    sys.stdout.flush()
    {ending}
"""


@pytest.mark.parametrize("ending", ["raise SystemExit", "time.sleep(600)"], ids=["exit", "killed"])
def test_no_worker_outlives_its_parent(ending: str, files: list[str], tmp_path: Path) -> None:
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS.format(ending=ending))
    command = [sys.executable, str(script), files[0]]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        workers = [int(word) for word in process.stdout.readline().split()]
        assert len(workers) == 2, process.stderr.read()
        if "sleep" in ending:
            process.kill()
        else:
            assert process.wait(timeout=30) == 0
            assert process.stderr.read() == ""
    deadline = time.monotonic() + 20
    while (left := [pid for pid in workers if running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []


def running(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_too_little_shared_memory_is_said_before_a_bus_error(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 2**20})()
    monkeypatch.setattr("distcxr.data.loaders.torch.shutil.disk_usage", lambda _: usage)
    with closing(TorchReader(1024, num_workers=1, pin_memory=False)) as made:
        with pytest.raises(RuntimeError, match=r"1 MiB free and the workers need 12: use fewer workers"):
            next(made.read(requests(files)))


def test_dali_says_when_it_broke(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Unchecked bytes, by force: no hang, and no second use."""
    monkeypatch.setattr("distcxr.data.loaders.dali.check", lambda _: Header(8, 8, 8, 0, False))
    with closing(DaliReader(SIZE, max_batch_size=4, num_threads=1, device_id=None)) as made:
        broken = [Request(np.arange(1), [__file__])]
        with pytest.raises(RuntimeError, match=r"(?s)DALI broke .*data.loader=torch"):
            list(made.read(broken))
        with pytest.raises(AssertionError, match="broken"):
            next(made.read(requests(files)))


@pytest.mark.gpu
@pytest.mark.parametrize("size", [SIZE, 20])
def test_dali_on_a_gpu_gives_the_same_pixels(files: list[str], size: int) -> None:
    with closing(DaliReader(size, max_batch_size=8, num_threads=2, device_id=0)) as made:
        for _ in range(3):  # buffers are used again: a copy that came too late would show
            answers = list(made.read(requests(files, 8)))
            for answer, request in zip(answers, requests(files, 8), strict=True):
                assert answer.pixels.is_cuda
                assert_is(Pixels(answer.pixels.cpu(), answer.unreadable), request.files, 1, size)


@pytest.mark.gpu
def test_torch_pins_its_pixels(files: list[str]) -> None:
    for num_workers in (0, 1):
        with closing(TorchReader(SIZE, num_workers=num_workers, pin_memory=True)) as made:
            for answer, request in zip(made.read(requests(files)), requests(files), strict=True):
                assert answer.pixels.is_pinned()
                assert_is(answer, request.files, 0)
