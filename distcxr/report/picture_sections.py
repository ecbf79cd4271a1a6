"""Sections that show where the model looks: the worst errors as pictures, heat maps against NIH's boxes."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from distcxr.regular import read_regular
from distcxr.report import blocks
from distcxr.report.blocks import Block, Content, Part, Picture, Pictures, Section, column, paragraph, readable
from distcxr.runfolder import filenames

_MAX_PICTURES = 24
_PICTURE_PX = 320
_KINDS = {"false_positive": "False positives", "false_negative": "False negatives"}
_LABELS_MAY_BE_WRONG = "A wrong call may be a wrong label, too: NIH's were read from reports by a program."


def pictures_section(content: Content, folder: Path, missing: list[str]) -> Section | None:
    """The worst errors with their heat maps. Pictures that are not there join `missing`; None without any."""
    entries: list[dict[str, Any]] = content.get("pictures") or []
    shown: list[Block] = []
    taken = {id(entry) for entry in entries[:_MAX_PICTURES]}
    if len(entries) > _MAX_PICTURES:  # as many of each kind
        of = {kind: [entry for entry in entries if entry["kind"] == kind] for kind in _KINDS}
        taken = {id(entry) for kind in of for entry in of[kind][: _MAX_PICTURES // 2]}
    for kind in dict.fromkeys(entry["kind"] for entry in entries):
        found = []
        for number, entry in enumerate(entries):
            if entry["kind"] != kind or id(entry) not in taken:
                continue
            paths = tuple(f"{filenames.PICTURES}/{entry[key]}" for key in ("image", "heat") if entry.get(key))
            absent = [path for path in paths if not (folder / path).exists()]
            missing += absent
            if absent:
                continue
            labels = ", ".join(readable(str(label)) for label in entry.get("labels") or []) or "No Finding"
            prob = content.figure("pictures", number, "prob", form=".2g")
            drawn = [_embedded(folder / path) for path in paths]
            uris = tuple(uri for uri, _ in drawn)
            empty = "" if len(drawn) < 2 or drawn[1][1] else "; its heat map is empty"
            caption = (Part("probability "), prob, Part(f"; labels: {labels}; {entry['file']}{empty}"))
            found.append(Picture(readable(entry["finding"]), caption, uris, paths))
        if found:
            shown += [paragraph(_KINDS.get(kind, readable(kind)), kind="heading"), Pictures(tuple(found))]
    if not shown:
        return None
    note = (
        "Left the image as the network sees it, right with its heat map (Grad-CAM less its mean): warm is where the "
        "finding's evidence lies above the image's own average. Findings take turns. "
    )
    note += _LABELS_MAY_BE_WRONG if (content.get("recipe", "data", "dataset") or "nih") == "nih" else ""
    note += _whose_heat(content, content.get("split"))
    if len(entries) > len(taken):
        note += f" {len(entries) - len(taken)} more pictures lie in the folder pictures."
    return Section("pictures", "Worst errors", (paragraph(note, kind="small"), *shown))


def localisation_section(content: Content, split: str) -> Section | None:
    """Heat maps held against NIH's boxes; None where they were not."""
    base = ("localisation", split, "findings")
    found: dict[str, Any] = content.get(*base) or {}
    names = [name for name in found if found[name].get("num")]
    if not names:
        return None
    paths = [(*base, name) for name in names]
    table = blocks.table(
        ("finding", column(map(readable, names))),
        ("images", content.numbers(paths, "num", form=",")),
        ("patients", content.numbers(paths, "num_patients", form=",")),
        ("pointing", content.numbers(paths, "pointing")),
        ("95 % interval", content.intervals(paths, "pointing")),
        ("by chance", content.numbers(paths, "pointing_chance")),
        ("IoU", content.numbers(paths, "iou")),
        ("95 % interval", content.intervals(paths, "iou")),
        ("coverage", content.numbers(paths, "coverage")),
        ("box share", content.numbers(paths, "box_share")),
        sortable=True,
    )
    is_plain = content.get("localisation", split, "map") == "plain"  # older files have relative maps, all of them
    which = (
        "Grad-CAM as published, evidence above 0,"
        if is_plain
        else "Grad-CAM less its mean (evidence above the image's own average: figures that do not compare with those "
        "published for plain Grad-CAM, which distcxr explain --map plain makes)"
    )
    text = (
        f"{which} against the boxes that NIH's radiologists drew. "
        "Pointing: how often the map's maximum lies in a box, beside what chance would give. IoU: overlap of box and "
        "hot region. Coverage: the share of the heat that lies in the boxes, beside the boxes' share of the image."
        + (_about_intervals(content.get("localisation", split, "intervals")) + _whose_heat(content, split))
    )
    return Section("localisation", "Localisation", (paragraph(text, kind="small"), table))


def _about_intervals(made: dict[str, Any] | None) -> str:
    if not made:
        return " This run was scored before localisation had intervals."
    return f" Intervals of pointing and IoU: {made.get('method')}; none below {made.get('min_patients')} patients."


def _whose_heat(content: Content, split: str) -> str:
    """An ensemble's heat maps are one network's."""
    members: list[dict[str, Any]] = content.get("metrics", split, "members") or []
    return f" Heat maps are those of the ensemble's first member alone, {members[0]['model']}." if members else ""


def _embedded(path: Path) -> tuple[str, bool]:
    """A picture as a data URI, no larger than it is shown, and whether it has colours.

    JPEG, so that two dozen stay below a megabyte.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(read_regular(path)[0])) as picture:
            shown = picture.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a picture that can be read: {error}") from None
    shown.thumbnail((_PICTURE_PX, _PICTURE_PX))
    has_colours = shown.convert("HSV").getchannel("S").getextrema() != (0, 0)
    stream = io.BytesIO()
    shown.save(stream, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}", has_colours
