"""What slurm/train.sbatch makes of its words and settings, and when it asks to come back: with stand-ins for SLURM."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "slurm" / "train.sbatch"
REAL_PYTHON = f"PATH={Path(sys.executable).parent}:$PATH\nexport PYTHONPATH={ROOT}\n"
PYTHON = """
if [ "$1" = -m ]; then echo "the recipe, resolved"; else echo ""; fi  # no output in it
"""

# Notes a word a line and its environment; then it does what the test wants.
SRUN = """
printf '%s\\n' "$@" > asked; env > environment
eval "${STEP:-:}"
"""
SCONTROL = """
case "$*" in
  "show hostnames "*) printf '%s\\n' ${HOSTS:-node1};;
  "-o show job "*) echo "JobId=7 JobState=${STATE:-RUNNING} Restarts=${SLURM_RESTART_COUNT:-0} Command=x";;
  requeue*) echo "$*" >> requeued;;
esac
"""


@dataclass(frozen=True)
class Job:
    """The script as SLURM's first node runs it."""

    folder: Path

    def start(self, *words: str, script: Path = SCRIPT, **environ: str) -> subprocess.Popen[str]:
        given = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "HOME": str(self.folder), "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_TASKS_PER_NODE": "1", "DISTCXR_SITE": "site.env",
        }  # fmt: skip
        return subprocess.Popen(
            ["bash", str(script), *words], cwd=self.folder, env=given | environ, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, *words: str, **environ: str) -> tuple[int, str]:
        """Exit code and output."""
        process = self.start(*words, **environ)
        output = process.communicate(timeout=60)[0]
        return process.returncode, output

    def words(self) -> list[str]:
        """What launch.py was called with, on every node."""
        asked = (self.folder / "asked").read_text().splitlines()
        return asked[asked.index("launcher") + 1 :]

    def environment(self) -> dict[str, str]:
        lines = (self.folder / "environment").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    @property
    def came_back(self) -> bool:
        return (self.folder / "requeued").exists()


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "bin").mkdir()
    for name, script in {"srun": SRUN, "scontrol": SCONTROL, "python": PYTHON}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{script}")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "site.env").touch()
    tiny.recipe(tmp_path)
    return Job(tmp_path)


def test_a_run_folder_that_the_job_finds_again(job: Job) -> None:
    (job.folder / "site.env").write_text(REAL_PYTHON)
    assert job.run("tiny.yaml", "train.epochs=2")[0] == 0
    assert job.words() == ["tiny.yaml", "train.epochs=2", "output=runs/tiny/slurm-7"]
    assert job.environment()["DISTCXR_STOP"] == str(job.folder / "runs/tiny/slurm-7/STOP")
    assert job.run("tiny.yaml", 'output="runs/a b"', "train.epochs=2")[0] == 0
    assert job.words() == ["tiny.yaml", 'output="runs/a b"', "train.epochs=2"]
    assert job.environment()["DISTCXR_STOP"] == str(job.folder / "runs/a b/STOP")
    assert job.run("train.epochs=2", "study/resnet18")[0] == 0, "a recipe by its name, not a file"
    assert job.words() == ["train.epochs=2", "study/resnet18", "output=runs/resnet18/slurm-7"]
    assert job.run("tiny.yaml", "--test", "runs/a b")[0] == 0
    assert job.words() == ["tiny.yaml", "--test", "runs/a b"]


def test_a_line_for_each_task_of_an_array(job: Job) -> None:
    (job.folder / "site.env").write_text(REAL_PYTHON)
    (job.folder / "runs.txt").write_text(
        "tiny.yaml train.epochs=1\n'tiny.yaml' 'model.weights=$(touch gone)' \"x=it's\"\n"
    )
    code, output = job.run("@runs.txt", "seed=3", SLURM_ARRAY_TASK_ID="1", SLURM_ARRAY_JOB_ID="5")
    assert code == 0 and job.words() == ["tiny.yaml", "train.epochs=1", "seed=3", "output=runs/tiny/slurm-5_1"], output
    code, output = job.run("@runs.txt", SLURM_ARRAY_TASK_ID="2")
    assert code == 2 and "unknown key 'x'" in output and not (job.folder / "gone").exists()
    assert "has no line 3" in job.run("@runs.txt", SLURM_ARRAY_TASK_ID="3")[1]
    assert "sbatch --array" in job.run("@runs.txt")[1]


NODE_ONE = 'while [ "$1" != bash ]; do shift; done; SLURM_CPUS_ON_NODE=9 SLURM_NODEID=1 "$@"'
"""The step does on the second of the nodes what it would do there."""


def test_ranks_come_from_gpus_or_tasks_and_threads_from_cpus(job: Job) -> None:
    (job.folder / "bin" / "accelerate").write_text(
        "#!/bin/sh\necho $OMP_NUM_THREADS $SLURM_CPUS_PER_TASK $* > launched\n"
    )
    (job.folder / "bin" / "accelerate").chmod(0o755)
    (job.folder / "bin" / "python").write_text(f"#!/bin/sh\n{PYTHON}\necho $* > launched\n")
    assert job.run("tiny.yaml", HOSTS="node1 node2", SLURM_GPUS_ON_NODE="4", STEP=NODE_ONE)[0] == 0
    environ, launched = job.environment(), (job.folder / "launched").read_text()
    ranks = environ["RANKS"], environ["NODES"], environ["PET_RDZV_ID"]
    assert ranks == ("4", "2", "7.0") and "ACCELERATE_USE_CPU" not in environ
    assert launched.startswith("2 9 launch --multi_gpu --num_machines 2 --machine_rank 1 --num_processes 8 ")
    assert "--main_process_ip node1 --main_process_port 20007 --rdzv_backend c10d " in launched
    assert job.run("tiny.yaml", SLURM_TASKS_PER_NODE="3(x2)", STEP=NODE_ONE)[0] == 0
    assert job.environment()["ACCELERATE_USE_CPU"] == "true"
    launched = (job.folder / "launched").read_text()
    assert "--num_processes 3 " in launched and "--main_process_port 0 " in launched
    assert job.run("tiny.yaml", STEP=NODE_ONE)[0] == 0
    assert (job.folder / "launched").read_text().startswith("-m distcxr.launch tiny.yaml"), (
        "one process needs no launcher"
    )


def test_the_sites_settings(job: Job) -> None:
    more = "CONTAINER=(env IN_CONTAINER=yes)\nLOCAL_DISK=/local/$SLURM_JOB_ID\nexport NCCL_SOCKET_IFNAME=ib0\n"
    (job.folder / "site.env").write_text(more)
    assert job.run("tiny.yaml")[0] == 0
    asked = (job.folder / "asked").read_text().splitlines()
    assert asked[asked.index("bash") - 2 : asked.index("bash")] == ["env", "IN_CONTAINER=yes"]
    assert "data.cache.stage_to=/local/7" in job.words() and job.environment()["NCCL_SOCKET_IFNAME"] == "ib0"
    assert job.run("tiny.yaml", "data.cache.stage_to=/mine")[0] == 0
    assert [word for word in job.words() if "stage_to" in word] == ["data.cache.stage_to=/mine"]
    (job.folder / "site.env").write_text(f"{REAL_PYTHON}LOCAL_DISK='$TMPDIR/${{USER}}'\n")
    assert job.run("tiny.yaml", TMPDIR="/first")[0] == 0
    assert "data.cache.stage_to=$TMPDIR/${USER}" in job.words(), "each node fills in its own"
    code, output = job.run("tiny.yaml", DISTCXR_SITE="nowhere.env")
    assert code == 2 and "there is no nowhere.env" in output


SAVED = "touch runs/tiny/slurm-7/RESUME"


@pytest.mark.parametrize(
    ("environ", "comes_back", "exit_code"),
    [
        ({"STEP": SAVED}, True, 0),
        ({"STEP": f"{SAVED}; exit 143"}, True, 0),  # exit codes depend on who died first
        ({"STEP": ":"}, False, 0),
        ({"STEP": "exit 1"}, False, 1),
        ({"STEP": SAVED, "STATE": "CANCELLED"}, False, 0),
        ({"STEP": SAVED, "STATE": "COMPLETING"}, False, 0),
        ({"STEP": SAVED, "SLURM_RESTART_COUNT": "20"}, False, 1),
        ({"STEP": SAVED, "SLURM_RESTART_COUNT": "3", "MAX_RESTARTS": "3"}, False, 1),
        ({"STEP": "touch $FAILED; exit 1"}, False, 1),
        ({"STEP": "touch $FAILED runs/tiny/slurm-7/.stalled; exit 75"}, True, 0),
        ({"STEP": "touch runs/tiny/slurm-7/.stalled; exit 75", "STATE": "CANCELLED"}, False, 0),
    ],
)
def test_what_brings_a_job_back(job: Job, environ: dict[str, str], comes_back: bool, exit_code: int) -> None:
    code, output = job.run("tiny.yaml", **environ)
    assert (job.came_back, code) == (comes_back, exit_code), output


def test_a_step_that_does_not_end_after_a_failure_has_lost_a_node(job: Job) -> None:
    script = SCRIPT.read_text()
    assert script.count("failure_patience=120") == 1
    (job.folder / "hasty.sbatch").write_text(script.replace("failure_patience=120", "failure_patience=2"))
    process = job.start("tiny.yaml", script=job.folder / "hasty.sbatch", STEP="touch $FAILED; exec sleep 20 >&- 2>&-")
    output = process.communicate(timeout=15)[0]
    assert process.returncode == 0 and job.came_back, output


def test_marks_of_an_earlier_start_do_not_count(job: Job) -> None:
    run = job.folder / "runs/tiny/slurm-7"
    run.mkdir(parents=True)
    (run / "RESUME").touch()
    (run / "STOP").touch()
    (run / ".stalled").touch()
    code, output = job.run("tiny.yaml", STEP="ls runs/tiny/slurm-7; exit 1")
    assert code == 1 and not job.came_back and "STOP" not in output.replace("DISTCXR_STOP", "")


def test_too_many_starts_end_before_training(job: Job) -> None:
    code, output = job.run("tiny.yaml", SLURM_RESTART_COUNT="21")
    assert code == 1 and "came back 20 times" in output and not (job.folder / "asked").exists()


def test_a_signal_becomes_a_file_and_the_run_is_waited_for(job: Job) -> None:
    stop = (
        "until [ -e runs/tiny/slurm-7/STOP ]; do sleep 0.1; done; touch runs/tiny/slurm-7/RESUME; sleep 1; touch ended"
    )
    process = job.start("tiny.yaml", STEP=stop)
    while not (job.folder / "environment").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and job.came_back and (job.folder / "ended").exists(), output


def test_a_job_that_comes_back_resumes_whatever_its_recipe_has(job: Job) -> None:
    words = ("tiny.yaml", "train.resume=never")
    own = [*words, "output=runs/tiny/slurm-7"]
    (job.folder / "runs" / "tiny" / "slurm-7" / "checkpoints" / "last-00000003").mkdir(parents=True)
    assert job.run(*words, SLURM_RESTART_COUNT="1")[0] == 0 and job.words() == [*own, "train.resume=auto"]
    assert job.run(*words)[0] == 0 and job.words() == own, "the first start is the user's"


def test_the_script_that_compares_an_arrays_runs(job: Job) -> None:
    (job.folder / "site.env").write_text("CONTAINER=(env IN_CONTAINER=yes)\n")
    (job.folder / "bin" / "python").write_text("#!/bin/sh\necho $IN_CONTAINER $*\nexit 3\n")
    script = ROOT / "slurm" / "report.sbatch"
    process = job.start("runs/sweeps/a b", script=script)
    assert process.communicate(timeout=20)[0] == "yes -m distcxr.cli report runs/sweeps/a b\n"
    assert process.returncode == 3
    output = job.start("runs/x", script=script, DISTCXR_SITE="nowhere.env").communicate(timeout=20)[0]
    assert "there is no nowhere.env" in output


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck() -> None:
    scripts = ["slurm/train.sbatch", "slurm/report.sbatch", "slurm/site.env", "tests/slurm/machine.sh"]
    done = subprocess.run(["shellcheck", "-x", "--shell=bash", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
