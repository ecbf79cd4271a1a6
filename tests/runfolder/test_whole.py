"""Files are there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from distcxr.runfolder.whole import being_written, write_json, write_whole


def test_text_is_written_byte_for_byte(tmp_path: Path) -> None:
    write_whole(tmp_path / "page.md", "a\r\nb\n\u00e9")
    assert (tmp_path / "page.md").read_bytes() == b"a\r\nb\n\xc3\xa9"
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]


def test_an_error_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    write_json(path, {"auroc": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"auroc": float("nan")})
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\udcff")
    with pytest.raises(KeyboardInterrupt), being_written(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(OSError, match=r"No space left on device: '.*/figures\.json'$"), being_written(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(FileNotFoundError, match=r"/gone/figures\.json'"):
        write_json(tmp_path / "gone" / "figures.json", {})
    assert json.loads(path.read_text()) == {"auroc": 0.5}
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_while_writing_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    write_whole(path, "old")
    code = (
        "import os, pathlib, signal, sys\n"
        "from distcxr.runfolder.whole import being_written\n"
        "with being_written(pathlib.Path(sys.argv[1])) as part:\n"
        "    part.write_text('new')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], timeout=60).returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_the_file_is_flushed_before_and_the_folder_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, order = tmp_path / "steps.csv", []

    def fsync(descriptor: int) -> None:
        order.append((os.readlink(f"/proc/self/fd/{descriptor}"), path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(path, "step\n")
    assert order == [(str(tmp_path / f".steps.csv.{os.getpid()}.part"), False), (str(tmp_path), True)]


def test_a_file_system_that_flushes_no_folders_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(tmp_path / "recipe.yaml", "seed: 0\n")
    assert (tmp_path / "recipe.yaml").read_text() == "seed: 0\n"


def test_a_disk_that_does_not_take_a_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output error"):
        write_whole(tmp_path / "recipe.yaml", "seed: 0\n")
    assert not list(tmp_path.iterdir())
