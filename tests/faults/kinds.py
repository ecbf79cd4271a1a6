"""The kinds of faults. Each starts a command, harms it, waits for its end and returns the exit codes; None: it hung."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable

from faults.case import MARK, STORES, Case
from faults.harm import Codes, at_system_call, send, signalled, worker_signalled
from faults.job import start_launcher

ON_LAUNCHER = {
    "openat": 3.3,
    "read": 3.3,
    "mmap": 3,
    "execve": 0.3,
    "clone3": 0.6,
    "vfork": 0.6,
    "wait4": 0.8,
    "close": 3.3,
}
"""System calls of a launcher, and the logarithm to base 10 of how many there may be."""
ON_BUILDS = ("fsync", "fdatasync", "rename", "renameat2", "unlink", "mkdir", "ftruncate", "pwrite64", "write", "flock")


def kill_rank(case: Case) -> Codes:
    return signalled(case, signal.SIGKILL)


def kill_all(case: Case) -> Codes:
    job = case.start()
    case.moment()
    for pid in job.pids():
        send(pid, signal.SIGKILL)
    return job.wait(case.patience_s())


def kill_worker(case: Case) -> Codes:
    return worker_signalled(case, signal.SIGKILL)


def stop_rank(case: Case) -> Codes:
    """Of two at least, and not at the very end: a rank that stops alone has nobody to notice it."""
    case.world_size = max(2, case.world_size)
    return signalled(case, signal.SIGSTOP, latest=0.5)


def stop_worker(case: Case) -> Codes:
    return worker_signalled(case, signal.SIGSTOP)


def ask_to_stop(case: Case) -> Codes:
    return signalled(case, case.random.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]))


def stop_file(case: Case) -> Codes:
    job = case.start()
    case.moment()
    if case.output.is_dir():
        (case.output / "STOP").touch()
    return job.wait(case.patience_s())


def kill_in_system_call(case: Case) -> Codes:
    return at_system_call(case, "signal=KILL")


def failing_system_call(case: Case) -> Codes:
    return at_system_call(case, f"error={case.random.choice(['ENOSPC', 'EIO', 'EDQUOT', 'EROFS'])}")


def full_disk(case: Case) -> Codes:
    """The run folder is on a disk of its own, which is too small until the fault is over."""
    case.output.mkdir()
    _run("mount", "-t", "tmpfs", "-o", f"size={case.random.randint(100, 12_000)}k", "distcxr-faults", str(case.output))
    codes = case.start().wait(case.patience_s())
    _run("mount", "-o", "remount,size=200m", str(case.output))
    return codes


def vanished_folder(case: Case) -> Codes:
    job = case.start()
    case.moment()
    aside = case.folder / "aside"
    if case.output.exists():
        case.output.rename(aside)
    codes = job.wait(case.patience_s())
    if aside.exists():
        shutil.rmtree(case.output, ignore_errors=True)
        aside.rename(case.output)
    return codes


def small_files(case: Case) -> Codes:
    return case.start(limits={resource.RLIMIT_FSIZE: case.random.randint(1_000, 3_000_000)}).wait(case.patience_s())


def few_files(case: Case) -> Codes:
    return case.start(limits={resource.RLIMIT_NOFILE: case.random.randint(12, 120)}).wait(case.patience_s())


def little_memory(case: Case) -> Codes:
    most = case.random.randint(2_000, 9_000) * 1_000_000
    return case.start(limits={resource.RLIMIT_AS: most}).wait(case.patience_s())


def no_home(case: Case) -> Codes:
    nowhere = {"HOME": None, "XDG_CACHE_HOME": None, "USER": None, "LOGNAME": None, "TMPDIR": "/nowhere"}
    return case.start(environ=nowhere).wait(case.patience_s())


def damaged_checkpoint(case: Case) -> Codes:
    """A bit of a file of the newest checkpoint flips, the file is cut short or is lost."""
    codes = kill_all(case)
    newest = sorted((case.output / "checkpoints").glob("last-????????"))[-1:]
    files = [path for folder in newest for path in sorted(folder.iterdir())]
    if files:
        path = case.random.choice(files)
        content = bytearray(path.read_bytes())
        how = case.random.choice(["bit", "cut", "lost"])
        if how == "lost":
            path.unlink()
        else:
            where = case.random.randrange(len(content))
            if how == "bit":
                content[where] ^= 1 << case.random.randrange(8)
            path.write_bytes(content if how == "bit" else content[:where])
    return codes


def changed_data(case: Case) -> Codes:
    """An image is gone when the run resumes, and is there again the next time."""
    data = case.folder / "data"
    shutil.copytree(case.place.folder / "phantom", data)
    root = f"data.root={data}"
    job = case.start(root)
    case.moment()
    for pid in job.pids():
        send(pid, signal.SIGKILL)
    codes = job.wait(case.patience_s())
    image = case.random.choice(sorted((data / "images").glob("*.png")))
    aside = case.folder / image.name
    shutil.move(image, aside)
    refused = case.start(root).wait(case.patience_s())
    shutil.move(aside, image)
    return [None] if 0 in refused else [*codes, *refused]


def clock_jump(case: Case) -> Codes:
    """The wall clock jumps an hour while the run goes on, and its files seem to be from then; a kill may follow."""
    by_s = case.random.choice([-3600.0, 3600.0])
    job = case.start(clock_jump=(case.random.uniform(0, case.straight_s), by_s))
    if case.random.random() < 0.5:
        case.moment()
        send(case.random.choice(job.pids()), signal.SIGKILL)
    codes = job.wait(case.patience_s())
    then = time.time() + by_s
    for path in case.output.rglob("*"):
        os.utime(path, (then, then))
    return codes


def several_faults(case: Case) -> Codes:
    """Two signals in one run, not necessarily to one rank, then a kill of all, then a call that fails.

    One rank is stopped at most, and not a lone one: nobody would be there to notice.
    """
    job, signals = case.start(), [signal.SIGKILL, signal.SIGTERM, *[signal.SIGSTOP] * (case.world_size > 1)]
    for _ in range(2):
        case.moment(0.5)
        chosen = case.random.choice(signals)
        send(case.random.choice(job.pids()), chosen)
        signals = [number for number in signals if number != signal.SIGSTOP or number != chosen]
    codes = job.wait(case.patience_s())
    codes += kill_all(case)
    return [None] * (None in codes) + failing_system_call(case)  # whose lines are the last ones of the log


def kill_launcher(case: Case) -> Codes:
    return _launched(case, [], case.random.uniform(0.1, 2) * case.place.launch_s)


def kill_launcher_in_system_call(case: Case) -> Codes:
    """From imports and the first look at the recipe to starting ranks and waiting for them."""
    call = case.random.choice(sorted(ON_LAUNCHER))
    number = int(10 ** case.random.uniform(0, ON_LAUNCHER[call]))
    inject = f"inject={call}:signal=KILL:when={number}"
    return _launched(case, ["strace", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject], None)


def kill_build(case: Case) -> Codes:
    _building(case)
    return kill_all(case)


def kill_build_in_system_call(case: Case) -> Codes:
    _building(case)
    return at_system_call(case, "signal=KILL", ON_BUILDS, 12)


def failing_build(case: Case) -> Codes:
    _building(case)
    return at_system_call(case, f"error={case.random.choice(['ENOSPC', 'EIO', 'EDQUOT'])}", ON_BUILDS, 12)


def _building(case: Case) -> None:
    case.verb, case.world_size = case.random.choice(sorted(STORES)), 1


def _launched(case: Case, before: list[str], kill_after_s: float | None) -> Codes:
    """`distcxr train` as a user starts it, killed after a while, or when `before` does it."""
    words = case.place.words(case.output)
    process = start_launcher(words, case.world_size, case.log, before, {MARK: case.name})
    case.sessions.add(process.pid)
    with process:
        try:
            return [process.wait(case.patience_s() + 3 * case.place.launch_s if kill_after_s is None else kill_after_s)]
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return [None] if kill_after_s is None else [-signal.SIGKILL]


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


KINDS: dict[str, Callable[[Case], Codes]] = {
    one.__name__: one
    for one in (
        kill_rank, kill_all, kill_worker, stop_rank, stop_worker, ask_to_stop, stop_file, kill_in_system_call,
        failing_system_call, full_disk, vanished_folder, small_files, few_files, little_memory, no_home,
        damaged_checkpoint, changed_data, clock_jump, several_faults, kill_launcher, kill_launcher_in_system_call,
        kill_build, kill_build_in_system_call, failing_build,
    )
}  # fmt: skip
