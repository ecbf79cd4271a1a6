"""Real training jobs with one fault each, at a random moment; the same command then has to end as if nothing was.

    python tests/faults/campaign.py --cases 200 --seed 0

Each case has a seed of its own, printed with it; --case SEED runs it again. The long form takes half an hour on two
cores. What is required of every case is in `problems_after`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from faults.job import Job, descendants, differences, result, start_launcher

WORLDS = (1, 2, 4)
STALL_S = 5
PATIENCE_S = 60.0
"""No case may take longer than this plus `STALL_S` to end by itself after its fault."""
TRIES = 3
RECIPE = """
data: {image_size: 32, loader: torch, num_workers: 0, val_fraction: 0.25}
augment: {flip: 0.5, rotate_deg: 5, normalize: half}
model: {library: timm, name: test_resnet, weights: none, in_chans: 1}
optim: {lr: 1e-3}
train: {epochs: 4, global_batch_size: 16, precision: no, ema: 0.9, stall_s: STALL_S}
eval: {replicates: 20, pictures: 0, splits: [val], every: 2st}
checkpoint: {every: 2st, keep: 2}
logging: {every: 1st, images: 0}
"""
ON_RANKS = ("fsync", "rename", "renameat2", "unlink", "unlinkat", "mkdir", "rmdir", "ftruncate")
"""System calls of which one fails or kills a rank: with those of a checkpoint, tables, pictures and TensorBoard."""
_MARK = "DISTCXR_FAULT_CASE"
_ENDING_S = 6.0  # of workers that look every few seconds whether their rank is there


@dataclass
class Place:
    """Folder of a campaign: data, recipe, and what undisturbed runs of each world end with."""

    folder: Path
    straight: dict[int, dict[str, Any]]
    straight_s: dict[int, float]

    def words(self, output: Path) -> list[str]:
        return [str(self.folder / "recipe.yaml"), f"data.root={self.folder / 'phantom'}", f"output={output}"]


@dataclass
class Case:
    """One fault, with its random numbers and the folder of its run."""

    place: Place
    kind: str
    world_size: int
    random: random.Random
    folder: Path
    name: str

    @property
    def output(self) -> Path:
        return self.folder / "run"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    def job(self, *overrides: str, **more: Any) -> Job:
        more["environ"] = {_MARK: self.name} | more.get("environ", {})
        return Job([*self.place.words(self.output), *overrides], self.world_size, self.log, **more)

    def moment(self, latest: float = 1.0) -> None:
        """Wait for a random moment of the run, its start and its end included; `latest` is a share of its time."""
        time.sleep(self.random.uniform(0.05, latest) * self.place.straight_s[self.world_size])

    def patience_s(self) -> float:
        return PATIENCE_S + 3 * self.place.straight_s[self.world_size]


Codes = list[int | None]


def kill_rank(case: Case) -> Codes:
    return _signalled(case, signal.SIGKILL)


def kill_all(case: Case) -> Codes:
    job = case.job().start()
    case.moment()
    for pid in job.pids():
        _kill(pid, signal.SIGKILL)
    return job.wait(case.patience_s())


def kill_worker(case: Case) -> Codes:
    return _worker_signalled(case, signal.SIGKILL)


def stop_rank(case: Case) -> Codes:
    """Not at the very end: a rank that stops when the others have left has nobody to notice it."""
    return _signalled(case, signal.SIGSTOP, latest=0.5)


def stop_worker(case: Case) -> Codes:
    return _worker_signalled(case, signal.SIGSTOP)


def ask_to_stop(case: Case) -> Codes:
    return _signalled(case, case.random.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]))


def stop_file(case: Case) -> Codes:
    job = case.job().start()
    case.moment()
    if case.output.is_dir():
        (case.output / "STOP").touch()
    return job.wait(case.patience_s())


def kill_in_system_call(case: Case) -> Codes:
    return _at_system_call(case, "signal=KILL")


def failing_system_call(case: Case) -> Codes:
    return _at_system_call(case, f"error={case.random.choice(['ENOSPC', 'EIO', 'EDQUOT', 'EROFS'])}")


def full_disk(case: Case) -> Codes:
    """The run folder is on a disk of its own, which is too small until the fault is over."""
    case.output.mkdir()
    _run("mount", "-t", "tmpfs", "-o", f"size={case.random.randint(100, 12_000)}k", "distcxr-faults", str(case.output))
    codes = case.job().start().wait(case.patience_s())
    _run("mount", "-o", "remount,size=200m", str(case.output))
    return codes


def vanished_folder(case: Case) -> Codes:
    job = case.job().start()
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
    return (
        case.job(limits={resource.RLIMIT_FSIZE: case.random.randint(1_000, 3_000_000)}).start().wait(case.patience_s())
    )


def few_files(case: Case) -> Codes:
    return case.job(limits={resource.RLIMIT_NOFILE: case.random.randint(12, 120)}).start().wait(case.patience_s())


def little_memory(case: Case) -> Codes:
    most = case.random.randint(2_000, 9_000) * 1_000_000
    return case.job(limits={resource.RLIMIT_AS: most}).start().wait(case.patience_s())


def no_home(case: Case) -> Codes:
    nowhere = {"HOME": None, "XDG_CACHE_HOME": None, "USER": None, "LOGNAME": None, "TMPDIR": "/nowhere"}
    return case.job(environ=nowhere).start().wait(case.patience_s())


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
    codes = kill_all(case)
    image = case.random.choice(sorted((case.place.folder / "phantom" / "images").glob("*.png")))
    aside = case.folder / image.name
    shutil.move(image, aside)
    refused = case.job().start().wait(case.patience_s())
    shutil.move(aside, image)
    if any(code == 0 for code in refused):
        return [None]
    return codes


def kill_launcher(case: Case) -> Codes:
    os.environ[_MARK] = case.name
    with start_launcher(case.place.words(case.output), case.world_size, case.log) as process:
        time.sleep(case.random.uniform(1, 12))
        process.kill()
        code = process.wait()
    del os.environ[_MARK]
    return [code]


KINDS: dict[str, Callable[[Case], Codes]] = {
    one.__name__: one
    for one in (
        kill_rank, kill_all, kill_worker, stop_rank, stop_worker, ask_to_stop, stop_file, kill_in_system_call,
        failing_system_call, full_disk, vanished_folder, small_files, few_files, little_memory, no_home,
        damaged_checkpoint, changed_data, kill_launcher,
    )
}  # fmt: skip


def _signalled(case: Case, number: signal.Signals, latest: float = 1.0) -> Codes:
    job = case.job().start()
    case.moment(latest)
    _kill(case.random.choice(job.pids()), number)
    return job.wait(case.patience_s())


def _worker_signalled(case: Case, number: signal.Signals) -> Codes:
    """A process that decodes; the run takes longer, as each rank starts one."""
    job = case.job("data.num_workers=1").start()
    deadline, rank = time.monotonic() + case.patience_s(), case.random.choice(job.pids())
    while not (workers := descendants(rank)) and os.path.exists(f"/proc/{rank}") and time.monotonic() < deadline:
        time.sleep(0.05)
    case.moment()
    if workers := descendants(rank) or workers:
        _kill(case.random.choice(workers), number)
    return job.wait(case.patience_s())


def _at_system_call(case: Case, injected: str) -> Codes:
    """Rank 0 is traced from soon after its start; one of its system calls on the disk is its last, or fails."""
    call, number = case.random.choice(ON_RANKS), case.random.randint(1, 40)
    job = case.job().start()
    with subprocess.Popen(
        ["strace", "-f", "-qq", "-o", "/dev/null", "-p", str(job.pids()[0]), "-e", f"trace={call}",
         "-e", f"inject={call}:{injected}:when={number}"],
        stderr=subprocess.DEVNULL,
    ) as tracer:  # fmt: skip
        codes = job.wait(case.patience_s())
        tracer.terminate()
    return codes


def _kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:  # it has ended already
        return


def _semaphores() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("sem.*")}


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def _left_behind(name: str) -> list[int]:
    """Processes of a case that are still there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{_MARK}={name}\0".encode() in path.read_bytes() + b"\0":
                found.append(int(path.parent.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def problems_after(case: Case, codes: Codes) -> list[str]:
    """What is wrong after the fault and after the command that follows it; an empty list is what is wanted."""
    text = case.log.read_text(errors="replace") if case.log.exists() else ""
    problems = ["it hung"] if None in codes else []
    problems += _problems_of_message(text, codes)
    deadline = time.monotonic() + _ENDING_S
    while _left_behind(case.name) and time.monotonic() < deadline:
        time.sleep(0.1)
    if left := _left_behind(case.name):
        problems.append(f"{len(left)} processes were left behind")
        for pid in left:
            _kill(pid, signal.SIGKILL)
    for attempt in range(1, TRIES + 1):
        again = case.job().start().wait(case.patience_s())
        if set(again) == {0} and not (case.output / "RESUME").exists():
            break
        if attempt == TRIES:
            return [*problems, f"the same command ends with {again}: {case.log.read_text()[-600:]}"]
    if different := differences(case.place.straight[case.world_size], result(case.output)):
        problems.append(f"after {attempt} more starts, other than undisturbed: {', '.join(different)}")
    parts = [path for path in case.output.rglob("*") if path.name.endswith((".part", ".tmp")) or ".part" in path.name]
    if parts:
        problems.append(f"left in the run folder: {', '.join(path.name for path in parts)}")
    return problems


def _problems_of_message(text: str, codes: Codes) -> list[str]:
    """Every end that was not a kill has its reason in the last lines, without tracebacks."""
    if not any(code is not None and code > 0 for code in codes):
        return []
    problems = []
    if "Traceback (most recent call last)" in text:
        problems.append("a traceback")
    last = [line for line in text.splitlines() if line.strip()][-5:]
    if not any("error: " in line or "asked to stop" in line or "Ctrl-C" in line for line in last):
        problems.append(f"no reason in the last lines: {last}")
    return problems


def prepare(folder: Path, worlds: Sequence[int]) -> Place:
    """Data, recipe and an undisturbed run of each world, twice: the second time tells how long it takes."""
    import tiny

    tiny.phantom(folder)
    (folder / "recipe.yaml").write_text(RECIPE.replace("STALL_S", str(STALL_S)))
    place = Place(folder, {}, {})
    for world_size in worlds:
        for number in (1, 2):
            output = folder / f"straight-{world_size}-{number}"
            job = Job(place.words(output), world_size, folder / f"straight-{world_size}.txt")
            started_s = time.monotonic()
            codes = job.start().wait(300)
            place.straight_s[world_size] = time.monotonic() - started_s
            if set(codes) != {0}:
                raise RuntimeError(f"an undisturbed run ends with {codes}: {job.text()[-2000:]}")
            found = result(output)
            if number == 2 and (different := differences(place.straight[world_size], found)):
                raise RuntimeError(f"two undisturbed runs differ: {', '.join(different)}")
            place.straight[world_size] = found
    return place


def run_case(place: Place, seed: int, kinds: Sequence[str], worlds: Sequence[int]) -> tuple[Case, list[str], float]:
    """The case of a seed: kind and world follow from it alone."""
    chosen = random.Random(seed)
    kind, world_size = kinds[seed % len(kinds)], chosen.choice(list(worlds))
    folder = place.folder / f"case-{seed}"
    folder.mkdir()
    case = Case(place, kind, world_size, chosen, folder, f"{os.getpid()}-{seed}")
    started_s = time.monotonic()
    try:
        problems = problems_after(case, KINDS[kind](case))
    finally:
        subprocess.run(["umount", str(case.output)], stderr=subprocess.DEVNULL, check=False)
    if not problems:
        shutil.rmtree(folder)
    return case, problems, time.monotonic() - started_s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the first case; the next ones follow")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--worlds", nargs="+", type=int, default=list(WORLDS))
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="distcxr-faults-"))
    place = prepare(folder, args.worlds)
    times = ", ".join(f"{world}: {seconds:.1f} s" for world, seconds in place.straight_s.items())
    print(f"{folder}: undisturbed runs by ranks: {times}", flush=True)
    passed: Counter[str] = Counter()
    semaphores = _semaphores()
    failed: dict[int, dict[str, Any]] = {}
    longest_s, started_s = 0.0, time.monotonic()
    for seed in range(args.seed, args.seed + args.cases):
        case, problems, seconds = run_case(place, seed, args.kinds, args.worlds)
        longest_s = max(longest_s, seconds)
        shown = "; ".join(problems) if problems else "whole"
        print(f"seed {seed}: {case.kind}, {case.world_size} ranks, {seconds:.1f} s: {shown}", flush=True)
        if problems:
            failed[seed] = {"kind": case.kind, "world_size": case.world_size, "problems": problems}
        else:
            passed[case.kind] += 1
    total_s, left = time.monotonic() - started_s, len(_semaphores() - semaphores)
    print(f"{left} named semaphores are left in /dev/shm")
    print(f"{sum(passed.values())} of {args.cases} cases whole, {total_s:.0f} s, the longest {longest_s:.0f} s")
    figures = {
        "cases": args.cases, "seed": args.seed, "worlds": args.worlds, "whole": passed, "failed": failed,
        "semaphores_left": left, "total_s": round(total_s, 1), "longest_s": round(longest_s, 1),
        "cores": len(os.sched_getaffinity(0)),
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    if not failed:
        shutil.rmtree(folder)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
