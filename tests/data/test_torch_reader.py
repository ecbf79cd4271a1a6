"""What is torch's alone: worker processes that die, outlive or are signalled, and shared memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pictures import assert_is, locate, requests
from PIL import Image

from distcxr import processes
from distcxr.data.readers import torch_reader
from distcxr.data.readers.semaphores import SemaphoreNames
from distcxr.data.readers.torch_reader import StalledWorkers, TorchReader

SIZE, BATCH = 48, 4


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(21):
        Image.fromarray(rng.integers(0, 256, (96, 96)).astype(np.uint8)).save(folder / f"{number}.png")
    return [str(folder / f"{number}.png") for number in range(21)]


def test_the_global_random_state_is_left_alone(files: list[str]) -> None:
    """Dropout's masks must not depend on which loader feeds it."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with closing(TorchReader(locate, SIZE, num_workers=2, pin_memory=False)) as made:
        list(made.read(requests(files, BATCH)))
        list(made.read(requests(files, BATCH)))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.skipif(sys.platform != "linux", reason="semaphores have names in /dev/shm on Linux alone")
def test_running_workers_leave_no_semaphore_behind_when_everything_is_killed(
    files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    named: list[Path] = []
    remove = SemaphoreNames.remove

    def recorded(semaphores: SemaphoreNames) -> None:
        named[:] = [Path("/dev/shm") / f"sem.{name.removeprefix('/')}" for name in semaphores.names]
        assert named and all(path.exists() for path in named)
        remove(semaphores)

    monkeypatch.setattr(SemaphoreNames, "remove", recorded)
    with closing(TorchReader(locate, SIZE, num_workers=2, pin_memory=False)) as made:
        for _ in range(2):  # the second time with other workers
            assert len(list(made.read(requests(files * 5, BATCH)))) > 2
            assert len(named) > 10 and not any(path.exists() for path in named)
            assert_is(next(made.read(requests(files, BATCH))), files[:BATCH], SIZE)
            made.close()
            named.clear()


@pytest.mark.skipif(sys.platform != "linux", reason="semaphores have names in /dev/shm on Linux alone")
def test_names_that_a_kill_has_left_are_removed_once_nobody_can_need_them() -> None:
    old, young = (Path("/dev/shm") / f"sem.distcxr-test{os.getpid()}-{age}" for age in ("old", "young"))
    for path in (old, young):
        path.write_bytes(bytes(32))
    try:
        os.utime(old, (time.time() - 7200,) * 2)
        with SemaphoreNames().made():
            pass
        assert young.exists() and not old.exists()
    finally:
        young.unlink()
        old.unlink(missing_ok=True)


def test_a_batch_that_does_not_come_names_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Batches:
        _workers = (SimpleNamespace(pid=77),)

        def __next__(self) -> None:
            time.sleep(0.05)
            raise RuntimeError("DataLoader timed out after 2 seconds")

    monkeypatch.setattr(processes, "state", {77: "stopped (T)"}.get)
    reader = TorchReader(locate, SIZE, num_workers=1, pin_memory=False)
    monkeypatch.setattr(torch_reader, "_TIMEOUT_S", 0.2)
    monkeypatch.setattr(reader, "_batches", Batches())
    with pytest.raises(StalledWorkers, match=r"not read in 0\.2 s: worker process 77 is stopped \(T\)"):
        reader._next()


def test_a_killed_worker_is_an_error_within_seconds_and_the_next_read_works(files: list[str]) -> None:
    with closing(TorchReader(locate, SIZE, num_workers=1, pin_memory=False)) as made:
        before = {child.pid for child in active_children()}
        answers = made.read(requests(files * 20, BATCH))
        next(answers)
        (worker,) = (child for child in active_children() if child.pid not in before)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(RuntimeError, match="a decoding worker died"):
            list(answers)
        assert time.monotonic() - start < 15
        assert_is(next(made.read(requests(files, BATCH))), files[:BATCH], SIZE)


def test_a_signal_to_the_whole_job_leaves_the_workers_at_work(files: list[str]) -> None:
    with closing(TorchReader(locate, SIZE, num_workers=1, pin_memory=False)) as made:
        before = {child.pid for child in active_children()}
        answers = made.read(requests(files, BATCH))
        received = [next(answers)]
        (worker,) = (child for child in active_children() if child.pid not in before)
        assert worker.pid is not None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(worker.pid, number)
        received += list(answers)
        assert len(received) == len(requests(files, BATCH))
    assert not worker.is_alive()


ORPHANS = """
import sys, time
import numpy as np
from multiprocessing import active_children
from distcxr.data.readers.torch_reader import TorchReader

if __name__ == "__main__":
    reader = TorchReader(lambda request: [sys.argv[1]], 32, num_workers=2, pin_memory=False)
    answers = reader.read([np.arange(1)] * 100)
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
    monkeypatch.setattr("distcxr.data.readers.torch_reader.shutil.disk_usage", lambda _: usage)
    with closing(TorchReader(locate, 1024, num_workers=1, pin_memory=False)) as made:
        with pytest.raises(RuntimeError, match=r"1 MiB free and the workers need 12: use fewer workers"):
            next(made.read(requests(files, BATCH)))


@pytest.mark.gpu
def test_torch_pins_its_pixels(files: list[str]) -> None:
    for num_workers in (0, 1):
        with closing(TorchReader(locate, SIZE, num_workers=num_workers, pin_memory=True)) as made:
            for answer, request in zip(made.read(requests(files, BATCH)), requests(files, BATCH), strict=True):
                assert answer.pixels.is_pinned()
                assert_is(answer, locate(request), SIZE)
