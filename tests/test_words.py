"""Words that code, messages and documents don't use: CONTRIBUTING.md names the standard terms."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORDS = re.compile(r"\b(said|says|told|judge|judged|judges|whose|lane|goes on)\b", re.IGNORECASE)
SUFFIXES = (".py", ".md", ".yaml", ".cu")
CHECKED = ("*.md", "docs/*", "recipes/**/*", "distcxr/**/*", "benchmarks/**/*")  # fmt: skip
ALLOWED = {
    ("distcxr/data/pixels/kernels.py", "lane"),  # of a vector register
    ("distcxr/data/pixels/cuda/kernels.cu", "lane"),  # of a warp
    ("distcxr/cli/score.py", "said"),  # a key of the JSON, which stays
}


def _unusual(file: Path) -> list[str]:
    """`path:line: text` of each line with such a word."""
    name = file.relative_to(ROOT).as_posix()
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        words = {match[1].lower() for match in WORDS.finditer(line)}
        if any((name, word) not in ALLOWED for word in words):
            found.append(f"{name}:{number}: {line.strip()}")
    return found


@pytest.mark.parametrize("pattern", CHECKED)
def test_standard_terms(pattern: str) -> None:
    files = [file for file in sorted(ROOT.glob(pattern)) if file.suffix in SUFFIXES]
    assert files, f"{pattern} finds no file"
    assert [line for file in files for line in _unusual(file)] == []


@pytest.mark.parametrize("name", sorted({name for name, _ in ALLOWED}))
def test_exceptions_are_needed(name: str) -> None:
    words = {match[1].lower() for match in WORDS.finditer((ROOT / name).read_text())}
    assert {(name, word) for word in words} == {entry for entry in ALLOWED if entry[0] == name}
