"""The tab of a run's worst errors: their images, each with its heat map on a click."""

from __future__ import annotations

import asyncio
from pathlib import Path

from nicegui import ui

from distcxr.api import RULE
from distcxr.ui.answers import data_uri, grey_picture, heat_map, number
from distcxr.ui.past_errors import SPLITS, PastError, PastErrors
from distcxr.ui.pieces import box, picture, run_choice, show_source

_NUM = 8
_PICTURE_PX = 320
_HEADINGS = {False: "False positives, the most confident first", True: "Missed positives, the most confident first"}


class ErrorGallery:
    """Errors of one run, split, finding and threshold."""

    def __init__(self, past: dict[str, PastErrors]) -> None:
        self._past, self._turn = past, 0
        first = next(iter(past.values())).predictor
        with box("controls"):
            self._run = run_choice(list(past), next(iter(past)), self._of_another_run)
            self._split = ui.select(list(SPLITS), value=SPLITS[0], label="split", on_change=self.show)
            self._finding = ui.select(
                list(first.findings), value=first.findings[0], label="finding", on_change=self.show
            )
            rule = RULE if RULE in first.rules else None
            self._rule = ui.select(list(first.rules), value=rule, label="threshold", on_change=self.show)
            self._rule.set_visibility(bool(first.rules))
            for select in (self._split, self._finding, self._rule):
                select.props("outlined dense")
        self._message = ui.label().classes("message").props("role=alert")
        self._body = box("errors")

    async def show_once(self) -> None:
        """Show it when it is first looked at: reading predictions and labels takes a moment."""
        if not self._turn:
            await self.show()

    async def _of_another_run(self) -> None:
        findings = list(self._past[self._run.value].predictor.findings)
        if list(self._finding.options) != findings:
            self._finding.set_options(findings, value=findings[0])
        await self.show()

    async def show(self) -> None:
        """Show what is chosen now."""
        self._turn += 1
        turn, past, finding = self._turn, self._past[self._run.value], self._finding.value
        self._message.set_text("…")
        try:
            found = await asyncio.to_thread(past.worst, self._split.value, finding, self._rule.value or RULE, _NUM)
            pictures, problem = await asyncio.to_thread(_pictures, past, found)
        except ValueError as error:
            if turn == self._turn:
                self._message.set_text(str(error))
                self._body.clear()
            return
        if turn != self._turn:
            return
        self._message.set_text(problem)
        self._body.clear()
        with self._body:
            for missed, heading in _HEADINGS.items():
                ui.html(f"<h2>{heading}</h2>", sanitize=False)
                of_kind = [(one, source) for one, source in zip(found, pictures, strict=True) if one.missed is missed]
                if not of_kind:
                    ui.label("none").classes("legend")
                with box("cards"):
                    for one, source in of_kind:
                        self._card(past, one, source, finding)

    def _card(self, past: PastErrors, one: PastError, source: str | None, finding: str) -> None:
        labels = ", ".join(one.labels).replace("_", " ") or "no finding"
        with ui.element("button").classes("card").props("type=button") as button:
            shown = None if source is None else picture(source, one.file)
            ui.label(f"probability {number(one.probability)}").classes("prob")
            ui.label(f"labelled {labels}").classes("caption")
            caption = ui.label(one.file).classes("caption file")

        async def explain() -> None:
            if shown is None:
                return
            caption.set_text("…")
            try:
                heat = await asyncio.to_thread(lambda: heat_map(past.predictor, past.image(one.file), finding))
            except ValueError as error:
                caption.set_text(str(error))
                return
            show_source(shown, data_uri(heat))
            caption.set_text(one.file)

        button.on("click", explain)


def _pictures(past: PastErrors, found: list[PastError]) -> tuple[list[str | None], str]:
    """For each error its image, None where it is not at hand; and the reason why some are not."""
    sources: list[str | None] = []
    problem = ""
    for one in found:
        try:
            sources.append(data_uri(grey_picture(Path(past.image(one.file).files[0]), _PICTURE_PX)))
        except ValueError as error:
            sources.append(None)
            problem = problem or f"not every image is at hand: {error}"
    return sources, problem
