"""What the launcher was asked for, against what it did; that the recipe wins is tested in real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from distcxr import launcher_flags
from distcxr.launcher_flags import check_asked, config_file, too_many_for_cores


@pytest.mark.parametrize(
    ("command", "world", "refused"),
    [
        ("python3 /venv/bin/accelerate launch --num_processes 2 launch.py a.yaml", None, True),
        ("python3 -m accelerate.commands.launch --num-processes=4 -m distcxr.launch a", None, True),
        ("python3 /venv/bin/accelerate launch --num_processes 1 launch.py a.yaml", None, False),
        ("python3 /venv/bin/accelerate launch launch.py a.yaml --num_processes 2", None, False),
        ("python3 /venv/bin/accelerate launch --multi_gpu --num_processes 2 launch.py a.yaml", "2", False),
        ("bash job.sh --num_processes 2", None, False),
        ("", None, False),
    ],
)
def test_one_process_where_several_were_asked_for(
    monkeypatch: pytest.MonkeyPatch, command: str, world: str | None, refused: bool
) -> None:
    monkeypatch.setattr(launcher_flags, "command_of", lambda _: command.split())
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world:
        monkeypatch.setenv("WORLD_SIZE", world)
    if refused:
        with pytest.raises(ValueError, match=r"started one process: add --multi_gpu .*--processes [24]`"):
            check_asked()
    else:
        check_asked()


def test_ranks_that_share_cores_name_the_file_that_asked_for_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert too_many_for_cores(2, 2) is None and config_file() is None
    assert too_many_for_cores(8, 1) == "8 processes share 1 core: --num_processes 1 is faster"
    config = tmp_path / "accelerate" / "default_config.yaml"
    config.parent.mkdir()
    config.touch()
    assert (
        too_many_for_cores(8, 2)
        == f"8 processes share 2 cores ({config} may name that number): --num_processes 2 is faster"
    )
