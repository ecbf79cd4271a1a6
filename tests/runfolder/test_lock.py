"""One process trains into a run folder, and a kill gives it free."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from distcxr.runfolder.lock import claim, is_claimed_elsewhere, make_writable

HOLDER = (
    "import sys, pathlib; from distcxr.runfolder.lock import claim; claim(pathlib.Path(sys.argv[1])); "
    "print('held', flush=True); sys.stdin.read()"
)


def test_a_folder_is_free_again_after_a_kill(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        assert is_claimed_elsewhere(tmp_path)
        with pytest.raises(ValueError, match=rf"another run is writing to {tmp_path} \(process {other.pid} on"):
            claim(tmp_path)
        other.send_signal(signal.SIGKILL)
    assert not is_claimed_elsewhere(tmp_path)
    claim(tmp_path)
    claim(tmp_path)  # its own
    assert not is_claimed_elsewhere(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    make_writable(tmp_path / "runs" / "a")
    assert not list((tmp_path / "runs" / "a").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=rf"{tmp_path}/file/run can't be written: Not a directory. Choose another"):
        make_writable(tmp_path / "file" / "run")
