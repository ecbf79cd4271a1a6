"""`distcxr submit RECIPE [key=value ...]`: a recipe's run, or an array of them, on a SLURM cluster."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from distcxr.cli.options import DryRun, Overrides, Recipe

_Grid = Annotated[
    list[str] | None,
    typer.Option(
        "--array", metavar="key=a,b", show_default=False,
        help="a run for every combination: --array optim.lr=1e-4,1e-3 seed=0,1,2",
    ),
]  # fmt: skip
_AtOnce = Annotated[
    int | None, typer.Option(metavar="K", show_default=False, help="at most K runs of the array at a time")
]
_Nodes = Annotated[int, typer.Option(metavar="N", help="nodes of each run")]
_Gpus = Annotated[int, typer.Option(metavar="M", help="GPUs of each node; 0 for none")]
_Cpus = Annotated[int | None, typer.Option(metavar="C", show_default=False, help="CPUs of each node")]
_Time = Annotated[
    str | None,
    typer.Option(metavar="T", show_default=False, help="time limit, after which a run resumes by itself: 12:00:00"),
]
_Partition = Annotated[str | None, typer.Option(metavar="P", show_default=False, help="partition")]
_Sbatch = Annotated[
    str,
    typer.Option(metavar="FLAGS", show_default=False, help="other flags of sbatch: --sbatch='--account=lab --mem=64G'"),
]
_ThenTest = Annotated[
    bool,
    typer.Option(
        "--then-test",
        help="train and validate, then test the best weights in a job of one GPU that ends with the report; after an "
        "array also a job that compares its runs",
    ),
]


def run(
    recipe_path: Recipe,
    overrides: Overrides = None,
    array: _Grid = None,
    at_once: _AtOnce = None,
    nodes: _Nodes = 1,
    gpus: _Gpus = 1,
    cpus: _Cpus = None,
    time: _Time = None,
    partition: _Partition = None,
    sbatch: _Sbatch = "",
    then_test: _ThenTest = False,
    dry_run: DryRun = False,
) -> int:
    """Check a recipe and hand it to SLURM, one run or an array.

    Checks the recipe, its data and its network here, then submits slurm/train.sbatch.
    """
    import shutil
    from dataclasses import replace

    from distcxr.jobs.check import check_runs
    from distcxr.jobs.runs_json import write_listing
    from distcxr.jobs.submission import (
        Resources,
        expected_start,
        plan_submission,
        submit,
        submit_comparison,
        with_folder,
    )
    from distcxr.runfolder import filenames

    resources = Resources(nodes, gpus, cpus, time, partition, tuple(shlex.split(sbatch)))
    words = [*(overrides or ()), *(["eval.splits=[val]"] if then_test else [])]
    submission = plan_submission(recipe_path, words, array or [], resources, at_once)
    num_parameters = check_runs(submission.runs)
    runs = submission.runs
    on = f"--nodes {nodes} --gpus {gpus}"
    print(f"{recipe_path}: {len(runs)} {'run' if len(runs) == 1 else 'runs'} on {on}")
    for one in runs:
        print(f"  {one.name}: {num_parameters[one.name]:,} parameters")
    tested = replace(submission, resources=replace(resources, nodes=1, gpus=min(1, gpus)))
    if dry_run:
        print(shlex.join(submission.command()))
        if then_test:
            shown = tested if submission.is_array else with_folder(tested, "JOB")
            print(shlex.join(shown.command(after="JOB", test=True)))
            if submission.is_array:
                print(shlex.join(tested.comparison(after="TEST_JOB")))
        if shutil.which("sbatch"):
            submission.folder.mkdir(parents=True, exist_ok=True)
            print(expected_start(submission).strip())
        return 0
    if submission.is_array:
        write_listing(submission.folder, runs, num_parameters)
    job = submit(submission)
    if not submission.is_array:
        submission, tested = with_folder(submission, job), with_folder(tested, job)
    print(f"job {job}")
    for one in submission.runs:
        print(f"run folder  {one.folder}")
    print(f"log         {str(submission.log).replace('%j', job).replace('%A', job).replace('%a', '*')}")
    print(f"watch       distcxr status {submission.folder}")
    print(f"end it      scancel {job}    (saved; the same command with output=FOLDER resumes)")
    if then_test:
        test = submit(tested, after=job, test=True)
        print(f"test        job {test}, after it; ends with report.html")
        if submission.is_array:
            comparison = submit_comparison(tested, after=test)
            print(f"compare     job {comparison}, after the tests; writes {submission.folder / filenames.SWEEP}")
    return 0
