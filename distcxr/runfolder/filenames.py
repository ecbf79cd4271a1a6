"""The names of all files of a run folder, and of the folder that an array's or a sweep's runs share.

What is in a checkpoint's folder is named in `layout.py`. The texts below names are for users: `docs/reference_pages.py`
makes the page "The run folder" of them.
"""

from __future__ import annotations

from pathlib import Path

RUNS = Path("runs")
"""Where run folders are made: `runs/<recipe>/<time>`."""

RECIPE = "recipe.yaml"
"""The resolved recipe, with every default."""
ENVIRONMENT = "environment.json"
"""Commit, versions, hardware, world size, hashes of labels and lists; of earlier launches, too."""
LOG = "log.txt"
"""The log."""
STEPS = "steps.csv"
"""A row per step: loss, learning rate, images per second."""
HISTORY = "history.csv"
"""A row per epoch."""
VALIDATIONS = "validations.csv"
"""A row per validation: loss, macro AUROC, each finding's, learning rate, best so far and whether this is it."""
PROBE = "probe.csv"
"""Of `distcxr probe`: a row per strength of regularisation, with validation's loss and AUROC, and which was chosen."""
VALIDATION_BATCHES = "validation_batches.csv"
"""The newest validation batch by batch, in the order of the split: images, known labels, loss."""
CURVES = "curves.svg"
"""Loss by step and by epoch and validation AUROC as one picture, redrawn every epoch."""
AUGMENTED = "augmented.png"
"""The newest epoch's first training images as the network saw them, with their labels."""
EVENTS = "events.out.tfevents.*"
"""Curves and pictures: `tensorboard --logdir runs` shows every run."""
TENSORBOARD = "tensorboard"
"""Folder of the event files of runs begun before December 2026."""
TRACKERS = "trackers.json"
"""Ids of the run at other services, by the service's name."""
AUTOTUNE = "autotune.json"
"""What `train.autotune` tried and chose. A resumed run keeps the choice, since its last bits depend on it."""
DIVERGED = "diverged-step-*.json"
"""One for each update with a loss or gradient that was not finite; `distcxr replay` makes it again."""
OPERATING = "operating.json"
"""Thresholds and temperatures that validation chose, with which weights, and on how many positives and patients."""
PICTURES = "pictures"
"""The worst errors with heat maps, as PNG files."""
PICTURES_LIST = "pictures.json"
"""In `pictures`: which image and finding each of them shows."""
REPORT, REPORT_MARKDOWN, REPORT_JSON = "report.html", "report.md", "report.json"
"""The report; `distcxr report FOLDER` makes it again."""

LOCK = ".lock"
"""Held by the process that trains."""
STOP, RESUME = "STOP", "RESUME"
"""Marks: `touch STOP` asks the run to save itself and end; `RESUME` is there once it has, and may be resumed."""
FAILED = ".failed"
"""Mark that slurm/train.sbatch leaves when the run has failed by itself."""
STALLED, STALLED_MARK = "stalled.txt", ".stalled"
"""Who held up the run, and every rank's stacks, where it has stalled; and the mark at which slurm/train.sbatch starts
it again."""
IMAGES = ".images.npz"
"""Size of every image's file when the run began."""
RANKS = ".ranks"
"""A small file of each rank, by which the others see that it lives; and what ranks leave when the run stalls."""
EXTERNAL = "external"
"""Folder of what `distcxr test RUN --on RECIPE` writes: a folder like a run's for each data set, and the table."""
MATRIX, MATRIX_JSON, MATRIX_CSV, MATRIX_MARKDOWN = "matrix.html", "matrix.json", "matrix.csv", "matrix.md"
"""In `external`, or in `output`: runs by the data sets that they were tested on, as a page, figures and text."""

LISTING = "runs.json"
"""Beside the run folders of an array or a sweep: which runs it is made of."""
SWEEP, SWEEP_JSON, SWEEP_CSV = "sweep.html", "sweep.json", "sweep.csv"
"""The comparison of the runs as a page, and its figures: `distcxr report FOLDER` makes them again."""
SWEEP_MARKDOWN, SWEEP_PICTURE = "sweep.md", "sweep.svg"
"""The same as text and as a picture."""
LAUNCH_LOG = "launch.log"
"""In a sweep's run folder: stdout and stderr of all its launches."""
FINISHED = "finished.json"
"""In a sweep's run folder: which recipe has ended well there."""
TASKS, TEST_TASKS = "runs.txt", "tests.txt"
"""A line for each task of a SLURM array."""
SLURM_LOG, SLURM_ARRAY_LOG = "slurm-%j.log", "slurm-%A_%a.log"
"""With SLURM's letters for the number of the job, of the array and of its task."""


def diverged(step: int) -> str:
    """An update with a loss or a gradient that was not finite: its images, their augmentation, the losses before."""
    return f"diverged-step-{step}.json"


def metrics(split: str) -> str:
    """A split's figures: `macro`, `subgroups` and
    `findings.<name>.{auroc,auroc_low,auroc_high,num_positive,num,reason,...}`.
    """
    return f"metrics_{split}.json"


def predictions(split: str) -> str:
    """Of a split, per image and finding: probability, label, float32 logit."""
    return f"predictions_{split}.csv"


def localisation(split: str) -> str:
    """A split's heat maps against NIH's boxes."""
    return f"localisation_{split}.json"


def tested(checkpoint: str, data: str = "") -> str:
    """The results of `--test` that are not the run's own: of another checkpoint, or of other data.

    Args:
        checkpoint: name of its folder, such as `last-00000120`.
        data: first digits of the test split's hash.
    """
    return f"test_{checkpoint}" + (f"_{data}" if data else "")


def stacks(rank: int) -> str:
    """In `.ranks`: the stacks of a rank that was asked for them."""
    return f"stacks{rank}"


def flight_record(rank: int) -> str:
    """In `.ranks`: what `torchfrtrace --prefix nccl_trace_rank_` reads."""
    return f"nccl_trace_rank_{rank}"


def slurm_folder(job: str) -> str:
    """Run folder of a SLURM job that names none, within `runs/<recipe>`; slurm/train.sbatch names it so, too."""
    return f"slurm-{job}"
