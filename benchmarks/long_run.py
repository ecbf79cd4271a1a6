"""Trains a tiny network for many steps and watches its processes: what grows with a run's length is a leak.

    python benchmarks/long_run.py                            10,000 steps on one rank, then on two (half an hour)
    python benchmarks/long_run.py --steps 600 --processes 1  shorter

Starts `distcxr train` on synthetic X-rays, validates and saves every 50 steps, and reads /proc of every process a
hundred times. A first tenth of the samples is warm-up; of the rest the first quarter is compared with the last, memory
by medians and counts by the fewest, so that the middle of a validation weighs little. Exits with 1 where something
grows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from distcxr.phantom.writing import write_phantom
from distcxr.runfolder.history import newest_step

SAMPLES, VALIDATIONS = 100, 200
IMAGES, BATCH = 256, 8
MAX_GROWTH_PCT = 1.0
LEAST_GROWTH_KB = 512  # 1 % of a process that does nothing is noise
WARM_UP, QUARTER = 0.1, 0.25
_POLL_S = 0.05
RECIPE = """
data: {image_size: 32, loader: torch, num_workers: 1, val_fraction: 0.25}
augment: {flip: 0.5, rotate_deg: 5, scale: [0.9, 1.1], brightness: 0.1, contrast: 0.1, normalize: half}
model: {library: timm, name: test_resnet, weights: none, in_chans: 1}
optim: {lr: 1e-4}
schedule: {warmup: 2st}
train: {global_batch_size: 8, precision: no, clip_norm: 1.0}
eval: {replicates: 20, pictures: 2}
checkpoint: {keep: 3}
logging: {every: 10st, images: 4}
"""


@dataclass
class Held:
    """What a process holds at one moment."""

    rss_kb: int
    pss_kb: int
    anon_kb: int
    """Memory of its own, of no file: PSS also moves with other programs that map the same libraries."""
    files: int
    threads: int
    shared: int
    """Mappings and open files under /dev/shm."""


@dataclass
class Sample:
    """One moment of a run: of every process by its role what it holds, and CPU seconds of all so far."""

    step: int
    elapsed_s: float
    cpu_s: float
    shared_files: int
    processes: dict[str, Held] = field(default_factory=dict)


def main() -> int:
    """Run each world size and print what grew; 1 where something did, or a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample")
    args = parser.parse_args()
    if args.steps < SAMPLES:
        parser.error(f"--steps {args.steps}: has to be at least {SAMPLES}, the number of samples")
    found: dict[str, list[Sample]] = {}
    problems = []
    with tempfile.TemporaryDirectory(prefix="distcxr-long-") as place:
        folder = Path(place)
        write_phantom(folder / "phantom", images=IMAGES, size=64, workers=1)
        for processes in args.processes:
            samples, problem = watch(folder, args.steps, processes)
            found[str(processes)] = samples
            problems += [problem] if problem else []
            print(f"\n{processes} process(es), {args.steps:,} steps, {len(samples)} samples")
            lines, grown = compare(samples)
            print("\n".join(lines), flush=True)
            problems += [f"{processes} process(es): {one}" for one in grown]
    if args.json:
        rows = {world: [asdict(sample) for sample in samples] for world, samples in found.items()}
        args.json.write_text(json.dumps(rows, indent=1))
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return int(bool(problems))


def watch(folder: Path, steps: int, processes: int) -> tuple[list[Sample], str | None]:
    """Train, and sample its processes; what went wrong besides, a sentence or None."""
    recipe, output = folder / "long.yaml", folder / f"run-{processes}"
    recipe.write_text(RECIPE)
    every = max(20, steps // VALIDATIONS)
    command = [
        sys.executable, "-m", "distcxr.cli", "train", str(recipe), f"data.root={folder / 'phantom'}",
        f"output={output}", "train.epochs=100000", f"train.max_steps={steps}", f"eval.every={every}st",
        f"checkpoint.every={every}st",
        "--processes", str(processes),
    ]  # fmt: skip
    samples: list[Sample] = []
    names: set[str] = set()
    log = folder / f"log-{processes}.txt"
    started = time.monotonic()
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as run:
        while run.poll() is None:
            row = newest_step(output)
            step = int(row["step"]) if row else 0
            if step >= steps * (len(samples) + 1) / SAMPLES and step < steps:
                sample, mapped = take(run.pid, step, time.monotonic() - started)
                samples.append(sample)
                names |= mapped
            time.sleep(_POLL_S)
    if run.returncode:
        return samples, f"the run ended with exit code {run.returncode}: {log.read_text()[-2000:]}"
    left = sorted(name for name in names if Path(name).exists())
    return samples, f"left behind: {', '.join(left)}" if left else None


def take(root: int, step: int, elapsed_s: float) -> tuple[Sample, set[str]]:
    """A sample of the processes that `root` has started, itself included, and their files in /dev/shm."""
    sample, names = Sample(step, elapsed_s, 0.0, 0), set[str]()
    for pid, role in tree(root):
        with suppress(OSError, ValueError):
            held, mapped, cpu_s = holds(Path("/proc") / str(pid))
            sample.processes[role] = held
            sample.cpu_s += cpu_s
            names |= mapped
    sample.shared_files = len(names)
    return sample, {name for name in names if not name.endswith("(deleted)")}


def tree(root: int, above: str = "") -> Iterator[tuple[int, str]]:
    """Process ids and roles below a process, and of itself: `rank 0`, `rank 0/fork server/worker 1`."""
    proc = Path("/proc") / str(root)
    try:
        role = above + role_of(proc, above)
        yield root, role
        children = sorted(int(pid) for tasks in proc.glob("task/*/children") for pid in tasks.read_text().split())
    except OSError:
        return
    workers = 0
    for child in children:
        below = f"{role}/"
        if "fork server" in role:
            workers += 1
            below += f"{workers} "
        yield from tree(child, below)


def role_of(proc: Path, above: str) -> str:
    """What a process does in the run."""
    command = (proc / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    environment = (proc / "environ").read_bytes().split(b"\0")
    rank = next((entry[5:].decode() for entry in environment if entry.startswith(b"RANK=")), None)
    if "fork server" in above:
        return "worker"
    if "forkserver" in command:
        return "fork server"
    if "resource_tracker" in command:
        return "resource tracker"
    if "distcxr" in command:
        return f"rank {rank}" if rank is not None else "distcxr train"
    return command.split(" ")[0].rsplit("/", 1)[-1]


def holds(proc: Path) -> tuple[Held, set[str], float]:
    """What a process holds, its files in /dev/shm, and its CPU seconds."""
    rollup = dict(line.split(":") for line in (proc / "smaps_rollup").read_text().splitlines()[1:])
    rss, pss, anon = (int(rollup[key].split()[0]) for key in ("Rss", "Pss", "Pss_Anon"))
    files = [os.readlink(path) for path in (proc / "fd").iterdir()]
    maps = [line.split(maxsplit=5)[5] for line in (proc / "maps").read_text().splitlines() if "/dev/shm/" in line]
    shared = [name for name in files if name.startswith("/dev/shm/")] + maps
    fields = (proc / "stat").read_text().rpartition(")")[2].split()
    cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return Held(rss, pss, anon, len(files), int(fields[17]), len(shared)), set(shared), cpu_s


def compare(samples: Sequence[Sample]) -> tuple[list[str], list[str]]:
    """A table of the first and last quarter after warm-up, and what grew, a sentence each."""
    kept = samples[int(len(samples) * WARM_UP) :]
    size = max(2, int(len(kept) * QUARTER))
    first, last = kept[:size], kept[-size:]
    lines, grown = (
        ["| process | RSS, MB | PSS, MB | of its own, MB | files | threads | in /dev/shm |", "|" + "---|" * 7],
        [],
    )
    roles = [role for role in last[-1].processes if all(role in sample.processes for sample in (first[0], last[-1]))]
    for role in roles:
        cells = []
        for name in ("rss_kb", "pss_kb", "anon_kb", "files", "threads", "shared"):
            memory = name.endswith("_kb")
            of = statistics.median if memory else min  # files in flight come and go: what leaks raises the fewest
            before, after = (
                of([getattr(sample.processes[role], name) for sample in part if role in sample.processes])
                for part in (first, last)
            )
            limit = max(before * (1 + MAX_GROWTH_PCT / 100), before + LEAST_GROWTH_KB) if memory else before
            if after > limit and name != "pss_kb":
                grown.append(f"{role}: {name} from {before:,.0f} to {after:,.0f}")
            cells.append(f"{before / 1024:,.1f} → {after / 1024:,.1f}" if memory else f"{before:g} → {after:g}")
        lines.append(f"| {role} | " + " | ".join(cells) + " |")
    for sample in last:
        grown += [f"{role}: another process" for role in sample.processes if role not in first[0].processes]
    lines += [f"{name} of a step: {pair[0]:.2f} → {pair[1]:.2f} ms" for name, pair in step_times(first, last).items()]
    return lines, list(dict.fromkeys(grown))


def step_times(first: Sequence[Sample], last: Sequence[Sample]) -> Mapping[str, tuple[float, float]]:
    """Milliseconds of a step, validations and checkpoints included, at the start and at the end."""

    def of(part: Sequence[Sample], name: str) -> float:
        steps = max(1, part[-1].step - part[0].step)
        return float(1e3 * (getattr(part[-1], name) - getattr(part[0], name)) / steps)

    return {name: (of(first, key), of(last, key)) for name, key in (("CPU time", "cpu_s"), ("wall time", "elapsed_s"))}


if __name__ == "__main__":
    sys.exit(main())
