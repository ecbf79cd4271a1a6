"""`recipes/launch/`: Accelerate takes the files, and they start worlds of the sizes in them; here without GPUs."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "recipes" / "launch").glob("*.yaml"))
SAYS_ITS_WORLD = """
import torch
from distcxr.recipe import load_recipe
from distcxr.runtime import start_runtime

runtime = start_runtime(load_recipe("{recipe}", ["train.precision=no"]))
total = runtime.sum_over_ranks(torch.ones(1))
print(f"rank {{runtime.rank}} of {{runtime.world_size}} on {{runtime.local_world_size}}: {{total.item():g}}")
runtime.close()
"""


def launchers(path: Path) -> list[str]:
    """The commands that a file opens with, continued lines joined."""
    texts = "\n".join(line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#"))
    return re.findall(r"accelerate launch .*?data\.root=\S+", texts.replace("\\\n", " "))


def test_there_is_one_for_a_server_and_one_for_two_machines() -> None:
    assert [path.stem for path in FILES] == ["one_server_4gpu", "two_machines"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_commands_start_four_gpus_of_each_machine(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    machines = 2 if path.stem == "two_machines" else 1
    assert load_config_from_file(str(path)).num_machines == machines
    commands = launchers(path)
    assert len(commands) == machines
    for rank, command in enumerate(commands):
        args, _, _ = _validate_launch_command(launch_command_parser().parse_args(command.split()[2:]))
        assert args.multi_gpu and not args.cpu
        assert (args.num_processes, args.num_machines, int(args.machine_rank)) == (4 * machines, machines, rank)
        assert args.mixed_precision == "no" and not args.use_deepspeed and not args.use_fsdp
        assert args.training_script == "launch.py" and args.training_script_args[0] == "recipes/densenet121.yaml"
        assert machines == 1 or args.main_process_ip == "10.0.0.1"


def start(path: Path, script: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(path), *arguments, str(script)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, env=environment, text=True, **pipes)  # type: ignore[call-overload]


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_process_joins_one_world(path: Path, tmp_path: Path) -> None:
    script = tmp_path / "world.py"
    script.write_text(SAYS_ITS_WORLD.format(recipe=ROOT / "recipes" / "quickstart.yaml"))
    if path.stem == "one_server_4gpu":
        started = [start(path, script, "--num_processes", "2")]
    else:  # two launchers of one process each stand in for the machines
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        where = ("--main_process_ip", "127.0.0.1", "--main_process_port", port, "--num_processes", "2")
        started = [start(path, script, *where, "--machine_rank", str(rank)) for rank in range(2)]
    texts = [one.communicate(timeout=180)[0] for one in started]
    assert [one.returncode for one in started] == [0] * len(started), texts
    local = 3 - len(started)
    lines = sorted(re.findall(r"rank \d of \d on \d: \d", "\n".join(texts)))  # two processes may write into one line
    assert lines == [f"rank {rank} of 2 on {local}: 2" for rank in range(2)], texts
