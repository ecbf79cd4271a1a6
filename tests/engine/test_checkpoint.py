"""Checkpoints and run folders when a run is started again: damaged, moved, older, of another recipe or data."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from distcxr.engine.checkpoint import open_checkpoint
from distcxr.engine.fit import fit
from distcxr.engine.saving import save_last
from distcxr.runfolder.manifest import read_meta, write_meta


def damage(checkpoint: Path, how: str) -> None:
    """The ways a disk or a hand spoils a checkpoint."""
    model, meta = checkpoint / "model.safetensors", checkpoint / "checkpoint.json"
    if how == "cut short":
        model.write_bytes(model.read_bytes()[:1000])
    elif how == "a bit flipped":
        content = bytearray(model.read_bytes())
        content[len(content) // 2] ^= 1
        model.write_bytes(content)
    elif how == "no state":
        write_meta(checkpoint, read_meta(checkpoint) | {"state": None})
    elif how == "a digit changed":
        meta.write_text(meta.read_text().replace('"step": 3', '"step": 2'))
    elif how == "a file missing":
        (checkpoint / "training.pt").unlink()
    else:
        meta.write_text(how)


@pytest.mark.parametrize(
    "how", ["cut short", "a bit flipped", "no state", "a digit changed", "a file missing", "[]", "{}", "{", "null"]
)
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str) -> None:
    tiny.phantom(tmp_path)
    common = (f"output={tmp_path / 'run'}", "eval.splits=[]", "checkpoint.every=1st")
    tiny.train(tmp_path, *common, "train.max_steps=3")
    newest = tmp_path / "run" / "checkpoints" / "last-00000003"
    damage(newest, how)
    (tmp_path / "run" / "checkpoints" / ".last-00000004.part").mkdir()  # a save that was killed
    (tmp_path / "run" / "environment.json").write_text("")
    with pytest.raises(ValueError, match=r"last-00000003\S* .*(use another checkpoint|is not a checkpoint)"):
        tiny.build(tmp_path, f"train.resume={newest}")
    run = tiny.build(tmp_path, *common, "train.max_steps=5")
    assert run.state.step == 2
    assert "passed over a checkpoint" in caplog.text and "last-00000003" in caplog.text
    fit(run)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["best", "damaged-last-00000003", "last-00000003", "last-00000004", "last-00000005"]


def test_a_checkpoint_of_a_later_version_is_not_put_aside_as_damaged(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    common = (f"output={tmp_path / 'run'}", "eval.splits=[]", "checkpoint.every=1st")
    tiny.train(tmp_path, *common, "train.max_steps=2")
    newest = tmp_path / "run" / "checkpoints" / "last-00000002"
    write_meta(newest, read_meta(newest) | {"format_version": 99})
    with pytest.raises(ValueError, match=r"last-00000002 has format 99; this distcxr reads formats 2 and 3 and 4"):
        tiny.build(tmp_path, *common)
    assert newest.exists()


def test_when_every_checkpoint_is_damaged_the_new_ones_are_kept(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    common = (f"output={tmp_path / 'run'}", "eval.splits=[]", "checkpoint.every=1st", "checkpoint.keep=1")
    tiny.train(tmp_path, *common, "train.max_steps=4")
    checkpoints = tmp_path / "run" / "checkpoints"
    damage(checkpoints / "last-00000004", "a bit flipped")
    tiny.train(tmp_path, *common, "train.max_steps=2")
    names = sorted(path.name for path in checkpoints.iterdir())
    assert names == ["best", "damaged-last-00000004", "last-00000002"]


def test_a_run_folder_means_its_newest_checkpoint(finished: Path, tmp_path: Path) -> None:
    run = tiny.build(finished.parent, f"train.resume={finished}", f"output={tmp_path / 'branch'}", tiny.BF16)
    assert run.state.step == run.horizon.total_steps
    with pytest.raises(ValueError, match=r"is not a checkpoint: it has no checkpoint.json"):
        tiny.build(tmp_path, f"train.resume={tmp_path}", f"data.root={finished.parent / 'phantom'}")


def test_going_back_does_not_lose_newer_checkpoints(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    common = ("eval.splits=[]", "checkpoint.every=1st", f"output={tmp_path / 'run'}")
    tiny.train(tmp_path, *common, "train.max_steps=3")
    older = tmp_path / "run" / "checkpoints" / "last-00000002"
    with pytest.raises(
        ValueError, match=r"holds newer checkpoints than last-00000002 .*: they would be lost. Give output="
    ):
        tiny.build(tmp_path, *common, f"train.resume={older}")


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    """The other process is a real one: locks are held by processes."""
    holder = (
        "import sys, pathlib; from distcxr.runfolder.lock import claim; claim(pathlib.Path(sys.argv[1])); "
        "print('held', flush=True); sys.stdin.read()"
    )
    tiny.phantom(tmp_path)
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", holder, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=rf"another run is writing to .*run \(process {other.pid} on"):
            tiny.build(tmp_path, f"output={tmp_path / 'run'}")
        other.stdin.close()
    assert tiny.build(tmp_path, f"output={tmp_path / 'run'}").state.step == 0


def test_another_recipe_is_refused(finished: Path) -> None:
    with pytest.raises(ValueError, match=r"made by another recipe:\n  - optim.lr: 0.001 in the checkpoint, 0.5 in"):
        tiny.build(finished.parent, f"output={finished}", "optim.lr=0.5", tiny.BF16)
    with pytest.raises(ValueError, match=r"holds a run, and train.resume=never would overwrite it"):
        tiny.build(finished.parent, f"output={finished}", "train.resume=never")


def test_without_output_auto_goes_on_with_the_unfinished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.phantom(tmp_path)
    monkeypatch.chdir(tmp_path)
    cheap = ("eval.splits=[]", "eval.every=100ep")
    tiny.train(tmp_path, *cheap, "train.max_steps=2")
    (first,) = (tmp_path / "runs" / "tiny").iterdir()
    tiny.train(tmp_path, *cheap, "train.max_steps=4")  # resumes
    assert list((tmp_path / "runs" / "tiny").iterdir()) == [first]
    assert len((first / "steps.csv").read_text().splitlines()) == 5
    assert len(json.loads((first / "environment.json").read_text())["earlier"]) == 1
    tiny.train(tmp_path, *cheap, "train.max_steps=4")  # has nothing left to do there: a new run
    assert len(list((tmp_path / "runs" / "tiny").iterdir())) == 2
    tiny.train(tmp_path, *cheap, "train.max_steps=1", "seed=5")  # another recipe
    assert len(list((tmp_path / "runs" / "tiny").iterdir())) == 3


def test_best_survives_a_crash_between_the_renames(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "checkpoints" / "best", tmp_path / "run" / "checkpoints" / ".best.old")
    assert open_checkpoint(tmp_path / "run").step > 0


def test_going_on_in_another_folder_takes_the_best_along(finished: Path, tmp_path: Path) -> None:
    last = max((finished / "checkpoints").glob("last-*"))
    tiny.train(finished.parent, f"train.resume={last}", f"output={tmp_path / 'moved'}", tiny.BF16)
    before, after = (json.loads((run / "metrics_val.json").read_text()) for run in (finished, tmp_path / "moved"))
    assert after == before

    alone = tmp_path / "alone" / "checkpoints" / last.name
    shutil.copytree(last, alone)
    run = tiny.build(finished.parent, f"train.resume={alone}", tiny.BF16)
    assert run.folder == tmp_path / "alone" and run.state.best_step is None


def test_going_on_from_the_best_repeats_the_straight_run(finished: Path, tmp_path: Path) -> None:
    """`best` is written at an epoch's end: its history must hold that epoch, once."""
    best = finished / "checkpoints" / "best"
    tiny.train(finished.parent, f"train.resume={best}", f"output={tmp_path / 'branch'}", tiny.BF16)
    columns = ("epoch", "step", "train_loss", "val_loss", "val_auroc", "lr")
    straight, branch = (tiny.rows(run / "history.csv") for run in (finished, tmp_path / "branch"))
    assert [[row[name] for name in columns] for row in branch] == [[row[name] for name in columns] for row in straight]


def test_other_data_is_refused_on_resume(tmp_path: Path) -> None:
    data = tiny.phantom(tmp_path)
    common = (f"output={tmp_path / 'run'}", "eval.splits=[]", "data.missing=skip")
    tiny.train(tmp_path, *common, "train.max_steps=2")
    gone = Path(tiny.build(tmp_path, *common).setup.index.files([0])[0])
    gone.unlink()
    assert data in gone.parents
    with pytest.raises(ValueError, match=r"was trained on other data: (train|val|test) changed since"):
        tiny.build(tmp_path, *common)


def test_a_run_killed_before_its_scores_gets_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.phantom(tmp_path)
    monkeypatch.chdir(tmp_path)
    tiny.train(tmp_path, "train.max_steps=2")
    (only,) = (tmp_path / "runs" / "tiny").iterdir()
    (only / "metrics_test.json").unlink()
    tiny.train(tmp_path, "train.max_steps=2")
    assert list((tmp_path / "runs" / "tiny").iterdir()) == [only] and (only / "metrics_test.json").exists()


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    run = tiny.build(tmp_path, f"output={tmp_path / 'run'}")
    next(run.setup.module.parameters()).data[0] = float("nan")
    with pytest.raises(ValueError, match=r"the weights are not finite after step 0"):
        save_last(run)
    assert not list((tmp_path / "run" / "checkpoints").glob("last-*"))
