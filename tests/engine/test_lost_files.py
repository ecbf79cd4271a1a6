"""What is gone or damaged in a run folder is noticed: made anew, or in the log, at the end and in the report."""

from __future__ import annotations

import errno
import itertools
import json
import shutil
from collections.abc import Callable, Container
from pathlib import Path
from typing import NoReturn

import pytest
import tiny

from distcxr.engine import fit as fitting
from distcxr.engine import step_writing
from distcxr.engine.checkpoint import open_checkpoint
from distcxr.engine.state import Run
from distcxr.runfolder.history import STEP_COLUMNS, append_steps
from distcxr.runfolder.layout import best_folder, last_folder

CHEAP = ("eval.splits=[val]", "eval.pictures=0", "checkpoint.every=1st", "checkpoint.keep=1", "logging.every=1st")


def better_only_once(run: Run) -> bool:
    """In place of a validation: the first of a run is its best."""
    state = run.state
    state.last_val = {"step": state.step, "val_loss": 1.0, "val_auroc": 0.5}
    state.validated.append({"step": state.step, "val_auroc": 0.5})
    improved = state.best_score is None
    if improved:
        state.best_score, state.best_step = 0.5, state.step
    return improved


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Trains to `max_steps`, from where the call before ended; the best is that of step 3."""
    tiny.phantom(tmp_path)
    monkeypatch.setattr(fitting, "validate", better_only_once)

    def train(max_steps: int, *overrides: str) -> Path:
        tiny.train(tmp_path, *CHEAP, *overrides, f"output={tmp_path / 'run'}", f"train.max_steps={max_steps}")
        return tmp_path / "run"

    return train


def spoil(checkpoint: Path, how: str) -> None:
    if how == "deleted":
        shutil.rmtree(checkpoint)
    else:
        content = bytearray((checkpoint / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (checkpoint / "model.safetensors").write_bytes(content)


def warnings_of(run: Path) -> str:
    return " ".join(json.loads((run / "metrics_val.json").read_text())["warnings"])


@pytest.mark.parametrize("how", ["deleted", "a bit flipped"])
def test_a_lost_best_is_made_anew_from_the_last_of_its_step(
    stopped: Callable[..., Path], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = stopped(3)
    before = (best_folder(run) / "model.safetensors").read_bytes()
    spoil(best_folder(run), how)
    stopped(6)
    assert "the best checkpoint, of step 3, was made anew from" in caplog.text
    best = open_checkpoint(run)
    assert best.step == 3 and (best.path / "model.safetensors").read_bytes() == before
    assert "lost" not in warnings_of(run) and json.loads((run / "metrics_val.json").read_text())["step"] == 3


@pytest.mark.parametrize("how", ["deleted", "a bit flipped"])
def test_a_best_that_is_lost_for_good_is_noted_to_the_end(
    stopped: Callable[..., Path], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In the log when the run resumes and at its end, and in the report; two restarts later, too."""
    run = stopped(4)
    assert open_checkpoint(run).step == 3
    spoil(best_folder(run), how)
    stopped(5)
    stopped(7)
    note = "The best checkpoint was lost after step 4: the best validation, at step 3, can no longer be chosen"
    assert caplog.text.count(note) == 3, "when noticed, and at the end of both launches"
    assert note in warnings_of(run) and note in (run / "report.html").read_text()
    assert open_checkpoint(run).step == 5
    assert [text[: len(note)] for text in open_checkpoint(last_folder(run, 7)).meta["state"]["notes"]] == [note]


def test_a_best_that_is_lost_before_the_scores_does_not_end_the_run(
    stopped: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    finish = fitting.finish

    def after_a_loss(run: Run) -> object:
        run.saver.wait()
        spoil(best_folder(run.folder), "a bit flipped")
        return finish(run)

    monkeypatch.setattr(fitting, "finish", after_a_loss)
    run = stopped(4)
    assert "no best by auroc is there: the last weights are scored instead" in caplog.text
    assert "The best checkpoint was lost after step 4" in warnings_of(run)
    assert json.loads((run / "metrics_val.json").read_text())["step"] == 4


def with_nul(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:90] + b"\0" + content[91:])


STEPS: dict[str, tuple[Callable[[Path], object], str, list[str]]] = {
    "deleted": (Path.unlink, "steps.csv is gone: the losses of steps 1 to 4 are lost", ["5", "6"]),
    "emptied": (lambda path: path.write_text(""), "steps.csv is gone: the losses of steps 1 to 4", ["5", "6"]),
    "shortened": (
        lambda path: path.write_text("".join(path.read_text().splitlines(keepends=True)[:3])),
        "steps.csv is not what was written up to step 4", ["1", "2", "5", "6"],
    ),
    "a NUL": (with_nul, "with 1 NUL bytes", ["2", "3", "4", "5", "6"]),
    "a loss changed": (
        lambda path: path.write_text(path.read_text().replace("\n2,0,0.", "\n2,0,1.")),
        "4 rows of up to then can be read, and losses may be missing or wrong", ["1", "2", "3", "4", "5", "6"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", STEPS)
def test_a_spoilt_table_of_losses_is_noted(
    stopped: Callable[..., Path], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoil_it, message, steps = STEPS[how]
    run = stopped(4)
    spoil_it(run / "steps.csv")
    stopped(6)
    assert message in caplog.text and message in warnings_of(run)
    assert [row["step"] for row in tiny.rows(run / "steps.csv")] == steps
    assert message in (run / "report.html").read_text()


def test_a_table_of_losses_that_is_spoilt_while_training_does_not_cost_the_report(
    stopped: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    close_epoch = fitting.close_epoch

    def spoiling(run: Run) -> None:
        with_nul(run.folder / "steps.csv")
        close_epoch(run)

    monkeypatch.setattr(fitting, "close_epoch", spoiling)
    run = stopped(3)
    message = "be read were dropped, so losses are missing."
    assert message in caplog.text and message in (run / "report.html").read_text()
    assert [row["step"] for row in tiny.rows(run / "steps.csv")] == ["2", "3"]


def refuse(monkeypatch: pytest.MonkeyPatch, calls: Container[int]) -> None:
    """Have the disk refuse `steps.csv`, and `history.csv` always, at these of its writes."""
    count, append = itertools.count(), step_writing.append_steps

    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(step_writing, "append_steps", lambda *args: (full if next(count) in calls else append)(*args))
    monkeypatch.setattr(fitting, "write_history", full)


def test_tables_that_the_disk_refuses_for_a_while_are_whole_in_the_end(
    stopped: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refuse(monkeypatch, range(1, 4))
    run = stopped(6, "eval.splits=[]")
    assert [row["step"] for row in tiny.rows(run / "steps.csv")] == ["1", "2", "3", "4", "5", "6"]
    assert caplog.text.count("steps.csv can't be written (No space left on device)") == 1
    assert "history.csv can't be written" in caplog.text and open_checkpoint(last_folder(run, 6)).step == 6


def test_losses_that_the_disk_never_took_are_named_in_the_end_and_at_a_resume(
    stopped: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        refuse(patch, range(2, 1000))
        run = stopped(4)
    assert "steps.csv lacks steps 3 to 4: the disk did not take their rows" in warnings_of(run)
    assert [row["step"] for row in tiny.rows(run / "steps.csv")] == ["1", "2"]
    stopped(6)
    assert "steps.csv lacks 2 of the steps up to 4" in caplog.text and "lacks 2 of the steps" in warnings_of(run)


def test_a_table_of_losses_that_is_deleted_while_training_has_a_header_again(stopped: Callable[..., Path]) -> None:
    run = stopped(3)
    (run / "steps.csv").unlink()
    append_steps(run, [dict.fromkeys(STEP_COLUMNS, 4)])
    assert [row["step"] for row in tiny.rows(run / "steps.csv")] == ["4"]


def test_rows_after_the_checkpoint_and_a_lost_history_are_written_again(
    stopped: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    run = stopped(4)
    with (run / "steps.csv").open("a") as file:
        file.write("5,1,0.5,0.1,1.0,1.0,1.0\n6,1")
    before = (run / "history.csv").read_text()
    (run / "history.csv").unlink()
    tiny.build(run.parent, *CHEAP, f"output={run}", "train.max_steps=6").setup.close()
    assert (run / "history.csv").read_text() == before
    assert [row["step"] for row in tiny.rows(run / "validations.csv")] == ["3", "4"]
    assert [row["step"] for row in tiny.rows(run / "steps.csv")] == ["1", "2", "3", "4"]
    assert "steps.csv" not in caplog.text


def test_images_that_were_replaced_are_named_at_a_resume(
    stopped: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = stopped(4)
    images = sorted((tmp_path / "phantom/images").iterdir())
    images[0].write_bytes(images[0].read_bytes() + b"\0")
    for number in range(1, 8):
        images[number].write_bytes(images[-1].read_bytes() + bytes(number))
    caplog.clear()
    stopped(5)
    message = f"8 of 96 images have another size, or are gone, since the run began: {images[0].name}"
    assert (
        message in caplog.text and f"{images[4].name} and others. It was" in caplog.text and message in warnings_of(run)
    )


def test_other_conditions_at_resume_are_logged(stopped: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    stopped(3)
    stopped(4)
    assert "other conditions" not in caplog.text
    stopped(5, "train.per_device_batch_size=4")
    (message,) = (record.message for record in caplog.records if "other conditions" in record.message)
    assert message == (
        "resumed under other conditions: images per device and pass 16 before, 4 now. As before: the order of samples, "
        "global batches, augmentation and learning rates. Not as before: sums, which are rounded in another order; "
        "BatchNorm's groups, of 4 images now, 16 before, in 15 layers, conv1.1 to layer4.0.downsample.2 "
        "(train.per_device_batch_size=16 would keep them); BatchNorm's running averages, with which evaluation "
        "computes: rank 0 averages 4 micro-batches an update now, 1 before (a new run with "
        "train.bn_averages=global would not depend on it)"
    )
    caplog.clear()
    overrides = ("train.per_device_batch_size=4", "train.deterministic=true")
    stopped(6, *overrides)
    assert "conditions: train.deterministic False before, True now. As before" in caplog.text
