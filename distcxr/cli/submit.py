"""`distcxr submit RECIPE [key=value ...]`: a recipe's run, or an array of them, on a SLURM cluster."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "submit",
        help="check a recipe and hand it to SLURM, one run or an array",
        description="Checks the recipe, its data and its network here, then submits slurm/train.sbatch.",
    )
    parser.add_argument("recipe", type=Path, help="YAML file, or a name: recipes/densenet121.yaml, densenet121")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="for example train.epochs=3")
    parser.add_argument(
        "--array", nargs="+", action="extend", default=[], metavar="key=a,b",
        help="a run for every combination: --array optim.lr=1e-4,1e-3 seed=0,1,2",
    )  # fmt: skip
    parser.add_argument("--at-once", type=int, metavar="K", help="at most K runs of the array at a time")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="nodes of each run (default: 1)")
    parser.add_argument("--gpus", type=int, default=1, metavar="M", help="GPUs of each node (default: 1); 0 for none")
    parser.add_argument("--cpus", type=int, metavar="C", help="CPUs of each node")
    parser.add_argument("--time", metavar="T", help="time limit, after which a run goes on by itself: 12:00:00")
    parser.add_argument("--partition", metavar="P", help="partition")
    parser.add_argument(
        "--sbatch", default="", metavar="FLAGS", help="other flags of sbatch: --sbatch='--account=lab --mem=64G'"
    )
    parser.add_argument(
        "--then-test", action="store_true",
        help="train and validate, then test the best weights in a job of one GPU that ends with the report; after an "
        "array also a job that compares its runs",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="check everything, show the commands and stop")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check, submit and say how to watch; a ValueError goes to the caller before anything was submitted."""
    import shutil
    from dataclasses import replace

    from distcxr.cluster.check import check_runs
    from distcxr.cluster.listing import write_listing
    from distcxr.cluster.submit import (
        Resources,
        expected_start,
        plan_submission,
        submit,
        submit_comparison,
        with_folder,
    )
    from distcxr.runfolder import filenames

    resources = Resources(args.nodes, args.gpus, args.cpus, args.time, args.partition, tuple(shlex.split(args.sbatch)))
    overrides = [*args.overrides, *(["eval.splits=[val]"] if args.then_test else [])]
    submission = plan_submission(args.recipe, overrides, args.array, resources, args.at_once)
    num_parameters = check_runs(submission.runs)
    runs = submission.runs
    on = f"--nodes {args.nodes} --gpus {args.gpus}"
    print(f"{args.recipe}: {len(runs)} {'run' if len(runs) == 1 else 'runs'} on {on}")
    for one in runs:
        print(f"  {one.name}: {num_parameters[one.name]:,} parameters")
    tested = replace(submission, resources=replace(resources, nodes=1, gpus=min(1, args.gpus)))
    if args.dry_run:
        print(shlex.join(submission.command()))
        if args.then_test:
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
    print(f"end it      scancel {job}    (saved; the same command with output=FOLDER goes on)")
    if args.then_test:
        test = submit(tested, after=job, test=True)
        print(f"test        job {test}, after it; ends with report.html")
        if submission.is_array:
            comparison = submit_comparison(tested, after=test)
            print(f"compare     job {comparison}, after the tests; writes {submission.folder / filenames.SWEEP}")
    return 0
