"""A run folder as a finished run leaves it, made of simulated scores: what a report page is drawn from."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import cohort
import numpy as np
from PIL import Image

from distcxr.data.labels import NIH14
from distcxr.explain.localisation import INTERVALS
from distcxr.metrics.evaluation import full_report
from distcxr.metrics.figures_json import full_json
from distcxr.metrics.operating import choose_operating
from distcxr.recipe import load_recipe
from distcxr.recipe.load import to_yaml
from distcxr.runfolder.predictions import write_predictions
from distcxr.runfolder.whole import write_json

ROOT = Path(__file__).parents[1]
OFFICIAL = {
    "labels": "dc1d2df67fdc1c5a7601d48699cda2b13dc2c4841488b4183dcf04884dbaca11",
    "train_val_list.txt": "61fbe896321c1c1c8b75f3e4f3a08e4fef6486d95ef8a667c31d4d60dca6cb81",
    "test_list.txt": "38ca5ef7f756092946f57c1a59faca882ed589a1ab1f72590b45dc06c6d5e1cc",
}
# Shares of positives in NIH's official test list, and how far apart positives and negatives score.
SHARES = (0.128, 0.042, 0.182, 0.239, 0.068, 0.063, 0.022, 0.104, 0.071, 0.036, 0.043, 0.017, 0.045, 0.0034)
APART = (1.1, 1.7, 1.4, 0.75, 1.3, 1.1, 0.85, 1.65, 0.95, 1.55, 1.9, 1.3, 1.1, 1.9)


def write_run(
    folder: Path, images: int = 300, patients: int = 60, replicates: int = 40, pictures: int = 2, steps: int = 60
) -> Path:
    """A whole run folder with validation and test split; Hernia may lack positives in a small one."""
    folder.mkdir(parents=True)
    recipe = load_recipe(ROOT / "recipes" / "densenet121.yaml", [f"output={folder}", "data.root=/data/nih"])
    (folder / "recipe.yaml").write_text(to_yaml(recipe))
    (folder / "environment.json").write_text(json.dumps(environment(), indent=1))
    write_training(folder, steps)
    operating = None
    for seed, (split, num) in enumerate((("val", images // 2), ("test", images))):
        held = simulate(num, patients, seed)
        scored = cohort.scored(held["logits"], held["targets"], held["mask"], held["patient_id"], NIH14)
        if operating is None:
            operating = choose_operating(scored)
            write_json(folder / "operating.json", {"step": steps, "operating": operating.to_json()})
        report = full_report(
            split, scored, sex=held["sex"], age=held["age"], view=held["view"], operating=operating,
            operating_from="val", checkpoint_from="val", replicates=replicates,
        )  # fmt: skip
        content = full_json(report) | {"step": steps, "loss": 0.1525 + 0.01 * seed}
        write_json(folder / f"metrics_{split}.json", content, indent=2)
        files = [f"{patient:08d}_{number:03d}.png" for number, patient in enumerate(held["patient_id"].tolist())]
        kept = cohort.predictions(
            files, held["patient_id"].tolist(), NIH14, held["logits"], held["targets"], held["mask"]
        )
        write_predictions(folder / f"predictions_{split}.csv", *kept)
    write_pictures(folder / "pictures", pictures)
    (folder / "localisation_test.json").write_text(json.dumps(localisation()))
    return folder


def simulate(num: int, patients: int, seed: int) -> dict[str, Any]:
    """Scores, labels and patients; the ill have more images, as in NIH's test list."""
    rng = np.random.default_rng(seed)
    weights = rng.gamma(0.7, size=patients) + 0.02
    row = np.sort(rng.choice(patients, size=num, p=weights / weights.sum()))
    targets = (rng.random((num, 14)) < SHARES).astype(np.uint8)
    spread = 0.4 * rng.normal(size=(patients, 14))[row]
    offset = np.log(np.array(SHARES) / (1 - np.array(SHARES)))
    logits = offset - 0.5 + np.array(APART) * targets + spread + rng.normal(size=(num, 14))
    sex, view = rng.choice(["F", "M"], size=patients)[row], rng.choice(["AP", "PA"], size=num, p=(0.4, 0.6))
    return {
        "logits": (1.4 * logits).astype(np.float32), "targets": targets, "mask": np.ones_like(targets),
        "patient_id": (row * 7 + 13 + 40_000 * seed).astype(np.int64), "sex": sex, "view": view,
        "age": rng.integers(2, 92, size=patients)[row].astype(np.float32),
    }  # fmt: skip


def environment() -> dict[str, Any]:
    """As a run writes it; counts of NIH's official lists, but for what is positive."""
    of_split = {"train": cohort_of(77_871, 25_208), "val": cohort_of(8_653, 2_800), "test": cohort_of(25_595, 2_797)}
    return {
        "started": "2026-01-31T12:00:00+00:00",
        "command": ["launch.py", "recipes/densenet121.yaml", "data.root=/data/nih"],
        "distcxr": "0.1.0",
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "identity": "9f86d081884c",
        "versions": {"python": "3.11.7", "torch": "2.11.0", "accelerate": "1.15.0", "numpy": "2.4.6"},
        "hardware": {"host": "node1", "device": "NVIDIA A100", "num_gpus": 4, "cores": 64},
        "world_size": 4,
        "backend": "nccl",
        "splits": {name: {key: one[key] for key in ("num_images", "num_patients")} for name, one in of_split.items()},
        "cohort": {
            "label_file": {"num_images": 112_120, "num_patients": 30_805},
            "with_file": {"num_images": 112_119, "num_patients": 30_805},
            "notes": [],
            "splits": of_split,
        },
        "hashes": {**OFFICIAL, "train": "a" * 64, "val": "b" * 64, "test": "c" * 64},
        "earlier": [],
    }


def cohort_of(images: int, patients: int) -> dict[str, Any]:
    """One split, as `data.cohort` describes it."""
    return {
        "num_images": images,
        "num_patients": patients,
        "age": {"median": 48.0, "q25": 34.0, "q75": 59.0, "num_unknown": 3},
        "sex": {"F": patients // 2, "M": patients - patients // 2, "unknown": 0},
        "view": {"PA": images - images // 3, "AP": images // 3, "LATERAL": 0, "unknown": 0},
        "findings": {
            name: {
                "num_known": images,
                "num_positive": round(share * images),
                "num_patients_known": patients,
                "num_patients_positive": round(share * patients),
            }
            for name, share in zip(NIH14, SHARES, strict=True)
        },
    }


def write_training(folder: Path, steps: int, epochs: int = 10) -> None:
    """steps.csv and history.csv of a loss that falls."""
    rng = np.random.default_rng(0)
    with (folder / "steps.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("step", "epoch", "loss", "lr", "img_per_s", "data_wait_pct", "memory_mb"))
        for step in range(1, steps + 1):
            share = step / steps
            loss = 0.14 + 0.5 * math.exp(-9 * share) + 0.012 * rng.normal()
            lr = 1e-4 * min(1.0, 20 * share) * 0.5 * (1 + math.cos(math.pi * share))
            speed = 1900 + 60 * rng.normal()
            writer.writerow((step, int(share * epochs), loss, lr, round(speed, 1), 3.1, 9120.5))
    with (folder / "history.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("epoch", "step", "train_loss", "val_loss", "val_auroc", "lr", "img_per_s", "train_s"))
        for epoch in range(epochs):
            step, share = round((epoch + 1) * steps / epochs), (epoch + 1) / epochs
            val_loss = 0.16 + 0.1 * math.exp(-4 * share) + 0.012 * share**3
            writer.writerow((epoch, step, 0.16, val_loss, 0.845 - 0.16 * math.exp(-3 * share), 1e-4, 1900.0, 41.0))


def write_pictures(folder: Path, each: int) -> None:
    """`each` false positives and false negatives with heat maps."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    entries = []
    for number in range(2 * each):
        grey = np.clip(rng.normal(110, 30, size=(96, 96)), 0, 255).astype(np.uint8)
        heat = np.stack([grey, grey // 2, grey // 3], axis=-1)
        Image.fromarray(grey).save(folder / f"{number}.png")
        Image.fromarray(heat).save(folder / f"{number}_heat.png")
        kind = "false_positive" if number < each else "false_negative"
        entries.append(
            {
                "split": "test", "file": f"{number:08d}_000.png", "finding": NIH14[number % 14], "kind": kind,
                "prob": 0.97 - 0.01 * number if number < each else 0.002 * (number + 1),
                "labels": ["Pleural_Thickening"], "image": f"{number}.png", "heat": f"{number}_heat.png",
            }
        )  # fmt: skip
    (folder / "pictures.json").write_text(json.dumps(entries))


def localisation() -> dict[str, Any]:
    """As `Localisation.to_json` gives it."""
    findings: dict[str, Any] = {}
    for number, name in enumerate(NIH14):
        with_boxes = number < 8
        findings[name] = {
            "pointing": 0.4 + 0.05 * number if with_boxes else None,
            "iou": 0.2 + 0.01 * number if with_boxes else None,
            "coverage": 0.3 if with_boxes else None,
            "pointing_chance": 0.05 if with_boxes else None,
            "box_share": 0.05 if with_boxes else None,
            "num": 120 if with_boxes else 0,
            "num_empty": 0,
            "num_patients": (9 if number == 0 else 110) if with_boxes else 0,
            **dict.fromkeys(("pointing_low", "pointing_high", "iou_low", "iou_high")),
            "reason": None if with_boxes else f"no image here has a box of {name}",
        }
        if 0 < number < 8:
            findings[name] |= {"pointing_low": 0.35, "pointing_high": 0.85, "iou_low": 0.15, "iou_high": 0.3}
    findings[NIH14[0]]["reason"] = "fewer than 10 patients, too few for an interval"
    return {
        "method": "Grad-CAM less its mean", "map": "relative", "intervals": INTERVALS, "iou_threshold": 0.5,
        "tolerance_px": 0.0, "input_px": 224, "findings": findings,
    }  # fmt: skip
