"""The page itself, and its server on this machine alone. Imports NiceGUI, so it is imported where it is used."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

from nicegui import app, events, ui
from starlette.middleware.trustedhost import TrustedHostMiddleware

from distcxr.api import NOT_CLINICAL, RULE, Predictor
from distcxr.data.sources.image_files import ImageFiles
from distcxr.ui.answers import answers, data_uri, grey_picture, heat_map, one_image, row_html
from distcxr.ui.error_gallery import ErrorGallery
from distcxr.ui.past_errors import PastErrors
from distcxr.ui.pieces import box, picture, run_choice, show_source

HOST = "127.0.0.1"
_LOOK = Path(__file__).with_name("look.css")
_MOST_BYTES = 200 << 20
_PICTURE_PX = 720
_LEGEND = (
    "Each chart: validation's negatives (grey, above the line) and positives (orange, below), the threshold (dashed) "
    "and this image (blue), from unlikely to likely. Choose a finding to see its heat map."
)


def serve(predictors: dict[str, Predictor], port: int) -> None:
    """Serve the page until it is interrupted.

    Only this machine can open it, and only by its own name: another site's page in the same browser can't, with a name
    that it points here. Images are kept in a private folder that goes with the server.

    Args:
        predictors: one run each, by the name that the page has for it.
    """
    with tempfile.TemporaryDirectory(prefix="distcxr-ui-") as folder:
        past = {name: PastErrors(predictor) for name, predictor in predictors.items()}
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
        ui.run(
            lambda: _page(predictors, past, Path(folder)), host=HOST, port=port, title="distcxr", favicon="🩻",
            show=False, reload=False, tailwind=False, show_welcome_message=False,
        )  # fmt: skip


def _page(predictors: dict[str, Predictor], past: dict[str, PastErrors], folder: Path) -> None:
    ui.add_css(_LOOK)
    kept = Path(tempfile.mkdtemp(dir=folder))
    ui.context.client.on_delete(lambda: shutil.rmtree(kept, ignore_errors=True))
    with box("page"):
        ui.html("<h1>distcxr</h1>", sanitize=False)
        ui.label(NOT_CLINICAL).classes("clinical")
        for name, predictor in predictors.items():
            for sentence in predictor.problems:
                ui.label(f"{name}: {sentence}").classes("problem")
        with ui.tabs().props("dense no-caps align=left outside-arrows mobile-arrows") as tabs:
            one, worst = ui.tab("One X-ray"), ui.tab("Worst errors")
            two = ui.tab("Two runs") if len(predictors) > 1 else None
        with ui.tab_panels(tabs, value=one, animated=False):
            with ui.tab_panel(one):
                _Viewer(predictors, 1, kept)
            with ui.tab_panel(worst):
                gallery = ErrorGallery(past)
            if two is not None:
                with ui.tab_panel(two):
                    _Viewer(predictors, 2, kept)
        tabs.on_value_change(lambda change: gallery.show_once() if change.value == "Worst errors" else None)


class _Viewer:
    """An image, and what a run makes of it, or two of them side by side."""

    def __init__(self, predictors: dict[str, Predictor], num: int, folder: Path) -> None:
        self._predictors, self._folder = predictors, folder
        self._images: ImageFiles | None = None
        self._turn = 0  # what was asked for before the last change is not shown any more
        rules = list(dict.fromkeys(rule for one in predictors.values() for rule in one.rules))
        with box("controls"):
            upload = ui.upload(
                label="Drop an X-ray here, or press +", auto_upload=True, max_file_size=_MOST_BYTES,
                on_upload=self._take,
                on_rejected=self._refuse,
            )  # fmt: skip
            upload.props("flat bordered").classes("upload")
            names = list(predictors)[:num]
            self._choices = [run_choice(list(predictors), name, self.show) for name in names]
            self._rule = ui.select(rules, value=RULE if RULE in rules else None, label="threshold", on_change=self.show)
            self._rule.props("outlined dense")
            self._rule.set_visibility(bool(rules))
        self._message = ui.label().classes("message").props("role=alert")
        self._legend = ui.label(_LEGEND).classes("legend")
        self._legend.set_visibility(False)
        self._columns = box(f"columns of-{num}")

    def _refuse(self) -> None:
        self._message.set_text(f"the file has over {_MOST_BYTES >> 20} MB")

    async def _take(self, event: events.UploadEventArguments) -> None:
        name = Path(event.file.name.replace("\\", "/")).name
        path = Path(tempfile.mkdtemp(dir=self._folder)) / "image"
        await event.file.save(path)
        event.sender.reset()  # type: ignore[attr-defined]  # the list of files sent would grow
        self._images = one_image(path, name)
        await self.show()

    async def show(self) -> None:
        """Show the image anew, with the runs and the rule that are chosen now."""
        if self._images is None:
            return
        self._turn += 1
        turn, images, rule = self._turn, self._images, self._rule.value or RULE
        names = [choice.value for choice in self._choices]
        self._message.classes(remove="wrong").set_text(f"{images.names[0]} …")
        try:
            found = [await asyncio.to_thread(answers, self._predictors[name], images, rule) for name in names]
            grey = data_uri(await asyncio.to_thread(grey_picture, Path(images.files[0]), _PICTURE_PX))
        except ValueError as error:
            if turn == self._turn:
                self._message.set_text(str(error))
                self._message.classes("wrong")
                self._legend.set_visibility(False)
                self._columns.clear()
            return
        if turn != self._turn:
            return
        notes = dict.fromkeys(note for _, note in found if note)
        self._message.set_text("; ".join([images.names[0], *notes]))
        self._columns.clear()
        self._legend.set_visibility(True)
        self._buttons: list[tuple[str, ui.element]] = []
        self._shown: list[tuple[str, ui.element, ui.label]] = []
        with self._columns:
            for name, (rows, _) in zip(names, found, strict=True):
                with box("column"):
                    with box("looked-at"):
                        if len(names) > 1:
                            ui.label(name).classes("run")
                        self._shown.append((name, picture(grey, images.names[0]), ui.label("").classes("caption")))
                    with box("findings"):
                        for row in rows:
                            state = {True: "positive", False: "negative", None: ""}[row.positive]
                            with ui.element("button").classes(f"finding {state}").props("type=button") as button:
                                ui.html(row_html(row), sanitize=False, tag="span").classes("row-html")
                            self._buttons.append((row.finding, button))
                            button.on("click", lambda _, finding=row.finding: self._explain(finding))

    async def _explain(self, finding: str) -> None:
        """A finding's heat map in every column of a run that has it."""
        if self._images is None:
            return
        turn, images = self._turn, self._images
        for of_row, button in self._buttons:
            button.props(f"aria-pressed={str(of_row == finding).lower()}")
        for name, shown, caption in self._shown:
            predictor = self._predictors[name]
            if finding not in predictor.findings:
                caption.set_text(f"{name} has no {finding}")
                continue
            caption.set_text("…")
            try:
                heat = data_uri(await asyncio.to_thread(heat_map, predictor, images, finding))
            except ValueError as error:
                caption.set_text(str(error))
                continue
            if turn == self._turn:
                show_source(shown, heat)
                caption.set_text(f"{finding.replace('_', ' ')}: evidence above the image's own average (Grad-CAM)")
