"""What the page shows of an image: a run's answer for each finding, and pictures. Knows no web library."""

from __future__ import annotations

import base64
import io
import threading
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from distcxr.api import Predictor
from distcxr.data.pixels.decode import decode_grey
from distcxr.data.pixels.image_bytes import read_file
from distcxr.data.sources.image_files import ImageFiles
from distcxr.explain.overlay import overlay
from distcxr.ui.strip import strip

_LEFT_OUT = "left out: "
_one_at_a_time = threading.Lock()
"""Networks work for one visitor after the other: all share the memory and the precision's settings."""


@dataclass(frozen=True)
class Answer:
    """A finding's score of an image in the terms of validation; None is what is not known.

    Attributes:
        threshold: on the scale of `probability`.
        common: how many of validation's images score lower, in words.
        chart: SVG.
    """

    finding: str
    probability: float
    threshold: float | None
    positive: bool | None
    common: str
    chart: str


def one_image(file: Path, name: str, about: dict[str, str] | None = None) -> ImageFiles:
    """An image by its content, whatever its name ends with: a table or a folder is not opened.

    Args:
        about: age, sex and view, for networks that take them.
    """
    images = ImageFiles()
    images.add(name, file, about)
    return images


def answers(predictor: Predictor, images: ImageFiles, rule: str) -> tuple[list[Answer], str]:
    """A run's answers to one image, in the order of its findings, and what is unusual of the image.

    Raises:
        ValueError: the image can't be read; the message is a sentence with its name.
    """
    with _one_at_a_time:
        table = predictor.predict_found(images, rule=rule)
    note = str(table["note"].iloc[0])
    if table["probability"].isna().all():
        raise ValueError(f"{images.names[0]} can't be read: {note.removeprefix(_LEFT_OUT)}")
    num, found = predictor.validation(), []
    for row in table.itertuples():
        threshold = None if np.isnan(row.threshold) else float(row.threshold)
        shares = [
            f"{100 * share:.0f} % of {num[row.finding][target]:,} {target}"
            for share, target in ((row.above_negatives, "negatives"), (row.above_positives, "positives"))
            if not np.isnan(share)
        ]
        chart = strip(*predictor.validation_scores(row.finding), threshold, float(row.probability))
        positive = None if threshold is None else bool(row.positive)
        common = f"above {' and '.join(shares)}" if shares else ""
        found.append(Answer(row.finding, float(row.probability), threshold, positive, common, chart))
    return found, note


def heat_map(predictor: Predictor, images: ImageFiles, finding: str) -> Image.Image:
    """The heat of a finding over one image.

    Raises:
        ValueError: the image can't be read, or a network that Grad-CAM does not know.
    """
    with _one_at_a_time:
        for _, found in predictor.heat_maps(images, [[predictor.findings.index(finding)]]):
            return found.picture
    raise ValueError(f"{images.names[0]} can't be read")


def grey_picture(file: Path, side_px: int) -> Image.Image:
    """An image as it is without heat. Raises ValueError: it can't be read."""
    return Image.fromarray(overlay(decode_grey(read_file(file)[0]), side_px=side_px))


def data_uri(picture: Image.Image) -> str:
    """A picture for `src`, within the page: no address of it is left behind."""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def row_html(answer: Answer) -> str:
    """A finding's row: name and decision, probability beside threshold, chart, words."""
    word = {True: "positive", False: "negative", None: "no threshold"}[answer.positive]
    limit = "" if answer.threshold is None else f"threshold {number(answer.threshold)}"
    return (
        f'<span class="name">{escape(answer.finding.replace("_", " "))}<small class="call">{word}</small></span>'
        f'<span class="prob">{escape(number(answer.probability))}<small>{escape(limit)}</small></span>'
        f"{answer.chart}"
        f'<small class="common">{escape(answer.common)}</small>'
    )


def number(value: float) -> str:
    """A probability in three digits, without the 0 before them; never one that looks certain."""
    if not 0.0005 <= value < 0.9995:
        return "<.001" if value < 0.5 else ">.999"
    return f"{value:.3f}".removeprefix("0")
