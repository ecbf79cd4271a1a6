"""A page as one self-contained HTML file: no network, no fonts, a few lines of script that it can do without."""

from __future__ import annotations

from importlib.resources import files

from distcxr.report.blocks import Page


def to_html(page: Page) -> str:
    """The page. Everything in it is escaped but our own drawings (`Cell.svg`, `Chart.svg`)."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("distcxr.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined,
    )  # fmt: skip
    environment.tests["of_kind"] = lambda block, kind: type(block).__name__ == kind
    style = (files("distcxr.report") / "templates" / "page.css").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(page=page, style=style)
