"""What is unusual of a DICOM for a chest X-ray by its tags: sentences for the person who asked about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from distcxr.data.pixels.dicom import has_window, read_tags

if TYPE_CHECKING:
    from pydicom import Dataset

_XRAY = {"CR", "DX", "DR", "RG", "OT"}  # OT, other, is what digitised films and exports often have
_CHEST = ("CHEST", "THORA", "TORAX", "TORAC", "LUNG", "CXR")
_VIEWS = {
    "LATERAL": "a lateral view", "LAT": "a lateral view", "LL": "a lateral view", "RL": "a lateral view",
    "LLD": "a view of a patient lying on the side", "RLD": "a view of a patient lying on the side",
    "LLO": "an oblique view", "RLO": "an oblique view",
}  # fmt: skip
"""By View Position, in capitals; PA and AP are not unusual."""
_NOT_SQUARE = 1.02


def dicom_remarks(data: bytes) -> list[str]:
    """Sentences about a DICOM that can be read; none for a frontal chest X-ray with one window or VOI LUT."""
    found = []
    try:
        tags = read_tags(data)
        for sentences in (_what_it_shows(tags), _how_it_is_shown(tags)):
            for sentence in sentences:  # one by one: those before a broken tag are kept
                found.append(sentence)
    except Exception:  # pydicom parses a tag when it is asked for; the pixels could be read
        found.append("some of its tags can't be parsed")
    return found


def _text(tags: Dataset, keyword: str) -> str:
    value = tags.get(keyword)
    return "" if value is None else str(value).strip().upper()[:60]


def _meaning(tags: Dataset, sequence: str) -> str:
    items = tags.get(sequence)
    return _text(items[0], "CodeMeaning") if items else ""


def _what_it_shows(tags: Dataset) -> Iterator[str]:
    if (modality := _text(tags, "Modality")) and modality not in _XRAY:
        yield f"modality {modality}, not a chest X-ray, by its tags"
    part = _text(tags, "BodyPartExamined") or _meaning(tags, "AnatomicRegionSequence")
    if part and not any(word in part for word in _CHEST):
        yield f"body part {part}, not the chest, by its tags"
    position, meaning = _text(tags, "ViewPosition"), _meaning(tags, "ViewCodeSequence")
    if view := _VIEWS.get(position) or _VIEWS.get(meaning.rpartition(" ")[2]):
        yield f"{view} ({position or meaning}), by its tags"
    if _text(tags, "PresentationIntentType") == "FOR PROCESSING":
        yield "raw, for processing and not for presentation, by its tags"


def _how_it_is_shown(tags: Dataset) -> Iterator[str]:
    num_tables = len(tags.get("VOILUTSequence") or ())
    num_windows = tags["WindowCenter"].VM if has_window(tags) else 0
    if num_tables + num_windows == 0 and tags.get("BitsStored", 8) > 8:
        yield "no window: the lowest and the highest value in the image are shown as black and white"
    elif max(num_tables, num_windows) > 1:
        yield f"{max(num_tables, num_windows)} windows or tables, of which the first is shown"
    spacing = tags.get("PixelAspectRatio") or tags.get("PixelSpacing") or tags.get("ImagerPixelSpacing")
    if spacing and len(spacing) == 2 and min(spacing) > 0 and max(spacing) > _NOT_SQUARE * min(spacing):
        yield f"its pixels are {float(spacing[0]):g} high to {float(spacing[1]):g} wide, and shown as squares"
