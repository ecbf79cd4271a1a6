"""steps.csv and history.csv as a run leaves them, a killed one and one that is being written, too."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest

from distcxr.runfolder import history


def step_row(step: int) -> dict[str, Any]:
    return {
        "step": step, "epoch": 0, "loss": 0.1 + 0.2, "lr": 1e-4, "img_per_s": 10.0 * step, "data_wait_pct": 0.0,
        "memory_mb": 1.0,
    }  # fmt: skip


def history_row(epoch: int, val_auroc: float | None) -> dict[str, Any]:
    return dict.fromkeys(history.HISTORY_COLUMNS, 1.0) | {"epoch": epoch, "val_auroc": val_auroc}


def test_rows_that_do_not_fit_leave_no_part_of_themselves(tmp_path: Path) -> None:
    history.rewind_steps(tmp_path, 0)
    history.append_steps(tmp_path, [step_row(1)])
    before = (tmp_path / "steps.csv").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            history.append_steps(tmp_path, [step_row(2)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "steps.csv").read_bytes() == before


def test_a_resumed_run_writes_the_rows_after_its_checkpoint_again(tmp_path: Path) -> None:
    history.rewind_steps(tmp_path, 0)
    history.append_steps(tmp_path, map(step_row, (1, 2, 3)))
    with (tmp_path / "steps.csv").open("a") as file:
        file.write("4,0,0.3")  # a kill
    history.rewind_steps(tmp_path, 2)
    history.append_steps(tmp_path, [step_row(3)])
    lines = (tmp_path / "steps.csv").read_text().splitlines()
    assert lines[0] == "step,epoch,loss,lr,img_per_s,data_wait_pct,memory_mb"
    assert lines[1] == "1,0,0.30000000000000004,0.0001,10.0,0.0,1.0"
    assert history.read_columns(tmp_path / "steps.csv")["step"] == [1, 2, 3]


def test_the_newest_step_is_the_last_whole_row(tmp_path: Path) -> None:
    assert history.newest_step(tmp_path) is None
    history.rewind_steps(tmp_path, 0)
    assert history.newest_step(tmp_path) is None
    history.append_steps(tmp_path, map(step_row, range(1, 3001)))  # more than is read of its end
    with (tmp_path / "steps.csv").open("a") as file:
        file.write("3001,0,0.3")
    newest = history.newest_step(tmp_path)
    assert newest is not None and newest["step"] == "3000" and float(newest["img_per_s"]) == 30_000


def test_the_best_validation_of_epochs_that_have_one(tmp_path: Path) -> None:
    assert history.best_auroc(tmp_path) is None
    history.write_history(tmp_path, [history_row(0, None)])
    assert history.best_auroc(tmp_path) is None
    history.write_history(tmp_path, [history_row(0, None), history_row(1, 0.75), history_row(2, 0.5)])
    assert history.best_auroc(tmp_path) == 0.75
    assert history.read_columns(tmp_path / "history.csv")["val_auroc"] == [None, 0.75, 0.5]
    (tmp_path / "history.csv").write_text("epoch,val_auroc\n0,high\n")
    assert history.best_auroc(tmp_path) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"step,loss\n1,0.5\n2\n", "line 3: 1 cells where the header has 2"),
        (b"step,loss\n1,low\n", "column loss, line 2: 'low' is not a number"),
        (b"\xff\xfe", "UTF-16: save it as UTF-8"),
        (None, "can't be read: No such file"),
    ],
)
def test_a_damaged_table_is_an_error_that_names_file_row_and_column(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "steps.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        history.read_columns(tmp_path / "steps.csv")
    assert str(tmp_path / "steps.csv") in str(raised.value)


def test_what_is_not_finite_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "steps.csv").write_text("step,loss\n1,nan\n2,inf\n3,\n")
    assert history.read_columns(tmp_path / "steps.csv") == {"step": [1, 2, 3], "loss": [None, None, None]}
