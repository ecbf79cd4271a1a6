"""The audit of dependencies fails where a vulnerability is known, and does not pass for one where nothing was asked."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

_CLEAN = {"name": "pillow", "version": "13.0.0", "vulns": []}
_BAD = {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}
_UNKNOWN = {"name": "torch", "skip_reason": "not found on PyPI"}


@pytest.fixture
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", Path(__file__).parents[1] / ".ci" / "audit.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("stdout", "code", "words"),
    [
        (json.dumps({"dependencies": [_CLEAN, _UNKNOWN]}), 0, "1 packages audited, 0 known"),
        (json.dumps({"dependencies": [_CLEAN, _BAD]}), 1, "a 1: PYSEC-1, fixed in ['2']"),
        (json.dumps({"dependencies": [_UNKNOWN]}), 0, "NOT AUDITED"),
        ("", 0, "NOT AUDITED"),
    ],
)
def test_what_is_not_known_is_not_called_safe(
    audit: Any, stdout: str, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = subprocess.CompletedProcess("pip-audit", 1, stdout, "ERROR: no network")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    monkeypatch.delenv("DISTCXR_AUDIT", raising=False)
    assert audit.main() == code
    assert words in capsys.readouterr().out
    monkeypatch.setenv("DISTCXR_AUDIT", "required")
    assert audit.main() == max(code, int(words == "NOT AUDITED"))
