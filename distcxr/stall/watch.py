"""The thread of every rank that shows that it lives, and notices when the run has stalled.

    idle: since the main thread's last tick ── more than half the limit: look at the others' files
      a rank that no longer writes ──────────► it is missing          (stopped, killed, its host gone)
      all write, and none moves ─────────────► the one that is behind (a worker stopped, a disk that hangs)
      all write, and one moves ──────────────► it is waited for       (rank 0 writes a checkpoint, copies a cache)

Ranks compare no clocks. Time in which this process itself was stopped does not count: after Ctrl-Z a run continues.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from pathlib import Path
from types import FrameType

from distcxr import exit_codes, processes
from distcxr.error_file import launch_folder
from distcxr.runfolder import filenames
from distcxr.runfolder.rank_files import RankFile, read_rank_file, write_rank_file
from distcxr.stall.account import Account, is_debugged, waits_for_ranks, write_stacks_when_asked
from distcxr.stall.beginning import start_all
from distcxr.stall.missing import HUNG, Missing, behind
from distcxr.stall.signs import SIGNS, Signs

logger = logging.getLogger(__name__)

_SLOWER = 3.0
"""How many times the slowest update so far is not slow yet."""
_HOST_WORK = 5.0
"""How many times the limit host work may take without CPU time or bytes: a flush of many GB to a slow disk."""
_BUSY, _MOVED = 0.1, 1 << 16  # CPU seconds a second, bytes between two beats: above what this thread does itself
_BEATS, _LONGEST_BEAT_S = 10, 5.0
_LOOKS = 8
_ACCOUNT_WITHIN_S = 15.0
_current: list[Watch] = []
"""Of this process, while it trains."""


class Watch:
    """Shows and watches this rank's main thread, from `start` to `stop`."""

    def __init__(
        self, stall_s: float, *, rank: int = 0, world_size: int = 1, local_ranks: range = range(1),
        launch_folder: Path | None = None, signs: Signs = SIGNS, leave: Callable[[int], None] = os._exit,
    ) -> None:  # fmt: skip
        """Start nothing yet.

        Args:
            stall_s: `train.stall_s`.
            local_ranks: those of this host, the only ones that are known until the run folder is chosen.
            launch_folder: theirs until then; None where there is none.
            leave: called with the exit code, from the thread.
        """
        self._stall_s, self._rank, self._world_size, self._signs = stall_s, rank, world_size, signs
        self._host, self._started, self._leave = platform.node(), processes.started_at(os.getpid()), leave
        self._known = local_ranks
        self._folders = [launch_folder] if launch_folder is not None else []
        self._beat_s = min(_LONGEST_BEAT_S, stall_s / _BEATS)
        self._main, self._done = threading.main_thread().ident, threading.Event()
        self._threads = [
            threading.Thread(target=work, name=f"distcxr-{work.__name__.strip('_')}", daemon=True)
            for work in (self._show, self._watch)
        ]
        self._beats = 0
        self._idle_s = self._quiet_s = 0.0
        self._is_leaving, self._one_account = False, threading.Lock()
        self._message = ""
        self._seen: dict[int, tuple[int, float]] = {}
        self.account = Account(rank, world_size, self._host)

    def start(self) -> None:
        """Begin. Raises MemoryError: there is no memory for a thread."""
        start_all(self._threads)

    def stop(self) -> None:
        """The run has ended, or is about to end by itself."""
        self._done.set()

    def use_run_folder(self, folder: Path) -> None:
        """Write into the run folder from here on. Called on every rank, once rank 0 has emptied it of older files."""
        ranks = (folder / filenames.RANKS).resolve()
        try:
            ranks.mkdir(exist_ok=True)
            write_stacks_when_asked(ranks, self._rank)
        except OSError as error:  # the run's own files will meet it, too
            logger.warning(f"{ranks} can't be written ({error.strerror}): a rank that stalls will not be named")
            return
        self._folders, self.account.run_folder = [ranks, *self._folders], folder
        self._known = range(self._world_size)

    @property
    def limit_s(self) -> float:
        """How long the main thread may take for a part of what it does."""
        return max(self._stall_s, _SLOWER * self._signs.slowest_s)

    def _show(self) -> None:
        """Write this rank's file, once a beat. A thread of its own: a disk that hangs must not hold up the watch."""
        while not self._done.wait(self._beat_s):
            if self._folders:
                self._beats += 1
                try:
                    write_rank_file(self._folders[0], self._file())
                except (OSError, MemoryError):
                    continue  # a full disk, a full memory: the run's own work meets it, too, and reports it

    def _file(self) -> RankFile:
        signs, stuck, workers = self._signs, self._is_stuck, dict[str, str]()
        if self._idle_s > self.limit_s / 2:
            states = {str(child.pid): processes.state(child.pid or 0) for child in active_children()}
            workers = {pid: state for pid, state in states.items() if state and state.startswith(HUNG)}
        return RankFile(
            rank=self._rank, pid=os.getpid(), host=self._host, started=self._started, doing=signs.doing,
            step=signs.step, phase=signs.phase, beats=self._beats, written=time.strftime("%Y-%m-%d %H:%M:%S"),
            idle_s=round(self._idle_s, 1), is_stuck=stuck, waits=waits_for_ranks(self._frames()),
            is_leaving=self._is_leaving, workers=workers,
        )  # fmt: skip

    @property
    def _is_stuck(self) -> bool:
        return self._quiet_s >= self.limit_s * (_HOST_WORK if self._signs.is_host_work else 1.0)

    def _frames(self) -> list[FrameType]:
        """Of the main thread, the innermost first."""
        frame, found = sys._current_frames().get(self._main or 0), list[FrameType]()
        while frame is not None:
            found.append(frame)
            frame = frame.f_back
        return found

    def _watch(self) -> None:
        ticks, work, before_s, looked_s = -1, (0.0, 0), time.monotonic(), 0.0
        while not self._done.wait(self._beat_s):
            now_s = time.monotonic()
            passed_s, before_s = min(now_s - before_s, 2 * self._beat_s), now_s
            if self._signs.ticks != ticks or is_debugged(self._frames()):
                ticks, self._idle_s, self._quiet_s = self._signs.ticks, 0.0, 0.0
                self._seen.clear()
                continue
            self._idle_s, self._quiet_s = self._idle_s + passed_s, self._quiet_s + passed_s
            if self._signs.is_host_work:
                work, earlier = processes.work_done(), work
                if work[0] - earlier[0] > _BUSY * passed_s or work[1] - earlier[1] > _MOVED:
                    self._quiet_s = 0.0
            due = self._idle_s >= looked_s + self.limit_s / _LOOKS or self._idle_s < looked_s
            if self._idle_s >= self.limit_s / 2 and due:
                looked_s = self._idle_s
                missing, speaks = self._missing()
                if missing and self._signs.ticks == ticks:
                    self._end(missing, speaks=speaks)
                    return

    def _missing(self) -> tuple[list[Missing], bool]:
        """Who holds up the run, none while it may still move; and whether this rank speaks for those that live."""
        files = {rank: self._read(rank) for rank in self._known if rank != self._rank}
        gone = [Missing(rank, file, is_gone=True) for rank, file in files.items() if self._is_gone(rank, file)]
        mine = self._file()
        alive = {rank: file for rank, file in files.items() if file and rank not in [one.rank for one in gone]}
        alive[self._rank] = mine
        speaks = min(alive) == self._rank
        if self._idle_s >= self.limit_s and gone:
            return gone, speaks
        if not gone and len(alive) == self._world_size and all(file.is_stuck for file in alive.values()):
            return [Missing(rank, alive[rank], is_gone=False) for rank in behind(alive)], speaks
        return [], speaks

    def _is_gone(self, rank: int, file: RankFile | None) -> bool:
        """Whether the rank has not written since half the limit ago, when looking at it began."""
        beats = -1 if file is None else file.beats
        seen, since_s = self._seen.get(rank, (-2, 0.0))
        if beats != seen:
            self._seen[rank] = (beats, self._idle_s)
            return False
        return self._idle_s - since_s >= self.limit_s / 2 - 2 * self._beat_s

    def _read(self, rank: int) -> RankFile | None:
        return next((file for folder in self._folders if (file := read_rank_file(folder, rank))), None)

    def _end(self, missing: list[Missing], *, speaks: bool) -> None:
        """Leave an account and end this process, which can't do so itself: its main thread is in a call that waits.

        The account is a thread's: a log or a disk that hangs may be the very reason. The first rank to end has the
        others lose their connection to it, and the launcher end them: it waits until they have left theirs, too.
        """
        account = threading.Thread(target=self._account, args=(missing, speaks), daemon=True)
        account.start()
        account.join(_ACCOUNT_WITHIN_S)
        lost = [one.rank for one in missing if one.is_gone]
        others = [rank for rank in self._known if rank not in (self._rank, *lost)]
        deadline = time.monotonic() + 2 * self.limit_s / _LOOKS + 4 * self._beat_s
        while time.monotonic() < deadline and not all(map(self._has_left, others)):
            time.sleep(self._beat_s / 4)
        processes.kill_children()
        self._leave(exit_codes.STALLED)

    def _account(self, missing: list[Missing], speaks: bool) -> None:
        with self._one_account:
            if self._is_leaving:
                return
            self._message = self.account.leave(self._file(), missing, self.limit_s, speaks=speaks)
            self._is_leaving = True
        if self._folders:
            write_rank_file(self._folders[0], self._file())

    def join_account(self) -> str:
        """Leave this rank's account of a stall that another has found before it could: on a busy machine that one is
        gone, and the connection to it lost, first.

        Returns:
            The message; empty where nobody but ranks that have left theirs is silent.
        """
        before = {rank: self._read(rank) for rank in self._known if rank != self._rank and not self._has_left(rank)}
        time.sleep(3 * self._beat_s)
        silent = [rank for rank, file in before.items() if not self._has_left(rank) and self._read(rank) == file]
        if silent:
            self._account([Missing(rank, before[rank], is_gone=True) for rank in silent], False)
        return self._message

    def is_another_leaving(self) -> bool:
        """Whether a rank but this one has left its account."""
        return any(self._has_left(rank) for rank in self._known if rank != self._rank)

    def _has_left(self, rank: int) -> bool:
        file = self._read(rank)
        return file is not None and file.is_leaving


@contextmanager
def watching(stall_s: float | None) -> Iterator[None]:
    """Watch this process's main thread meanwhile, as a rank of the launch that its environment describes.

    Args:
        stall_s: None or 0 does not.
    """
    if not stall_s:
        yield
        return
    watch = Watch(
        stall_s, rank=int(os.environ.get("RANK", "0")), world_size=int(os.environ.get("WORLD_SIZE", "1")),
        local_ranks=_local_ranks(), launch_folder=launch_folder(),
    )  # fmt: skip
    _current[:] = [watch]
    watch.start()
    try:
        yield
    finally:
        watch.stop()
        _current.clear()


def use_run_folder(folder: Path) -> None:
    """Have this process's watch, if there is one, write into the run folder from here on."""
    for watch in _current:
        watch.use_run_folder(folder)


def use_flight_recorder(record: Callable[[Path], bool]) -> None:
    """Have this process's watch, if there is one, call it with a file to write when the run has stalled."""
    for watch in _current:
        watch.account.flight_record = record


def give_up_stalled() -> None:
    """Leave the mark that the run has stalled, where it has a folder: SLURM starts it again. Kills all child processes,
    as a worker that is stopped would outlive this one."""
    for watch in _current:
        watch.account.mark()
    processes.kill_children()


def account_of_stall_elsewhere() -> str | None:
    """This rank's message where another has left because of a rank that stalls, as losing the connection to it is a
    consequence; None where none has."""
    for watch in _current:
        if watch.is_another_leaving():
            return watch.join_account() or f"another rank has found a stall: {filenames.STALLED} has the stacks"
    return None


def _local_ranks() -> range:
    first = int(os.environ.get("RANK", "0")) - int(os.environ.get("LOCAL_RANK", "0"))
    return range(first, first + int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
