"""The names of all files of a run folder, and of the folder that an array's or a sweep's runs share.

What is in a checkpoint's folder is named in `layout.py`. README.md's table describes each file for users.
"""

from __future__ import annotations

from pathlib import Path

RUNS = Path("runs")
"""Where run folders are made: `runs/<recipe>/<time>`."""

RECIPE = "recipe.yaml"
"""The resolved recipe."""
ENVIRONMENT = "environment.json"
"""Commit, versions, hardware, world size, hashes; of earlier launches, too."""
LOG = "log.txt"
STEPS = "steps.csv"
HISTORY = "history.csv"
CURVES = "curves.svg"
TENSORBOARD = "tensorboard"
"""Folder of event files."""
TRACKERS = "trackers.json"
"""Ids of the run at other services, by the service's name."""
AUTOTUNE = "autotune.json"
"""What `train.autotune` tried and chose. A resumed run keeps the choice, since its last bits depend on it."""
DIVERGED = "diverged-step-*.json"
"""Pattern of the files that `diverged` names."""
OPERATING = "operating.json"
"""Thresholds and temperatures that validation chose, and with which weights."""
PICTURES = "pictures"
"""Folder of the worst cases as PNG files, with `PICTURES_LIST`."""
PICTURES_LIST = "pictures.json"
REPORT, REPORT_MARKDOWN, REPORT_JSON = "report.html", "report.md", "report.json"

LOCK = ".lock"
"""Held by the process that trains."""
STOP, RESUME = "STOP", "RESUME"
"""Marks: the run is asked to save itself and end; it has, and resumes when it is started again."""
FAILED = ".failed"
"""Mark that slurm/train.sbatch leaves when the run has failed by itself."""
STALLED, STALLED_MARK = "stalled.txt", ".stalled"
"""What each rank knew when the run had stalled, appended; and the mark at which slurm/train.sbatch starts it again."""
IMAGES = ".images.npz"
"""Size of every image's file when the run began."""
RANKS = ".ranks"
"""Folder of `runfolder/rank_files.py`."""

LISTING = "runs.json"
"""Beside the run folders of an array or a sweep: which runs it is made of."""
SWEEP, SWEEP_JSON, SWEEP_CSV = "sweep.html", "sweep.json", "sweep.csv"
SWEEP_MARKDOWN, SWEEP_PICTURE = "sweep.md", "sweep.svg"
"""Their comparison."""
LAUNCH_LOG = "launch.log"
"""In a sweep's run folder: stdout and stderr of all its launches."""
FINISHED = "finished.json"
"""In a sweep's run folder: which recipe has ended well there."""
TASKS, TEST_TASKS = "runs.txt", "tests.txt"
"""A line for each task of a SLURM array."""
SLURM_LOG, SLURM_ARRAY_LOG = "slurm-%j.log", "slurm-%A_%a.log"
"""With SLURM's letters for the number of the job, of the array and of its task."""


def diverged(step: int) -> str:
    """File of an update with a loss or a gradient that was not finite: its images, their augmentation, its losses."""
    return f"diverged-step-{step}.json"


def metrics(split: str) -> str:
    """File of a split's figures."""
    return f"metrics_{split}.json"


def predictions(split: str) -> str:
    """File of a split's logits and labels, a row a sample."""
    return f"predictions_{split}.csv"


def localisation(split: str) -> str:
    """File of a split's heat maps held against boxes."""
    return f"localisation_{split}.json"


def tested(checkpoint: str, data: str = "") -> str:
    """Folder for the results of `--test` that are not the run's own: of another checkpoint, or of other data.

    Args:
        checkpoint: name of its folder, such as `last-00000120`.
        data: first digits of the test split's hash.
    """
    return f"test_{checkpoint}" + (f"_{data}" if data else "")


def stacks(rank: int) -> str:
    """In `RANKS`: the stacks of a rank that was asked for them."""
    return f"stacks{rank}"


def flight_record(rank: int) -> str:
    """In `RANKS`: what `torchfrtrace --prefix nccl_trace_rank_` reads."""
    return f"nccl_trace_rank_{rank}"


def slurm_folder(job: str) -> str:
    """Run folder of a SLURM job that names none, within `runs/<recipe>`; slurm/train.sbatch names it so, too."""
    return f"slurm-{job}"
