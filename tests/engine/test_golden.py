"""The losses of a short run, written down: a change that is not meant to change training reproduces them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import tiny

from distcxr.engine.fit import fit

GOLDEN = Path(__file__).parents[1] / "golden" / "losses.txt"


def test_losses_are_those_written_down(tmp_path: Path) -> None:
    """To accept a change of training: rewrite the file with what the failure prints, with the reason in the commit."""
    tiny.phantom(tmp_path)
    run = tiny.build(tmp_path, f"output={tmp_path / 'run'}", "train.max_steps=9", "eval.every=100ep", "eval.splits=[]")
    fit(run)
    losses = [float(row["loss"]) for row in csv.DictReader((tmp_path / "run" / "steps.csv").read_text().splitlines())]
    golden = [float(line) for line in GOLDEN.read_text().split()]
    # Not bit for bit: the order of summation in a convolution differs between processors.
    assert losses == pytest.approx(golden, rel=2e-4), "\n".join(f"{loss:.6f}" for loss in losses)
