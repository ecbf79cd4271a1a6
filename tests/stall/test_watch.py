"""What the thread that watches takes for a stall, and what it does not; other ranks are files that the test writes."""

from __future__ import annotations

import errno
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from distcxr import exit_codes, processes
from distcxr.runfolder.filenames import RANKS, STALLED
from distcxr.runfolder.rank_files import RankFile, read_rank_file, write_rank_file
from distcxr.stall import account, watch
from distcxr.stall.beginning import start_all
from distcxr.stall.signs import Signs
from distcxr.stall.watch import Watch

STALL_S = 1.0
OTHER = RankFile(rank=1, pid=1, host="elsewhere", started=0, doing="step", step=5, phase=2, beats=0, written="14:03:12")


class Watched:
    """A watch of a main thread that the test pretends to be, and of rank 1, which beats while `other_beats`."""

    def __init__(self, folder: Path, world_size: int, stall_s: float = STALL_S) -> None:
        self.left: list[int] = []
        self.ended = threading.Event()
        self.signs, self.folder = Signs(), folder
        self.signs.update(5)
        self.signs.is_host_work = False
        self.other, self.other_beats = OTHER, True
        self.watch = Watch(stall_s, world_size=world_size, signs=self.signs, leave=self._leave)

    def _leave(self, code: int) -> None:
        self.left.append(code)
        self.watch.stop()
        self.ended.set()

    def beat(self) -> None:
        number = 0
        while not self.watch._done.wait(0.05):
            number += self.other_beats
            write_rank_file(self.folder / RANKS, replace(self.other, beats=number))


@contextmanager
def watched(folder: Path, world_size: int = 1, **changes: object) -> Iterator[Watched]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in changes.items():
            patch.setattr(watch, name, value)
        made = Watched(folder, world_size)
        made.watch.use_run_folder(folder)
        made.watch.start()
        threads = [threading.Thread(target=made.beat)] if world_size > 1 else []
        for thread in threads:
            thread.start()
        try:
            yield made
        finally:
            made.watch.stop()
            for thread in (*threads, *made.watch._threads):
                thread.join()


def ends(made: Watched, within_s: float = 4 * STALL_S) -> bool:
    return made.ended.wait(within_s)


def test_one_rank_that_makes_no_progress_ends(tmp_path: Path) -> None:
    started_s = time.monotonic()
    with watched(tmp_path) as made:
        assert ends(made) and made.left == [exit_codes.STALLED]
    assert time.monotonic() - started_s > STALL_S
    text = (tmp_path / STALLED).read_text()
    assert "rank 0 makes no progress, step 5: process " in text and "test_one_rank_that_makes_no_progress" in text
    found = read_rank_file(tmp_path / RANKS, 0)
    assert found is not None and found.is_stuck and found.is_leaving and found.step == 5


def test_progress_is_progress(tmp_path: Path) -> None:
    with watched(tmp_path) as made:
        for _ in range(6):
            made.signs.tick()
            time.sleep(STALL_S / 4)
        assert not made.left


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (OTHER, ""),  # it lives and moves: rank 0 writes a checkpoint, say
        (replace(OTHER, is_stuck=True, phase=1, doing="waiting for the images of step"), "rank 1 makes no progress"),
        (replace(OTHER, is_stuck=True), "no rank makes progress, and none is behind the others"),
    ],
)
def test_another_rank_that_lives(tmp_path: Path, other: RankFile, expected: str) -> None:
    with watched(tmp_path, world_size=2) as made:
        made.other = other
        assert ends(made, 2 * STALL_S) == bool(expected)
    if expected:
        assert expected in (tmp_path / STALLED).read_text()


def test_another_rank_that_no_longer_writes(tmp_path: Path) -> None:
    """Although it looked busy when it last did."""
    with watched(tmp_path, world_size=2) as made:
        made.other_beats = False
        assert ends(made)
    assert "rank 1 is missing in step 5: process 1 on elsewhere, last sign" in (tmp_path / STALLED).read_text()


def test_a_slow_update_is_waited_for(tmp_path: Path) -> None:
    with watched(tmp_path) as made:
        made.signs.slowest_s = STALL_S
        assert made.watch.limit_s == 3 * STALL_S and not ends(made, 1.5 * STALL_S)


@pytest.mark.parametrize("work", ["cpu", "bytes", "none"])
def test_host_work_may_be_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str) -> None:
    """While it computes or copies: a cache is staged, figures are made."""
    began_s = time.monotonic()

    def done() -> tuple[float, int]:
        passed_s = time.monotonic() - began_s
        return (passed_s if work == "cpu" else 0.0, int(1e7 * passed_s) if work == "bytes" else 0)

    monkeypatch.setattr(processes, "work_done", done)
    with watched(tmp_path, _HOST_WORK=1.2) as made:
        made.signs.is_host_work = True
        assert ends(made, 2 * STALL_S) == (work == "none")


def test_time_in_which_this_process_was_stopped_does_not_count(tmp_path: Path) -> None:
    """After Ctrl-Z and `fg` a run continues."""
    jumped_s, clock = 0.0, time.monotonic
    with pytest.MonkeyPatch.context() as patch, watched(tmp_path) as made:
        patch.setattr(watch.time, "monotonic", lambda: clock() + jumped_s)
        for _ in range(6):
            made.signs.tick()
            time.sleep(STALL_S / 4)
            jumped_s += 100.0
        assert not made.left


def test_a_debugger_takes_its_time(tmp_path: Path) -> None:
    waits: dict[str, object] = {"__name__": "pdb", "time": time}
    exec("def interaction(seconds):\n    time.sleep(seconds)", waits)
    with watched(tmp_path) as made:
        waits["interaction"](1.5 * STALL_S)  # type: ignore[operator]
        assert not made.left


def test_an_account_that_hangs_does_not_keep_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log or a disk that hangs."""
    hangs = threading.Event()
    monkeypatch.setattr(account.Account, "leave", lambda *_, **__: hangs.wait(60))
    with watched(tmp_path, _ACCOUNT_WITHIN_S=0.2) as made:
        assert ends(made)
    hangs.set()


def test_updates_are_measured_without_waiting_and_without_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_s = 0.0
    monkeypatch.setattr("distcxr.stall.signs.time.monotonic", lambda: clock_s)
    signs = Signs()

    def update(number: int, takes_s: float, before: Callable[[], None] = lambda: None) -> None:
        nonlocal clock_s
        signs.data(number)
        clock_s += 1000.0
        signs.update(number)
        before()
        clock_s += takes_s

    for number in (1, 2, 3):
        update(number, 500.0)  # compiled, perhaps
        assert signs.is_host_work
    update(4, 2.0)
    assert not signs.is_host_work
    update(5, 3.0)
    with signs.checkpoint(5):
        assert (signs.doing, signs.is_host_work) == ("checkpoint of step", True)
        clock_s += 400.0
    assert (signs.doing, signs.is_host_work) == ("step", False)
    update(6, 1.0)
    assert signs.slowest_s == 2.0, "an update with a checkpoint after it is left out"
    with signs.stage(6):
        pass
    update(7, 1.0)
    assert signs.is_host_work, "the next stage compiles anew"
    signs.ending(7)
    assert (signs.doing, signs.is_host_work) == ("end after step", True)
    with signs.validation(7):
        pass
    with signs.validation(7):
        assert not signs.is_host_work
    assert signs.is_host_work, "a service on the network may take its time"


def test_a_rank_that_loses_the_others_first_leaves_its_account_too(tmp_path: Path) -> None:
    (tmp_path / RANKS).mkdir(parents=True, exist_ok=True)
    with watched(tmp_path, world_size=3) as made:
        silent = replace(OTHER, rank=2, written="14:03:20")
        write_rank_file(tmp_path / RANKS, silent)
        assert not made.watch.is_another_leaving()
        made.other = replace(OTHER, is_leaving=True)
        while not made.watch.is_another_leaving():
            time.sleep(0.01)
        message = made.watch.join_account()
        assert message.startswith("rank 2 is missing in step 5: ") and "last sign of life 14:03:20" in message
        assert message == made.watch.join_account()
        account_text = (tmp_path / STALLED).read_text()
        assert account_text.count("stacks of rank 0\n") == 1 and "rank 1" not in account_text.partition("stacks")[0]
        own = read_rank_file(tmp_path / RANKS, 0)
        assert own is not None and own.is_leaving


class Stillborn(threading.Thread):
    """As one whose first lines met a full memory."""

    def _bootstrap(self) -> None:
        return


def test_a_thread_that_never_begins_is_an_error_not_a_wait() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(MemoryError, match="could not begin"):
        start_all([Stillborn()], within_s=0.2)
    assert signal.getsignal(signal.SIGALRM) == before and signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_process_that_may_open_no_more_files_still_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that watches asks for the work done, and for its children's end before its own."""

    def refused(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    for name in ("glob", "read_text"):
        monkeypatch.setattr(Path, name, refused)
    assert processes.work_done()[0] > 0
    processes.kill_children()
    monkeypatch.setattr(account.tempfile, "TemporaryFile", refused)
    assert "in test_a_process_that_may_open_no_more_files_still_watches" in account._own_stacks()
