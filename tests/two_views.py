"""Synthetic X-rays as a table with studies, of which some have a lateral view: an X-ray of the same patient."""

from __future__ import annotations

import csv
from pathlib import Path

from distcxr.phantom.writing import write_phantom

KEYS = (
    "data.dataset=csv", "data.columns={table: labels.csv, patient: patient, split: split, view: view, study: study}",
    "data.findings=nih14", "data.lateral=second_input",
)  # fmt: skip


def studies(folder: Path, images: int = 150, size: int = 32) -> Path:
    """`folder / "phantom"`, written once. Of a patient's images each second one is the lateral view of the first."""
    root = folder / "phantom"
    if root.exists():
        return root
    write_phantom(root, layout="csv", images=images, size=size, workers=1)
    rows = list(csv.DictReader((root / "labels.csv").read_text().splitlines()))
    seen: dict[str, int] = {}
    for row in rows:
        number = seen[row["patient"]] = seen.get(row["patient"], -1) + 1
        row |= {"study": f"{row['patient']}-{number // 2}"} | ({"view": "LATERAL"} if number % 2 else {})
    with (root / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root
