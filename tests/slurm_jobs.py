"""What the SLURM tests do with jobs of slurm/train.sbatch."""

from __future__ import annotations

import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from slurm_cluster import Cluster

from distcxr.runfolder.layout import last_folders

TWO_NODES = ("--nodes=2", "--gpus-per-node=2")
ENDLESS = 1_000_000
"""Updates: for runs that are interrupted before their number of updates is set."""


@dataclass(frozen=True)
class Place:
    """The folder that jobs are submitted in, with a recipe and settings of its own for each run."""

    cluster: Cluster
    folder: Path
    root: Path

    def recipe(self, name: str, steps: int) -> None:
        """Write the recipe of a run, or change its number of updates: a job that comes back reads it anew."""
        text = (self.folder / "tiny.yaml").read_text()
        text = text.replace("epochs: 3,", f"epochs: {ENDLESS}, max_steps: {steps}, per_device_batch_size: 2,")
        text = text.replace("checkpoint: {every: 3st, keep: 3}", f"checkpoint: {{every: 10st, keep: {ENDLESS}}}")
        text = text.replace("eval: {", "eval: {every: 100%, splits: [val], ")
        assert text.count(str(ENDLESS)) >= 2 and "every: 100%" in text
        part = self.folder / f".{name}.part"
        part.write_text(text)
        part.replace(self.folder / f"{name}.yaml")

    def submit(
        self, name: str, *flags: str, words: tuple[str, ...] = (), settings: str = "", **environ: str
    ) -> str:  # fmt: skip
        """Submit a recipe's run with its run folder named after it; the job's number.

        Args:
            settings: lines that the site's settings have besides.
        """
        done = self.cluster.run(
            "sbatch", "--parsable", f"--output={name}.log", *flags, str(self.root / "slurm" / "train.sbatch"),
            f"{name}.yaml", f"data.root={self.folder / 'phantom'}", f"output={name}", *words,
            cwd=self.folder, DISTCXR_SITE=str(self.write_settings(settings)), **environ,
        )  # fmt: skip
        return done.stdout.strip()

    def write_settings(self, more: str = "") -> Path:
        """A site's slurm/site.env, a file for each `more`."""
        settings = self.folder / f"site-{zlib.crc32(more.encode())}.env"
        if not settings.exists():
            python = Path(sys.executable).parent
            settings.write_text(f"PATH={python}:$PATH\nexport PYTHONPATH={self.root} ACCELERATE_USE_CPU=true\n{more}\n")
        return settings

    def distcxr(self, *words: str) -> str:
        """Run a verb on the login machine; its output."""
        command = (sys.executable, "-m", "distcxr.cli", *words)
        settings = str(self.write_settings())
        return self.cluster.run(*command, cwd=self.folder, DISTCXR_SITE=settings, PYTHONPATH=str(self.root)).stdout

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def wait(
        self, job: str, name: str, wanted: Callable[[dict[str, str]], bool], within_s: float = 180
    ) -> dict[str, str]:
        return self.cluster.wait_for(job, wanted, within_s, self.log(name))

    def completed(self, job: str, name: str) -> dict[str, str]:
        """Wait for the job's good end."""
        return self.wait(job, name, lambda found: found["JobState"] == "COMPLETED")

    def checkpoint(self, job: str, name: str) -> int:
        """Wait for a checkpoint of the running job; its step."""
        self.wait(job, name, lambda _: self.newest(name) >= 10)
        return self.newest(name)

    def newest(self, name: str) -> int:
        """Step of the newest checkpoint, 0 without."""
        return max((int(path.name[5:]) for path in last_folders(self.folder / name)), default=0)

    def end_soon(self, name: str) -> int:
        """Have an endless run end soon after it has come back; the step at which it will."""
        steps = -(-self.newest(name) // 10) * 10 + 10
        self.recipe(name, steps)
        return steps

    def cancel(self, job: str) -> None:
        self.cluster.run("scancel", job, check=False)
        deadline = time.monotonic() + 60
        while self.cluster.job(job)["JobState"] in ("RUNNING", "PENDING", "COMPLETING") and time.monotonic() < deadline:
            time.sleep(0.3)

    def differences(self, ends: dict[str, int], ranks: int) -> list[str]:
        """Run the recipe undisturbed; tensors in which runs differ from it at their last steps.

        Args:
            ends: last step of each run by its name.
            ranks: of every run; here they are on one node.
        """
        straight = f"straight-{'-'.join(ends)}"
        self.recipe(straight, max(ends.values()))
        self.completed(self.submit(straight, "--nodes=1", f"--gpus-per-node={ranks}"), straight)
        found = []
        for name, step in ends.items():
            one, other = self.weights(name, step), self.weights(straight, step)
            assert one.keys() == other.keys() and len(one) > 50
            found += [f"{name}: {key}" for key in one if not torch.equal(one[key], other[key])]
        return found

    def weights(self, name: str, step: int) -> dict[str, torch.Tensor]:
        return load_file(self.folder / name / "checkpoints" / f"last-{step:08d}" / "model.safetensors")
