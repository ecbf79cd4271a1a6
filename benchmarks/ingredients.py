"""What does each ingredient of a recipe gain? On synthetic X-rays, trained on CPUs, three seeds each.

    python benchmarks/ingredients.py --work DIR --json ingredients.json           all; the same command continues
    python benchmarks/ingredients.py --work DIR --only base ema mixup             some
    python benchmarks/ingredients.py --work DIR --json long.json --epochs 16      whether longer training changes it
    python benchmarks/ingredients.py --work DIR --json ingredients.json --table   no training: the table of what is done

Draws 20,000 phantoms (`distcxr phantom`) into DIR and trains recipes/quickstart.yaml at 64 px on 4,000 of them for four
epochs. A variant is that with a few keys changed; the same seed gives it the same images and, where the network is the
same, the same first weights. The figure is the macro AUROC of the test list after the last epoch, nothing chosen on it.
Pretraining has a run before each of its own, and so more computation than the rest.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]
IMAGES, SIZE, SEEDS = 20_000, 64, (0, 1, 2)
ELSEWHERE_SEED = 1  # of the phantoms that are labelled elsewhere; those of the task have 0
NONE_SEEN = "no difference seen"
EPOCHS = 4
BASE = (
    "data.image_size=64", "data.max_train_samples=4000", "data.num_workers=0", "train.global_batch_size=64",
    "eval.weights=last", "eval.splits=[test]", "eval.pictures=0", "eval.replicates=2", "eval.localise=false",
    "logging.images=0",
)  # fmt: skip
PLAIN = (
    "augment.rotate_deg=0", "augment.translate=0", "augment.scale=[1,1]", "augment.brightness=0", "augment.contrast=0",
)  # fmt: skip


class Variant(NamedTuple):
    """An ingredient: what it changes, and how a reader calls it."""

    title: str
    overrides: tuple[str, ...] = ()
    pretraining: tuple[str, ...] = ()  # overrides of the run before, which it begins from; {work} is the folder


_MARGIN = ("loss.name=combined", "loss.parts=[{name: bce}, {name: auc_margin}]")
_ASYMMETRIC = ("loss.name=combined", "loss.parts=[{name: bce, weights: balanced}, {name: asymmetric}]")
VARIANTS: dict[str, Variant] = {
    "base": Variant("quickstart's augmentation, BCE"),
    "no_augmentation": Variant("without augmentation", PLAIN),
    "ema": Variant("moving average of the weights, .99 with warm-up", ("train.ema=0.99",)),
    "asymmetric": Variant("asymmetric loss", ("loss.name=asymmetric",)),
    "elsewhere": Variant(
        "pretrained on 4,000 labelled phantoms of another seed", ("model.new_head=true",),
        ("data.root={work}/elsewhere",),
    ),
    "pretext": Variant(
        "pretrained on view and sex of the train_val list, without findings", ("model.new_head=true",),
        ("data.root={work}/pretext", "data.dataset=csv", "data.findings=[AP, Male]", "data.columns.patient=patient",
         "data.columns.split=split", "data.max_train_samples=null"),
    ),
    "auc_margin": Variant("AUC margin", ("loss.name=auc_margin",)),
    "partial_auc": Variant("one-way partial AUC", ("loss.name=partial_auc",)),
    "bce_auc_margin": Variant("BCE + AUC margin", _MARGIN),
    "weighted_bce_asymmetric": Variant("weighted BCE + asymmetric", _ASYMMETRIC),
    "focal": Variant("focal loss", ("loss.name=focal",)),
    "weighted_bce": Variant("weighted BCE", ("loss.weights=balanced",)),
    "rand_augment": Variant("RandAugment m6-mstd0.5-inc1", ("augment.rand_augment=m6-mstd0.5-inc1",)),
    "erase": Variant("random erasing, .25", ("augment.erase=0.25",)),
    "mixup": Variant("mixup, alpha .2", ("augment.mixup=0.2",)),
    "cutmix": Variant("CutMix, alpha 1", ("augment.cutmix=1",)),
    "drop_path": Variant("drop path, .1", ("model.drop_path=0.1",)),
}  # fmt: skip


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="of phantoms and runs; reused")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT",
                        help=", ".join(VARIANTS))  # fmt: skip
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of every run (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a row per run; rows there already stay")
    parser.add_argument("--table", action="store_true", help="train nothing")
    args = parser.parse_args()
    rows: list[Row] = json.loads(args.json.read_text()) if args.json and args.json.exists() else []
    if strangers := {row["epochs"] for row in rows} - {args.epochs}:
        parser.error(f"{args.json} has runs of {min(strangers)} epochs: take another file for {args.epochs}")
    done = {(row["variant"], row["seed"]) for row in rows}
    wanted = [(name, seed) for name in args.only for seed in SEEDS if (name, seed) not in done]
    if not args.table and wanted:
        work = args.work.resolve()
        draw(work, {name for name, _ in wanted})
        with ThreadPoolExecutor(args.jobs) as runs:
            for row in runs.map(lambda one: trained(work, *one, args.epochs), wanted):
                rows.append(row)
                print(f"{row['variant']}, seed {row['seed']}: {row['auroc']:.4f}", flush=True)
                if args.json:
                    args.json.write_text(json.dumps(rows, indent=1, allow_nan=False) + "\n")
    print(table(rows))


def draw(work: Path, names: set[str]) -> None:
    """The phantoms that the variants need, where they are not there yet."""
    folders = {"phantom": 0} | ({"elsewhere": ELSEWHERE_SEED} if "elsewhere" in names else {})
    for folder, seed in folders.items():
        if not (work / folder / "phantom.json").exists():
            size = ["--images", str(IMAGES), "--size", str(SIZE), "--seed", str(seed)]
            subprocess.run([sys.executable, "-m", "distcxr.cli", "phantom", str(work / folder), *size], check=True)
    if "pretext" in names:
        write_pretext(work / "phantom", work / "pretext")


def write_pretext(phantom: Path, folder: Path) -> None:
    """A data set of the phantom's train_val list with labels that cost nothing: view and sex, no findings."""
    folder.mkdir(exist_ok=True)
    if not (folder / "images").exists():
        (folder / "images").symlink_to(phantom / "images")
    listed = set((phantom / "train_val_list.txt").read_text().split())
    with (phantom / "Data_Entry_2017_v2020.csv").open(newline="") as source:
        people = [row for row in csv.DictReader(source) if row["Image Index"] in listed]
    with (folder / "labels.csv").open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(["image", "patient", "split", "AP", "Male"])
        for row in people:
            patient = int(row["Patient ID"])
            split = {0: "test", 1: "val"}.get(patient % 10, "train")
            labels = [int(row["View Position"] == "AP"), int(row["Patient Gender"] == "M")]
            writer.writerow([f"images/{row['Image Index']}", patient, split, *labels])


def trained(work: Path, name: str, seed: int, epochs: int) -> Row:
    """The row of a run, which is trained if it has no metrics yet; an interrupted one resumes."""
    variant, folder = VARIANTS[name], work / "runs" / f"{name}-{seed}{f'-{epochs}ep' if epochs != EPOCHS else ''}"
    fixed = [*BASE, f"train.epochs={epochs}", f"eval.every={epochs}ep", f"checkpoint.every={epochs}ep", f"seed={seed}"]
    overrides = [*fixed, f"data.root={work / 'phantom'}", *variant.overrides]
    if variant.pretraining:
        before = folder.with_name(f"{folder.name}-pretraining")
        _run(before, [*fixed, *(key.replace("{work}", str(work)) for key in variant.pretraining)])
        overrides.append(f"model.weights={before}")
    _run(folder, overrides)
    return {
        "variant": name, "seed": seed, "epochs": epochs, "auroc": auroc_of(folder), "overrides": overrides,
        "commit": commit_of(folder),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/ingredients.py", *sys.argv[1:]]),
    }  # fmt: skip


def _run(folder: Path, overrides: Sequence[str]) -> None:
    if (folder / "metrics_test.json").exists():
        return
    command = [sys.executable, "-m", "distcxr.launch", "recipes/quickstart.yaml", *overrides, f"output={folder}"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(["nice", "-n", "5", *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"{folder} ended with {ended.returncode}:\n{(ended.stdout + ended.stderr)[-2000:]}")


def auroc_of(folder: Path) -> float:
    """Macro AUROC of the test list of a run that has ended."""
    return float(json.loads((folder / "metrics_test.json").read_text())["macro"]["auroc"])


def commit_of(folder: Path) -> str | None:
    """Of the code that trained a run, which may be older than the code that reads it."""
    commit: str | None = json.loads((folder / "environment.json").read_text())["commit"]
    return commit


def compared(ours: Mapping[int, float], base: Mapping[int, float]) -> Row:
    """A variant against the base: `gains` of each seed both have, and a verdict.

    There is a difference where all seeds were run, all gains have one sign, and their mean exceeds the spread of the
    base's seeds (highest less lowest). Three seeds can show no more: under chance alone a quarter have one sign.
    """
    gains = [ours[seed] - base[seed] for seed in SEEDS if seed in ours and seed in base]
    if len(gains) < len(SEEDS):
        return {"gains": gains, "verdict": "seeds missing"}
    mean, spread = statistics.fmean(gains), max(base.values()) - min(base.values())
    one_sign = min(gains) > 0 or max(gains) < 0
    if not one_sign or abs(mean) <= spread:
        return {"gains": gains, "verdict": NONE_SEEN}
    return {"gains": gains, "verdict": "better" if mean > 0 else "worse"}


def table(rows: Sequence[Row]) -> str:
    """Markdown: a line per variant that has a row, in the order of `VARIANTS`."""
    by_name: dict[str, dict[int, float]] = {}
    for row in rows:
        by_name.setdefault(row["variant"], {})[row["seed"]] = row["auroc"]
    lines = ["| ingredient | test AUROC | gain | of each seed | |", "|---|---|---|---|---|"]
    for name, variant in VARIANTS.items():
        if name not in by_name:
            continue
        ours, figures = by_name[name], compared(by_name[name], by_name.get("base", {}))
        gains = figures["gains"] if name != "base" else []
        cells = [
            variant.title, f"{statistics.fmean(ours.values()):.4f}",
            f"{statistics.fmean(gains):+.4f}" if gains else "",
            f"{min(gains):+.4f} to {max(gains):+.4f}" if gains else _seeds(ours),
            "" if name == "base" else figures["verdict"],
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    return "\n".join(lines)


def _seeds(ours: Mapping[int, float]) -> str:
    return ", ".join(f"{ours[seed]:.4f}" for seed in sorted(ours))


if __name__ == "__main__":
    main()
