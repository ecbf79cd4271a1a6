"""Checkpoints are written beside the training: never two at once, no error lost, none half written after a kill."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import disks
import pytest
import tiny
import torch

from distcxr.engine import main as engine_main
from distcxr.engine import saving
from distcxr.engine.checkpoint import newest_checkpoint, open_checkpoint
from distcxr.engine.fit import fit
from distcxr.engine.saver import Saver
from distcxr.exit_codes import ENVIRONMENT
from distcxr.launch import main
from distcxr.runfolder import layout, storage
from distcxr.runfolder.layout import best_folder, checkpoints_of, last_folder, last_folders

CHEAP = ("eval.splits=[]", "eval.every=100ep", "checkpoint.every=1st")


def test_the_next_save_waits_for_the_one_before() -> None:
    saver, order, go = Saver(), list[str](), threading.Event()

    def slow() -> None:
        go.wait(10)
        order.append("first")

    saver.begin(slow)
    assert order == [] and threading.active_count() > 1
    threading.Timer(0.1, go.set).start()
    saver.begin(lambda: order.append("second"))
    assert order[0] == "first"
    saver.wait()
    assert order == ["first", "second"]


def test_an_error_of_the_thread_is_raised_once_at_the_next_chance(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise OSError(errno.EIO, "no")

    saver = Saver()
    saver.raise_error()
    saver.begin(fail)
    with pytest.raises(OSError, match="no"):
        saver.begin(lambda: None)
    saver.raise_error()
    saver.begin(fail)
    saver.close()
    assert "the newest checkpoint was not written: [Errno 5] no" in caplog.text


@pytest.mark.parametrize("ema", ["null", "0.5"])
def test_what_changes_during_the_write_is_not_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: str) -> None:
    """Every tensor and number is of the step at which the save began, and `best` and `last` are the same."""
    tiny.phantom(tmp_path)
    run = tiny.build(tmp_path, *CHEAP, f"train.ema={ema}", f"output={tmp_path / 'run'}", "train.max_steps=4")
    reference = tiny.build(tmp_path, *CHEAP, f"train.ema={ema}", f"output={tmp_path / 'other'}", "train.max_steps=4")
    go, write = threading.Event(), saving._write

    def late(*arguments: Any, **more: Any) -> None:
        assert go.wait(60)
        write(*arguments, **more)

    monkeypatch.setattr(saving, "_write", late)
    saving.begin_save(run, best=True, last=True)
    for group in run.training.optimizer.param_groups:
        group["lr"] = 7.0
    with torch.no_grad():
        for tensor in run.setup.module.state_dict().values():
            tensor.zero_()
    if run.ema is not None:
        run.ema.update(0)
    run.state.step, run.state.notes = 99, ["later"]
    go.set()
    run.saver.wait()
    saving.save_last(reference)
    ours, best, theirs = (
        open_checkpoint(place) for place in (last_folder(run.folder, 0), best_folder(run.folder),
                                             last_folder(reference.folder, 0))
    )  # fmt: skip
    assert ours.meta["crc32"] == best.meta["crc32"] == theirs.meta["crc32"] and ours.step == 0
    assert ours.meta["state"] == theirs.meta["state"] and ours.meta["tables"] == theirs.meta["tables"] != {}


def test_training_continues_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 2 ends while checkpoint 1 is still being written, step 3 not before."""
    tiny.phantom(tmp_path)
    run = tiny.build(tmp_path, *CHEAP, f"output={tmp_path / 'run'}", "train.max_steps=3")
    write, seen = saving._write, list[tuple[str, int]]()

    def slow(snapshot: saving.Snapshot, folder: Path, target: Path, **more: Any) -> None:
        deadline = time.monotonic() + 20
        if target == last_folder(folder, 1):
            while run.state.step < 2 and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.2)
        write(snapshot, folder, target, **more)
        seen.append((target.name, run.state.step))

    monkeypatch.setattr(saving, "_write", slow)
    fit(run)
    assert seen[0] == ("last-00000001", 2)
    assert [name for name, _ in seen if name != "best"] == ["last-00000001", "last-00000002", "last-00000003"]


def test_a_write_that_fails_ends_the_run_at_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.phantom(tmp_path)
    run = tiny.build(
        tmp_path,
        *CHEAP,
        "checkpoint.every=2st",
        f"output={tmp_path / 'run'}",
        "train.epochs=100",
        "train.max_steps=200",
    )
    save = saving.save_file

    def failing(tensors: Any, path: Path, **rest: Any) -> None:
        if path.parent.name == ".last-00000004.part":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        save(tensors, path, **rest)

    monkeypatch.setattr(saving, "save_file", failing)
    with pytest.raises(
        storage.StorageError, match=r"last-00000004 can't be written: Input/output error; 4\.. MB needed"
    ):
        fit(run)
    run.saver.close()
    assert run.state.step <= 6
    assert [path.name for path in checkpoints_of(run.folder).iterdir()] == ["last-00000002"]


def forked(function: Callable[..., None], *arguments: Any) -> int:
    """Run a function in a process of its own, which has imported torch already; its exit code, minus its signal."""
    process = multiprocessing.get_context("forkserver").Process(target=function, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def die_in_the_write(folder: Path, moment: str) -> None:
    def killing(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def wrapped(*arguments: Any, **rest: Any) -> Any:
            if threading.current_thread().name == "checkpoint" and run.state.step >= 3:
                if moment.endswith("after"):
                    function(*arguments, **rest)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **rest)

        setattr(owner, name, wrapped)

    run = tiny.build(folder, *CHEAP, "checkpoint.keep=2", f"output={folder / 'run'}", "train.max_steps=6")
    places = {
        "weights": (saving, "save_file"), "moments": (torch, "save"), "manifest": (layout, "complete_meta"),
        "rename": (layout, "_rename"), "removal": (shutil, "rmtree"),
    }  # fmt: skip
    killing(*places[moment.split()[0]])
    fit(run)


KILLED = ("eval.splits=[]", "eval.every=100ep", "checkpoint.keep=2", "train.max_steps=6")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run that is killed below ends when it is not."""
    folder = tmp_path_factory.mktemp("undisturbed")
    tiny.phantom(folder)
    tiny.train(folder, *KILLED, "checkpoint.every=6st", f"output={folder / 'run'}")
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", ["weights before", "weights after", "moments before", "manifest before", "manifest after",
               "rename before", "rename after", "removal before"]
)  # fmt: skip
def test_a_kill_during_the_write_leaves_a_whole_checkpoint_and_the_run_ends_as_undisturbed(
    tmp_path: Path, undisturbed: Path, moment: str
) -> None:
    tiny.phantom(tmp_path)
    assert forked(die_in_the_write, tmp_path, moment) == -signal.SIGKILL
    newest = newest_checkpoint(tmp_path / "run")
    assert newest is not None and 1 <= newest.step <= 4  # the one being written may be the second
    tiny.train(tmp_path, *KILLED, "checkpoint.every=1st", f"output={tmp_path / 'run'}")
    ends = [open_checkpoint(last_folders(run)[0]) for run in (tmp_path / "run", undisturbed)]
    assert ends[0].step == ends[1].step == 6 and ends[0].meta["crc32"] == ends[1].meta["crc32"]
    assert not list(checkpoints_of(tmp_path / "run").glob(".*"))


def fill_and_launch(log: Path, filler: Path, words: Sequence[str]) -> None:
    write = saving._write

    def filling(snapshot: saving.Snapshot, folder: Path, target: Path, **more: Any) -> None:
        if target.name == "last-00000004" and not filler.exists():
            assert storage.free_bytes(filler.parent) < 30_000_000  # not somebody's own disk
            filler.write_bytes(bytes(storage.free_bytes(filler.parent) - 1_000_000))
        write(snapshot, folder, target, **more)

    saving._write = filling
    os.environ |= {"COLUMNS": "400", "OMP_NUM_THREADS": "1"}
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.exit(main(words))


def launched(folder: Path, filler: Path, *overrides: str) -> tuple[int, str]:
    """A launch that fills the disk of `filler`, if that is not there, before it writes step 4; exit code and stderr."""
    tiny.recipe(folder)
    words = [str(folder / "tiny.yaml"), "eval.splits=[]", "eval.every=100ep", "checkpoint.every=2st"]
    words += [f"data.root={folder / 'phantom'}", *overrides]
    code = forked(fill_and_launch, folder / "stderr.txt", filler, words)
    return code, (folder / "stderr.txt").read_text()


@pytest.mark.slow
def test_a_disk_too_small_for_the_run_ends_it_before_the_first_step(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    with disks.small_disk(tmp_path / "disk", 16 << 10) as disk:
        there = disk / "there"
        there.touch()
        code, error = launched(tmp_path, there, "checkpoint.keep=3", f"output={disk / 'run'}")
        assert code == 3 and not (disk / "run" / "checkpoints").exists(), error
        assert re.search(
            r"the checkpoints of this run do not fit on the disk: 5 of 4\.. MB at once, so 2\d\.. MB more needed, "
            r"1\d\.. MB free\. Free some, lower checkpoint\.keep, or give another output=FOLDER", error
        ), error  # fmt: skip
        assert "Traceback" not in error
        assert launched(tmp_path, there, "checkpoint.keep=1", f"output={disk / 'run'}")[0] == 0


@pytest.mark.slow
def test_a_disk_that_is_full_in_the_middle_costs_no_checkpoint_and_the_same_command_resumes(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    with disks.small_disk(tmp_path / "disk", 20 << 10) as disk:
        run, filler = disk / "run", disk / "somebody-elses"
        command = (filler, "checkpoint.keep=1", f"output={run}", "train.max_steps=8")
        code, error = launched(tmp_path, *command)
        assert code == 3 and "Traceback" not in error, error
        assert re.search(rf"error: {last_folder(run, 4)} does not fit on the disk: 4\.. MB needed, \S+ .B free", error)
        assert [path.name for path in checkpoints_of(run).iterdir()] == ["last-00000002"]
        filler.write_bytes(b"")
        code, error = launched(tmp_path, *command)
        assert code == 0 and "step 2, epoch 0" in error, error
        assert open_checkpoint(last_folder(run, 8)).step == 8


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        ImportError("/lib/pandas/groupby.so: failed to map segment from shared object"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_a_process_without_memory_ends_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def train(*_: object) -> None:
        raise error

    monkeypatch.setattr(engine_main, "train", train)
    monkeypatch.setattr(engine_main, "start_logging", lambda console: None)
    monkeypatch.setattr(engine_main, "start_runtime", tiny.runtime)
    assert engine_main.run(tiny.recipe(tmp_path), "tiny", []) == ENVIRONMENT
    assert "this process's memory is full: raise its limit" in caplog.text and "Traceback" not in caplog.text
