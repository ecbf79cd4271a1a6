"""Which images a run is shown under filters, limits, caps and weighted draws, and that a resumed one sees the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny

from distcxr.runfolder.predictions import read_predictions

FINDINGS = "data.findings=[Infiltration, Effusion, Atelectasis]"
WHERE = "data.where={view: [PA, AP], without: [Hernia], age: [10, 95]}"
SAMPLING = "data.sampling={cap_per_label: 8, balance: class}"
CHEAP = (FINDINGS, "train.global_batch_size=4", "checkpoint.every=2st", "eval.every=100ep", "eval.splits=[]")


def test_batches_hold_what_the_recipe_lets_in(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    output = f"output={tmp_path / 'run'}"
    run = tiny.build(tmp_path, *CHEAP, WHERE, SAMPLING, "data.max_train_samples=40", "data.max_val_samples=6", output)
    index, order = run.setup.index, run.training.loader.order
    assert index.findings == ("Infiltration", "Effusion", "Atelectasis") and len(index) == 96
    assert len(run.setup.splits.train) == 40 and len(run.setup.splits.val) == 6
    for name in ("train", "val", "test"):
        rows = run.setup.splits.rows(name)
        assert np.isin(index.view[rows], ["PA", "AP"]).all() and (index.age[rows] >= 10).all()
    ids = np.concatenate([batch.sample_id.numpy() for batch in run.training.loader.epoch(0)])
    shown = index.targets_NC[order.rows]
    assert len(order.rows) < 40 and len(ids) == len(order.rows) // 4 * 4 and np.isin(ids, order.rows).all()
    assert shown.sum(axis=0).max() <= 8 and (shown.sum(axis=1) == 0).sum() <= 8
    assert len(set(ids.tolist())) < len(ids)  # with replacement
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "data.where: " in log and "data.max_train_samples: 40 of " in log
    assert "data.sampling.cap_per_label=8: " in log and "data.sampling.balance=class: samples that show it" in log
    run.setup.close()


def test_a_resumed_run_draws_what_a_straight_one_does(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    tiny.train(tmp_path, *CHEAP, SAMPLING, f"output={straight}", "train.max_steps=9")
    for last in (4, 9):
        tiny.train(tmp_path, *CHEAP, SAMPLING, f"output={stopped}", f"train.max_steps={last}")
    losses = [[row["loss"] for row in tiny.rows(folder / "steps.csv")] for folder in (straight, stopped)]
    assert losses[0] == losses[1] and len(losses[0]) == 9
    for other in (WHERE, "data.max_val_samples=6", "data.sampling.cap_per_label=9"):
        with pytest.raises(ValueError, match=f"other recipe:\n.*{other.split('=')[0]}"):
            tiny.build(tmp_path, *CHEAP, SAMPLING, other, f"output={stopped}")


def test_scores_are_of_the_images_that_are_left(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    keys = (*CHEAP, "eval.splits=[test]", "eval.pictures=0", WHERE, "data.max_test_samples=9", "train.max_steps=1")
    tiny.train(tmp_path, *keys, f"output={tmp_path / 'run'}")
    run = tiny.build(tmp_path, *keys, f"output={tmp_path / 'again'}")
    found = read_predictions(tmp_path / "run" / "predictions_test.csv")
    assert sorted(found.files) == sorted(run.setup.index.file_names(run.setup.splits.test)) and len(found.files) == 9
    run.setup.close()
