"""Tables on the terminal and in `log.txt`, laid out by rich as plain text."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

LOG_WIDTH = 71
"""Columns of a table in a log: 80 less the time of day that the terminal's log puts before it."""
_UNBOUNDED = 10_000


def table_text(rows: Sequence[Sequence[str]], width: int | None = LOG_WIDTH, num_text: int = 1) -> str:
    """Rows of cells as aligned lines, the first row the titles; without colours, boxes and blanks at the ends of lines.

    The first `num_text` columns and those without a title are text: to the left, and folded where the table would
    be too wide. The others are figures: to the right, and whole.

    Args:
        width: most columns of the terminal; None for as many as it takes.
    """
    titles, *body = rows
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for number, title in enumerate(titles):
        is_text = number < num_text or not title
        table.add_column(
            Text(title), justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold",
        )  # fmt: skip
    for row in body:
        table.add_row(*map(Text, row))
    # As Text objects, finding names are not read as markup; without a colour system, files get no escape codes.
    text = io.StringIO()
    Console(file=text, width=width or _UNBOUNDED, color_system=None, legacy_windows=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
