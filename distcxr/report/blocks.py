"""What a page is made of, before it is HTML or markdown: sections of texts, tables, charts and pictures.

A figure is a `Part` that knows its path in report.json, so that what is printed can be compared with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DASH = "–"

KeyPath = Sequence[str | int]  # into report.json

_NO_REASON = "the reason is not in this run's files: an older version scored it"
_REASONS = {
    **dict.fromkeys(("auroc", "difference", "pointing", "iou"), ("reason",)),
    **dict.fromkeys(("calibration_slope", "calibration_intercept", "observed_expected", "brier_skill"),
                    ("recalibration_reason",)),
    **dict.fromkeys(("recall", "precision", "specificity", "npv", "accuracy", "f1"), ("rate_reason", "reason")),
}  # fmt: skip
"""Keys that hold the reasons of several figures at once, beside `FIGURE_reason`."""


@dataclass(frozen=True)
class Part:
    """A piece of text; `at` is the JSON pointer (RFC 6901) into report.json of the figure that it prints, `href` a
    section of the page (`#name`) or a page beside it, as a path with / that is not escaped yet."""

    text: str
    at: str | None = None
    href: str | None = None


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    parts: tuple[Part, ...]
    svg: str | None = None
    """A small drawing of the same figures; markdown leaves it out."""
    is_number: bool = False
    aside: tuple[Part, ...] = ()
    """What goes below the figure in small print, its interval; markdown puts it in brackets."""
    note: str | None = None
    """Why a figure or its interval is missing: a footnote of the table."""


Column = tuple[str, Sequence[Cell]]  # with its title


@dataclass(frozen=True)
class Text:
    """A paragraph; `kind` is `plain`, `small`, `warning` or `heading`."""

    parts: tuple[Part, ...]
    kind: str = "plain"


@dataclass(frozen=True)
class Table:
    """Rows under named columns; the rows in `strong` stand out. The first column names the row."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    strong: frozenset[int] = frozenset()
    sortable: bool = False

    @property
    def marks(self) -> dict[str, str]:
        """Notes of its cells, in their order, with a mark each: a, b, ... z, aa."""
        notes = dict.fromkeys(cell.note for row in self.rows for cell in row if cell.note)
        return {note: _mark(number) for number, note in enumerate(notes)}


@dataclass(frozen=True)
class Chart:
    """An SVG drawing with its title and what to know of it."""

    title: str
    caption: tuple[Part, ...]
    svg: str


@dataclass(frozen=True)
class Charts:
    """Charts side by side; `wide` ones have curves over time."""

    charts: tuple[Chart, ...]
    wide: bool = False


@dataclass(frozen=True)
class Picture:
    """An image and its heat map, as data URIs for the page and as paths from the run folder."""

    title: str
    caption: tuple[Part, ...]
    uris: tuple[str, ...]
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side."""

    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Code:
    """Text as it was written."""

    text: str


@dataclass(frozen=True)
class Fold:
    """Blocks behind their title, to be opened; open on paper."""

    title: str
    blocks: tuple[Block, ...]
    is_open: bool = False


Block = Text | Table | Charts | Pictures | Code | Fold


@dataclass(frozen=True)
class Section:
    """A chapter; `name` is its anchor and its name in the table of contents is `title`."""

    name: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    """A whole report."""

    title: str
    origin: str
    """Which run it is about."""
    result: tuple[Part, ...]
    tiles: tuple[tuple[str, Cell], ...]
    """The figures to see first, each with its name."""
    warnings: tuple[str, ...]
    sections: tuple[Section, ...]
    stem: str = "report"
    """Name of its files without the ending."""


class Content:
    """report.json as it grows, and figures read from it for printing."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def get(self, *path: str | int) -> Any:
        """What is at the path; None where nothing is."""
        here: Any = self.values
        for step in path:
            try:
                here = here[step]
            except (KeyError, IndexError, TypeError):
                return None
        return here

    def figure(self, *path: str | int, form: str = ".3f") -> Part:
        """The number at the path in a format of `format()`; a dash where it is undefined.

        Raises TypeError: something else than a number is there.
        """
        value = self.get(*path)
        if value is None:
            return Part(DASH)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise TypeError(f"{pointer(path)} is {value!r}, not a number")
        return Part(format(value, form), pointer(path))

    def number(self, *path: str | int, form: str = ".3f") -> Cell:
        """A cell with one number."""
        return Cell((self.figure(*path, form=form),), is_number=True)

    def interval(self, *path: str | int, form: str = ".3f", why: str | None = None) -> Cell:
        """A cell with `low–high` of the figure at the path, `low to high` from below 0; where it has none a dash, with
        the reason, or with `why`."""
        *before, last = path
        if self.get(*before, f"{last}_low") is None or self.get(*before, f"{last}_high") is None:
            return Cell((Part(DASH),), is_number=True, note=why or self.reason(*path))
        low = self.figure(*before, f"{last}_low", form=form)
        high = self.figure(*before, f"{last}_high", form=form)
        return Cell((low, Part(" to " if low.text[0] in "-+" else "–"), high), is_number=True)

    def with_interval(self, *path: str | int, form: str = ".2f", why: str | None = None) -> Cell:
        """A figure with its interval below; two decimals, because tables of these are wide. `why` as for `interval`."""
        interval = self.interval(*path, form=form, why=why)
        aside = interval.parts if interval.note is None else ()
        return Cell((self.figure(*path, form=form),), is_number=True, aside=aside, note=interval.note)

    def reason(self, *path: str | int) -> str:
        """Why there is no interval, or no figure, at the path."""
        *before, last = path
        for key in (f"{last}_reason", *_REASONS.get(str(last), ())):
            if text := self.get(*before, key):
                return str(text)
        return _NO_REASON

    def numbers(self, paths: Iterable[KeyPath], *keys: str | int, form: str = ".3f") -> list[Cell]:
        """A column: the number that each path has under `keys`."""
        return [self.number(*path, *keys, form=form) for path in paths]

    def intervals(self, paths: Iterable[KeyPath], *keys: str | int, form: str = ".3f") -> list[Cell]:
        """A column: the interval of the figure that each path has under `keys`."""
        return [self.interval(*path, *keys, form=form) for path in paths]


def pointer(path: KeyPath) -> str:
    """The JSON pointer of a path."""
    return "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in path)


def _mark(number: int) -> str:
    before, last = divmod(number, 26)
    return (_mark(before - 1) if before else "") + chr(ord("a") + last)


def table(*columns: Column, strong: Iterable[int] = (), sortable: bool = False) -> Table:
    """A table of columns of the same length; the first names the rows."""
    titles, cells = zip(*columns, strict=True)
    return Table(titles, tuple(zip(*cells, strict=True)), frozenset(strong), sortable)


def notes(texts: Iterable[str | None]) -> list[Column]:
    """A column of notes, or none where no row has one."""
    listed = [text or "" for text in texts]
    return [("note", column(listed))] if any(listed) else []


def column(texts: Iterable[object]) -> list[Cell]:
    """A column of plain words."""
    return [words(text) for text in texts]


def words(text: object) -> Cell:
    """A cell of plain words."""
    return Cell((Part(str(text)),))


def paragraph(*parts: str | Part, kind: str = "plain") -> Text:
    """A paragraph of words and figures."""
    return Text(tuple(Part(part) if isinstance(part, str) else part for part in parts), kind)


def readable(name: str) -> str:
    """A finding or an attribute as people write it."""
    return name.replace("_", " ")
