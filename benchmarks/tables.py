"""Write the GPU tables of BENCHMARKS.md from the results that `benchmarks/gpu_suite.sh` left in benchmarks/results/.

    python benchmarks/tables.py             write them
    python benchmarks/tables.py --check     end with 1 if BENCHMARKS.md is not what this would write

Results of a dry run, and folders of other benchmarks, are passed over.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_suite.results import read_results
from gpu_suite.summary import table

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- gpu tables: begin -->", "<!-- gpu tables: end -->"
NONE = """\
No GPU has run distcxr so far, so there are no GPU figures. `benchmarks/gpu_suite.sh` makes them on a machine with one,
also without a network; its results go into `benchmarks/results/`, from which `python benchmarks/tables.py` writes this
section."""
TABLES: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (  # title, part, kind of row (`what`), columns
    (
        "PNGs decoded on the GPU, a wave at a time: milliseconds of a wave", "decode", "decode",
        ("inflate", "streams", "img_per_s", "mb_to_gpu", "gpu_mb", "copy_ms", "inflate_ms", "unfilter_ms", "resize_ms",
         "other_ms", "note"),
    ),
    ("What the CPU does for it", "decode", "prepare", ("inflate", "core_ms", "threads", "img_per_s", "note")),
    ("The whole reader", "decode", "reader", ("inflate", "streams", "threads", "img_per_s", "note")),
    ("Training with each loader", "decode", "train", ("loader", "inflate", "img_per_s", "alone_img_per_s", "note")),
    (
        "Loaders", "decode dali", "",
        ("loader", "image_size", "threads", "img_per_s", "core_ms", "first_batch_s", "note"),
    ),
    (
        "A training step, on batches that are in the GPU's memory", "step", "",
        ("model", "loop", "precision", "batch", "image_size", "img_per_s", "ms", "launches", "copies", "busy_pct",
         "memory_mb", "tflops", "share_of_ceiling", "host_outside_pct", "to_timm", "to_torchvision", "note"),
    ),
    (
        "Runs from start to end (`differs_by`: losses, relative to `torch`'s)", "runs dali", "train",
        ("run", "steps", "seconds", "img_per_s", "data_wait_pct", "memory_mb", "loss_last", "differs_by", "note"),
    ),
    (
        "Killed with SIGKILL and resumed, against two undisturbed runs", "runs", "resumed",
        ("run", "steps", "undisturbed_differ_by", "differs_by", "bit_equal", "note"),
    ),
    (
        "Several ranks on one GPU, against one rank", "ranks", "gloo nccl",
        ("what", "ranks", "backend", "steps", "img_per_s", "scored", "differs_by", "note"),
    ),
)  # fmt: skip


def main() -> int:
    """Write the section, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--file", type=Path, default=ROOT / "BENCHMARKS.md")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    before = args.file.read_text(encoding="utf-8")
    try:
        after = replaced(before, section(args.results))
    except ValueError as error:
        parser.error(str(error))
    if args.check:
        print(f"{args.file} is {'what' if before == after else 'not what'} benchmarks/tables.py writes")
        return int(before != after)
    args.file.write_text(after, encoding="utf-8")
    return 0


def replaced(text: str, new: str) -> str:
    """The text with what is between the markers replaced.

    Raises:
        ValueError: the markers are not there once each, in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in after or END in after:
        raise ValueError(f"{BEGIN} and {END} have to be there once each, in this order")
    return f"{before}{BEGIN}\n{new}\n{END}{after}"


def section(folder: Path) -> str:
    """What stands between the markers: the tables of every results.json of a GPU, the newest first.

    Raises:
        ValueError: a results.json is damaged.
    """
    found = [(file.parent, read_results(file)) for file in sorted(folder.glob("*/results.json"), reverse=True)]
    measured = [(folder, content) for folder, content in found if content["machine"]["card"] and not content["dry"]]
    parts = [NONE] if not measured else ["Medians; rows without a figure have the reason beside them."]
    for folder, content in measured:
        parts += ["", *_of_machine(folder, content)]
    return "\n".join(parts)


def _of_machine(folder: Path, content: Mapping[str, Any]) -> list[str]:
    machine = content["machine"]
    lines = [
        f"### {machine['card']}, {content['started'][:10]}", "",
        f"torch {machine['torch']}, Python {machine['python']}; all of it: "
        f"[summary](benchmarks/results/{folder.name}/summary.md), "
        f"[rows](benchmarks/results/{folder.name}/results.json).", "",
        "| part | status | tests passed | failed | skipped |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for name, part in content["parts"].items():
        counts = next((row for step in part["steps"] for row in step.get("rows", []) if "sessions" in row), {})
        numbers = " | ".join(str(counts.get(outcome, "")) for outcome in ("passed", "failed", "skipped"))
        lines.append(f"| {name} | {part['status']} | {numbers} |")
    for title, parts, kinds, names in TABLES:
        rows = [row for row in _rows(content, parts.split()) if row.get("what", "") in (kinds.split() or [""])]
        rows = [row for row in rows if "img_per_s" in row]
        shown = [name for name in names if any(row.get(name) not in (None, "") for row in rows)]
        if rows:
            lines += ["", f"{title}:", "", *table(rows, shown)]
    return lines


def _rows(content: Mapping[str, Any], parts: Sequence[str]) -> list[Mapping[str, Any]]:
    return [
        row for part in parts if part in content["parts"]
        for step in content["parts"][part]["steps"] for row in step.get("rows", [])
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
