"""Measures every way from PNG to pixels side by side, and whether they are fast enough for the machine's GPUs.

    python benchmarks/loaders.py --quick                            an answer within a minute
    python benchmarks/loaders.py recipes/densenet121.yaml --root /data/nih --json result.json --plot result.png
    python benchmarks/loaders.py --from result.json --against earlier.json

The first lines answer the question; then the table, and what distcxr promises against what was measured. Loaders take
turns, window by window, over the same files in the same order; the median window counts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loader_bench.answer import Need, answer, claims, claims_table, facts, find_need
from loader_bench.cases import KINDS, Case, Task, plan
from loader_bench.images import draw_phantoms, host_facts, native_size, num_gpus, pick_files
from loader_bench.measure import measure, resident_pages
from loader_bench.plot import draw
from loader_bench.table import LEGEND, Row, add_ratios, against, first_size, markdown, read_rows, to_row

DEFAULT_RECIPE = Path(__file__).parents[1] / "recipes" / "densenet121.yaml"
QUICK = {"files": 48, "windows": 3, "working_set_mb": 512}
FULL = {"files": 128, "windows": 5, "working_set_mb": 4096}
WARM_SHARE = 0.99  # of a cache that has to be in memory for its cases to count as warm
LATER_WINDOWS = 3  # of the groups after the first, which is compared with the promises
MORE_SIZES = (320, 512)  # beside the recipe's
PHANTOMS = 32  # drawn where there are no real files: half a minute of a core
BATCH, ROW_BATCH = 16, 128  # images of a batch: of files, and of rows of a cache


def main() -> int:
    """Measure, or read an earlier result, and explain it."""
    parser = _parser()
    args = parser.parse_intermixed_args()
    try:
        return run(args)
    except ValueError as error:
        parser.error(str(error))


def run(args: argparse.Namespace) -> int:
    """One call of the command; its exit status."""
    from distcxr.recipe import load_recipe  # not at the top: every process of a case imports this file again

    for name, value in (QUICK if args.quick else FULL).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    _check(args)
    recipe = load_recipe(args.recipe, args.overrides)
    others = read_rows(args.against) if args.against else None
    gpus_here = num_gpus()
    gpus = args.gpus or max(1, gpus_here)
    cores = args.cores or len(os.sched_getaffinity(0))
    share = max(1, recipe.train.global_batch_size // gpus)
    batch_size = recipe.train.per_device_batch_size or share
    if args.from_:
        rows = read_rows(args.from_)
        add_ratios(rows)
    else:
        rows = _measure_all(args, recipe, gpus_here)
        if args.json:  # first of all: nothing that follows may lose it
            args.json.write_text(json.dumps(rows, indent=1, allow_nan=False))
        if all(row["img_per_s"] is None for row in rows):
            raise RuntimeError("no case could be measured; the reasons are above")
    if args.need is not None:
        need = Need(args.need, "as given")
    elif args.from_:
        need = Need(None, "unknown: give it as --need")
    else:
        need = find_need(args.recipe, args.overrides, batch_size, recipe.train.precision, gpus_here)
    image_size = first_size(rows)
    print(answer(rows, need, image_size=image_size, cores=cores, gpus=gpus, recipe=str(args.recipe)))
    print(f"\n{facts(rows)}\n\n{markdown(rows)}\n\n{LEGEND}")
    print("\n".join(f"{name}: {KINDS[name].what}." for name in dict.fromkeys(row["loader"] for row in rows)))
    if others is not None:
        print(f"\nAgainst {args.against}:\n\n{against(rows, others)}")
    found = claims(rows, image_size)
    print(f"\n{claims_table(found)}")
    if args.plot:
        draw(rows, args.plot, image_size=image_size, need=need.img_per_s)
    return int(args.check and not all(claim.holds for claim in found))


def _measure_all(args: argparse.Namespace, recipe: Any, gpus_here: int) -> list[Row]:
    with _work_folder(args.work) as work:
        root = args.root or recipe.data.root or os.environ.get("DISTCXR_NIH_ROOT")
        if not root:
            num = min(args.files, PHANTOMS)
            root = draw_phantoms(work, num)
            _log(f"no --root and no DISTCXR_NIH_ROOT: {num} synthetic X-rays of 1024 px stand in for real ones")
        files = pick_files(Path(root), args.files, args.batch)
        cores = len(os.sched_getaffinity(0))
        more = () if args.quick else MORE_SIZES
        groups = plan(
            loaders=args.loaders or KINDS,
            image_sizes=args.image_sizes or list(dict.fromkeys([recipe.data.image_size, *more])),
            native_size=native_size(files),
            threads=args.threads or sorted({1, min(2, cores), 1 if args.quick else cores}),
            ranks=args.ranks or ([1] if args.quick else sorted({1, min(2, cores), max(1, gpus_here)})),
            cores=sys.maxsize if args.threads or args.ranks else cores,  # who names numbers gets them all
            num_gpus=gpus_here,
            cold=not args.quick and not args.no_cold,
            quick=args.quick,
        )
        from distcxr.data.pixels.decode import load_kernels

        host_facts()  # now: later this run itself keeps the cores busy
        load_kernels()  # compiles once, here; the cases load what this leaves on the disk
        rows: list[Row] = []
        most_ranks = max(case.ranks for group in groups for case in group)
        with tempfile.TemporaryDirectory(dir=work) as place:
            for number, group in enumerate(groups):
                _log(f"group {number + 1} of {len(groups)}: {len(group)} cases, {group[0].image_size} px")
                windows = args.windows if number == 0 else min(args.windows, LATER_WINDOWS)
                rows += _measure_group(args, Path(place), group, files, gpus_here, windows, most_ranks)
        add_ratios(rows)
        return rows


def _measure_group(
    args: argparse.Namespace,
    work: Path,
    group: list[Case],
    files: tuple[str, ...],
    gpus_here: int,
    num_windows: int,
    most_ranks: int,
) -> list[Row]:
    """Rows of one group; groups of the same image size share a cache."""
    from loader_bench.cached import make_large_cache
    from loader_bench.packed import make_pack

    def num_rows(case: Case) -> int:
        asked: int = args.working_set_mb * 2**20 // case.image_size**2
        return max(ROW_BATCH * most_ranks, asked)

    def batch_size(case: Case) -> int:
        return ROW_BATCH if case.kind.rows else len(files) if case.loader.endswith(" build") else args.batch

    def tasks(case: Case) -> list[Task]:
        return [
            Task(
                loader=case.loader, image_size=case.image_size, threads=case.threads, rank=rank, ranks=case.ranks,
                files=files, batch_size=batch_size(case), cache=work / f"cache{case.image_size}",
                num_rows=num_rows(case), gpu=rank % gpus_here if gpus_here else None, cold=case.page_cache == "cold",
                work=work,
            )
            for rank in range(case.ranks)
        ]  # fmt: skip

    def drop(case: Case) -> list[str]:
        if case.page_cache == "warm":
            return []
        return [str(pixels_file)] if case.kind.source == "cache" else list(files)

    if any(case.kind.source == "pack" for case in group):
        try:
            make_pack(work, files)
        except ValueError as error:  # its cases will fail; the others need not
            _log(f"no pack: {error}")
    pixels_file = Path()
    for case in group:
        if case.kind.source == "cache":
            folder = work / f"cache{case.image_size}"
            for older in work.glob("cache*"):
                if older != folder:
                    shutil.rmtree(older)
            cores = len(os.sched_getaffinity(0))
            pixels_file = make_large_cache(folder, files, case.image_size, num_rows(case), workers=cores)
            break
    found = measure(group, tasks, num_windows=num_windows, drop=drop, log=_log)
    spoilt = ""
    if pixels_file != Path() and group[0].page_cache == "warm":
        with pixels_file.open("rb") as stream:
            here, pages = resident_pages(stream.fileno())
        if here < WARM_SHARE * pages:
            spoilt = f"not warm: {1 - here / pages:.0%} of the cache had left memory: the disk is measured, too"
    rows = []
    for measured in found:
        case = measured.case
        command = shlex.join(
            ["python", "benchmarks/loaders.py", str(args.recipe), *args.overrides]
            + (["--root", str(args.root)] if args.root else [])
            + ["--loaders", case.loader, "--image-sizes", str(case.image_size), "--threads", str(case.threads)]
            + ["--ranks", str(case.ranks), "--files", str(args.files), "--windows", str(num_windows)]
            + ["--batch", str(args.batch), "--working-set-mb", str(args.working_set_mb)]
        )
        row = to_row(measured, tasks(case)[0], row_bytes=case.image_size**2, command=command, host=host_facts())
        if case.kind.source == "cache" and spoilt:
            row["note"] = "; ".join(filter(None, [row["note"], spoilt]))
        rows.append(row)
    return rows


@contextlib.contextmanager
def _work_folder(asked: Path | None) -> Iterator[Path]:
    if asked is not None:
        try:
            asked.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"--work {asked} can't be made: {error.strerror}") from error
        yield asked
    else:
        with tempfile.TemporaryDirectory(prefix="distcxr-loaders-") as place:
            yield Path(place)


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _check(args: argparse.Namespace) -> None:
    """Refuse what argparse lets through."""
    for name in ("files", "windows", "working_set_mb", "batch", "cores", "gpus"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: has to be at least 1")
    for name in ("image_sizes", "threads", "ranks"):
        if any(value < 1 for value in getattr(args, name) or ()):
            raise ValueError(f"--{name.replace('_', '-')}: every value has to be at least 1")
    if args.need is not None and not args.need > 0:
        raise ValueError(f"--need {args.need:g}: give the img/s of one GPU's training step, more than 0")
    measuring = [name for name in ("quick", "loaders", "root", "work", "json") if getattr(args, name)]
    if args.from_ and measuring:
        raise ValueError(f"--from reads an earlier result and measures nothing: leave --{measuring[0]} away")
    if args.check and args.loaders:
        raise ValueError("--check compares all promises and needs all loaders: leave --loaders away")
    for file in (args.json, args.plot):
        if file is not None and not file.parent.is_dir():
            raise ValueError(f"{file}: the folder {file.parent} is not there")
        if file is not None and file.is_dir():
            raise ValueError(f"{file} is a folder: give the name of a file")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recipe", type=Path, nargs="?", default=DEFAULT_RECIPE, help="default: densenet121.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--root", type=Path, help="folder with images*/**/*.png (default: data.root, DISTCXR_NIH_ROOT)")
    parser.add_argument("--quick", action="store_true", help="one size, one thread, a small cache, warm only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture (PNG)")
    parser.add_argument("--from", type=Path, metavar="FILE", dest="from_", help="rows of an earlier run, not measured")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare with the rows of another run")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a promise is not kept")
    question = parser.add_argument_group("the question")
    question.add_argument("--need", type=float, metavar="IMG_PER_S", help="of one GPU; measured where there is one")
    question.add_argument("--gpus", type=int, help="GPUs of the machine asked about (default: this one's, or 1)")
    question.add_argument("--cores", type=int, help="its cores (default: this one's)")
    grid = parser.add_argument_group("what is measured")
    grid.add_argument("--loaders", nargs="+", choices=list(KINDS), metavar="NAME", help=f"of: {', '.join(KINDS)}")
    grid.add_argument("--image-sizes", type=int, nargs="+", help="default: the recipe's, 320 and 512")
    grid.add_argument("--threads", type=int, nargs="+", help="threads or workers of a rank (default: 1, 2, all cores)")
    grid.add_argument("--ranks", type=int, nargs="+", help="processes at once (default: 1, 2, as many as GPUs)")
    grid.add_argument("--no-cold", action="store_true", help="leave the cases with a cold page cache out")
    size = parser.add_argument_group("how much")
    size.add_argument("--files", type=int, help=f"PNGs (default {FULL['files']}, quick {QUICK['files']})")
    size.add_argument("--batch", type=int, default=BATCH, help="images of a batch of files (default %(default)s)")
    size.add_argument("--windows", type=int, help=f"default {FULL['windows']}, quick {QUICK['windows']}")
    size.add_argument(
        "--working-set-mb", type=int, metavar="MIB",
        help="MiB that cache and memcpy go through in random order: beyond any processor's own cache, so that memory\n"
        f"is what is measured (default {FULL['working_set_mb']}, quick {QUICK['working_set_mb']})",
    )  # fmt: skip
    size.add_argument("--work", type=Path, metavar="DIR", help="for what is made on the way (default: a temporary one)")
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # a killed run, too, removes its gigabytes
    sys.exit(main())
