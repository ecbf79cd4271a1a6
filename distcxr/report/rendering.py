"""A page as one HTML file that needs nothing else, and as markdown, which leaves its charts to the other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from urllib.parse import quote

from distcxr.report.blocks import Block, Cell, Charts, Code, Fold, Page, Part, Pictures, Section, Table, Text

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&!$])")


def to_html(page: Page) -> str:
    """The page. Everything in it is escaped but our own drawings (`Cell.svg`, `Chart.svg`)."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("distcxr.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined,
    )  # fmt: skip
    environment.filters["link"] = _link
    environment.tests["of_kind"] = lambda block, kind: type(block).__name__ == kind
    style = (files("distcxr.report") / "templates" / "page.css").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(page=page, style=style)


def to_markdown(page: Page) -> str:
    """GitHub's markdown. What users wrote (names of files, the recipe) can't become markup or a table's edge."""
    lines = [f"# {_escaped(page.title)}", "", f"**{_words(page.result)}**", "", f"Made of {_escaped(page.origin)}.", ""]
    lines += [line for warning in page.warnings for line in (f"> **Note.** {_escaped(warning)}", "")]
    return "\n".join([*lines, sections_to_markdown(page.sections)])


def sections_to_markdown(sections: Iterable[Section]) -> str:
    """Sections under headings of their own, without a page's beginning."""
    lines = []
    for section in sections:
        lines += [f"## {_escaped(section.title)}", ""]
        lines += [line for block in section.blocks for line in _block(block)]
    return "\n".join(lines).rstrip() + "\n"


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Text):
        yield from (f"### {_words(block.parts)}" if block.kind == "heading" else _words(block.parts), "")
    elif isinstance(block, Table):
        yield from _table(block)
    elif isinstance(block, Charts):
        titles = ", ".join(_escaped(chart.title) for chart in block.charts)
        yield from (f"*Drawn on the HTML page: {titles}.*", "")
    elif isinstance(block, Pictures):
        for picture in block.pictures:
            links = " ".join(f"![{_escaped(picture.title)}](<{quote(path)}>)" for path in picture.paths)
            yield from (links, "", f"{_escaped(picture.title)}: {_words(picture.caption)}", "")
    elif isinstance(block, Code):
        fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", block.text)), default=0))
        yield from (f"{fence}yaml", block.text.rstrip(), fence, "")
    else:
        assert isinstance(block, Fold)
        yield from (f"### {_escaped(block.title)}", "")
        for inner in block.blocks:
            yield from _block(inner)


def _table(table: Table) -> Iterator[str]:
    """Columns that only draw are left out."""
    drawn = {position for row in table.rows for position, cell in enumerate(row) if cell.svg}
    positions = [position for position in range(len(table.columns)) if position not in drawn]
    numbers = {position for row in table.rows for position, cell in enumerate(row) if cell.is_number}
    yield _row(_escaped(table.columns[position]) for position in positions)
    yield _row("--:" if position in numbers else "---" for position in positions)
    for number, row in enumerate(table.rows):
        cells = [_cell(row[position], table.marks) for position in positions]
        yield _row(f"**{cell}**" if cell and number in table.strong else cell for cell in cells)
    yield ""
    if table.marks:
        yield from ("; ".join(f"({mark}) {_escaped(note)}" for note, mark in table.marks.items()) + ".", "")


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell, marks: Mapping[str, str]) -> str:
    mark = f" ({marks[cell.note]})" if cell.note else ""
    return _words(cell.parts) + mark + (f" ({_words(cell.aside)})" if cell.aside else "")


def _words(parts: Iterable[Part]) -> str:
    return "".join(
        # Links within a page are left to HTML: how a renderer of markdown names its headings differs.
        f"[{_escaped(part.text)}](<{_link(part.href)}>)" if part.href and part.href[0] != "#" else _escaped(part.text)
        for part in parts
    )


def _link(href: str) -> str:
    """As a URL; a colon within would make a path a scheme."""
    return href if href.startswith("#") else quote(href, safe="/")


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", " ".join(text.split("\n")).replace("\r", " "))
