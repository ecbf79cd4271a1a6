"""Reading a report page back."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from distcxr.report.page import write_report


class Parsed(HTMLParser):
    """Elements, the text of those with `data-at`, tables by rows, and all words."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.figures: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self.words = ""
        self._at: str | None = None
        self._in: str | None = None
        self._in_cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        held = dict(attrs)
        self.elements.append((tag, held))
        self._at = held.get("data-at") if tag == "span" else None
        self._in = tag if tag in ("style", "script") else None
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._at = self._in = None
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in is None:
            self.words += data
        if self._at is not None:
            self.figures.append((self._at, data))
        if self._in_cell:
            self.rows[-1][-1] += data


def made(folder: Path) -> tuple[Parsed, str, dict[str, Any]]:
    page = write_report(folder)
    assert page == folder / "report.html"
    content = json.loads((folder / "report.json").read_text(), parse_constant=pytest.fail)
    return Parsed(page.read_text(encoding="utf-8")), (folder / "report.md").read_text(encoding="utf-8"), content


def edit(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def resolve(content: Any, pointer: str) -> Any:
    for step in pointer.split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        content = content[int(step) if isinstance(content, list) else step]
    return content
