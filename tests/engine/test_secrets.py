"""What is secret in the environment is in no file of a run, and nothing of a run listens to other machines."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny

from distcxr.engine import folder as run_folder
from distcxr.runfolder.contents import read_environment
from distcxr.tracking import services
from distcxr.tracking.services import Services

ROOT = Path(__file__).parents[2]
SECRETS = {
    "WANDB_API_KEY": "5ec1e7a1b2c3d4e5f60718293a4b5c6d7e8f9012",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "AWS_SESSION_TOKEN": "aws-session-5ec1e7",
    "HF_TOKEN": "hf_5ec1e75ec1e75ec1e7",
    "MLFLOW_TRACKING_URI": "https://user:mlflow-5ec1e7@tracking.example",
    "MLFLOW_TRACKING_PASSWORD": "mlflow-password-5ec1e7",
    "SOME_PASSWORD": "plain-5ec1e7",
}


class _Kept:
    """A tracker that keeps what it is sent."""

    run_id = "1"
    sent: tuple[Any, ...] = ()

    def __init__(self, *arguments: Any) -> None:
        type(self).sent += arguments

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: setattr(type(self), "sent", (*type(self).sent, *arguments))


def test_no_secret_of_the_environment_is_in_a_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    address = "https://someone:ghp_5ec1e75ec1e7@github.com/someone/fork.git"
    monkeypatch.setattr(sys, "argv", ["distcxr", "train", f"output={address}", "https://host/a@b"])
    monkeypatch.setitem(services._SERVICES, "wandb", _Kept)
    monkeypatch.setattr(services, "check_installed", lambda _: None)
    tiny.phantom(tmp_path)
    output = tmp_path / "run"
    tiny.train(
        tmp_path,
        f"output={output}",
        "train.epochs=1",
        "eval.pictures=0",
        "eval.replicates=2",
        "logging.trackers=[wandb]",
    )
    assert read_environment(output / "environment.json")["command"][2:] == [
        "output=https://***@github.com/someone/fork.git", "https://host/a@b",
    ]  # fmt: skip
    secrets = [*SECRETS.values(), "mlflow-5ec1e7", "ghp_5ec1e75ec1e7"]
    files = [path for path in output.rglob("*") if path.is_file()]
    assert len(files) > 10 and len(_Kept.sent) > 10
    for path in files:
        data = path.read_bytes()
        assert not [secret for secret in secrets if secret.encode() in data], path
    assert not [secret for secret in secrets if secret in repr(_Kept.sent)]
    assert Services


def test_the_commit_names_no_remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clone's address may hold a token."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    for words in (
        ("init", "-q"), ("remote", "add", "origin", "https://user:5ec1e7@host/x.git"),
        ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x"),
    ):  # fmt: skip
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    monkeypatch.setattr(run_folder, "__file__", str(tmp_path / "a" / "b" / "folder.py"))
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?", run_folder._commit() or "")


def test_nothing_listens_to_other_machines() -> None:
    """The servers are the launcher's store and `distcxr ui`, of this machine alone; on several machines ranks find each
    other at the address that accelerate's launcher sets."""
    servers = r"(?<!signature\(function\))\.bind\(.*|\.listen\(|HTTPServer|socketserver|0\.0\.0\.0|create_server.*"
    servers += r"|\bHOST = .*|\bhost=[A-Z]\w+"
    found = {path.name: lines for path in sorted((ROOT / "distcxr").rglob("*.py"))
             if (lines := re.findall(servers, path.read_text()))}  # fmt: skip
    assert found == {
        "launcher.py": ['create_server(("127.0.0.1", 0)) as store:'],
        "server.py": ['HOST = "127.0.0.1"', "host=HOST"],
        "ui.py": ['.bind(("127.0.0.1", port))'],
    }
