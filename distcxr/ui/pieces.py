"""Parts of the page that its tabs share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from nicegui import ui


def box(classes: str) -> ui.element:
    """A `div` of the style sheet."""
    return ui.element("div").classes(classes)


def picture(source: str, words: str) -> ui.element:
    """An image that is in the page itself."""
    element = ui.element("img").classes("picture")
    element.props["alt"] = words
    return show_source(element, source)


def show_source(element: ui.element, source: str) -> ui.element:
    """Show another image in its place."""
    element.props["src"] = source
    element.update()
    return element


def run_choice(names: Sequence[str], chosen: str, changed: Callable[[], Awaitable[None]]) -> ui.select:
    """A list of runs; hidden where there is no choice."""
    select = ui.select(list(names), value=chosen, label="run", on_change=changed).props("outlined dense")
    select.set_visibility(len(names) > 1)
    return select
