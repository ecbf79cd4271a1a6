"""The network sees what it is shown: real images are learnt by heart, synthetic ones in general."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import tiny
import torch

from distcxr.data.labels import NIH14
from distcxr.data.read import read_index
from distcxr.engine.evaluate import evaluate
from distcxr.engine.fit import fit
from distcxr.recipe.data import Data

NIH = os.environ.get("DISTCXR_NIH_ROOT")


@pytest.mark.slow
@pytest.mark.skipif(NIH is None, reason="needs real images: set DISTCXR_NIH_ROOT")
def test_overfits_64_real_images(tmp_path: Path) -> None:
    """Augmentation off, findings with at least two positives: macro training AUROC above 0.99."""
    assert NIH is not None
    index = read_index(Data(missing="skip"), Path(NIH)).with_findings(NIH14)
    by_patient: dict[int, list[int]] = {}
    for row, patient in enumerate(index.patient_id.tolist()):
        by_patient.setdefault(patient, []).append(row)
    order = [row for rows in by_patient.values() for row in rows]
    parts = {"train": order[:64], "val": order[200:220], "test": order[220:240]}
    for name, rows in parts.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(index.file_names(rows)))
    positives = Counter(dict(zip(NIH14, index.targets_NC[order[:64]].sum(axis=0).tolist(), strict=True)))
    findings = [name for name, num in positives.items() if num >= 2]
    assert len(findings) >= 8
    recipe = tmp_path / "overfit.yaml"
    recipe.write_text(f"""
data: {{root: {NIH}, missing: skip, split: lists, findings: {findings}, image_size: 64, loader: torch,
  lists: {{train: {tmp_path}/train.txt, val: {tmp_path}/val.txt, test: {tmp_path}/test.txt}}}}
augment: {{normalize: dataset}}
model: {{name: resnet18, weights: none, in_chans: 1}}
optim: {{name: adamw, lr: 1e-3, weight_decay: 0}}
train: {{epochs: 14, global_batch_size: 16, precision: no}}
eval: {{every: 14ep, splits: []}}
logging: {{images: 0}}
output: {tmp_path}/run
""")
    from distcxr.engine.build import build_run
    from distcxr.recipe import load_recipe

    loaded = load_recipe(recipe)
    run = build_run(loaded, "overfit", tiny.runtime(loaded), tiny.Console(quiet=True))
    torch.set_num_threads(2)
    fit(run)
    report = evaluate(run.setup, "train").report
    run.setup.close()
    assert report.macro_findings == tuple(findings)
    assert report.macro_auroc is not None and report.macro_auroc > 0.99, report.findings
