"""`distcxr explain RUN [RECIPE]`: a run's heat maps against NIH's boxes."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distcxr.cli.options import Checkpoint, CheckpointsRecipe, Json, Split, check_writable, recipe_of

if TYPE_CHECKING:
    from distcxr.data.sources.nih_boxes import BoxList
    from distcxr.recipe import Recipe


class HeatMap(StrEnum):
    """`against_boxes.Map` as typer takes it."""

    RELATIVE = "relative"
    PLAIN = "plain"


_Boxes = Annotated[
    Path | None,
    typer.Option(
        "--boxes", metavar="FILE", show_default=False, help="the boxes' file (default: BBox_List_2017.csv in data.root)"
    ),
]
_Split = Annotated[Split, typer.Option(help="images of this split")]
_Layer = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE", show_default=False, help="the module that outputs the map (default: the last before pooling)"
    ),
]
_Map = Annotated[
    HeatMap, typer.Option(help="relative: evidence above the image's own mean; plain: above 0, Grad-CAM as published")
]
_Threshold = Annotated[
    float, typer.Option(metavar="SHARE", help="of the map's maximum, from which on it counts for the IoU")
]
_Tolerance = Annotated[float, typer.Option(metavar="PIXELS", help="around a box, in which the maximum still hits")]
_Pictures = Annotated[
    Path | None, typer.Option(metavar="FOLDER", show_default=False, help="write pictures, 4 of each finding")
]


def run(
    path: Checkpoint,
    words: CheckpointsRecipe = None,
    json: Json = None,
    pictures: _Pictures = None,
    boxes_file: _Boxes = None,
    split: _Split = Split.TEST,
    layer: _Layer = None,
    map: _Map = HeatMap.RELATIVE,
    threshold: _Threshold = 0.5,
    tolerance: _Tolerance = 0.0,
) -> int:
    """Compare a run's Grad-CAM heat maps with NIH's boxes.

    Makes a heat map for every finding that NIH drew a box of on an image of the split, and reports how often its
    maximum is in a box (pointing), how well the two overlap (IoU) and how much of the heat lies in the boxes
    (coverage), beside what chance would give. Published figures of Grad-CAM compare with --map plain alone. Heat maps
    over any images, without boxes: distcxr predict RUN IMAGE ... --explain FOLDER
    """
    import numpy as np
    from PIL import Image

    from distcxr.data.sources.nih_boxes import place_boxes
    from distcxr.engine.checkpoint import open_checkpoint
    from distcxr.engine.compatible import as_tested
    from distcxr.engine.opening import opened
    from distcxr.engine.pictures import localise_rows
    from distcxr.explain.against_boxes import METHODS
    from distcxr.explain.localisation import table_rows
    from distcxr.recipe import load_recipe
    from distcxr.runfolder.whole import write_json
    from distcxr.tracking.terminal import table_text

    check_writable(json)
    checkpoint = open_checkpoint(path)
    recipe = load_recipe(*recipe_of(checkpoint.path, words or []))
    listed = _listed_boxes(boxes_file, recipe, path)
    if pictures:
        pictures.mkdir(parents=True, exist_ok=True)
    with opened(recipe, checkpoint, partial(as_tested, split=split)) as setup:
        index = setup.index
        boxes = place_boxes(listed, index, recipe.data.image_size, recipe.augment)
        rows = np.intersect1d(setup.splits.rows(split), boxes.rows)
        if not len(rows):
            raise ValueError(f"no image of the {split} split has a box of {', '.join(index.findings)}")
        found = localise_rows(
            setup, rows, boxes, layer=layer, map=map.value, threshold=threshold, tolerance_px=tolerance,
            pictures=4 if pictures else 0,
        )  # fmt: skip
    print(
        f"{checkpoint.path}, step {checkpoint.step}: {len(rows):,} images of {split} with boxes; {METHODS[found.map]}"
    )
    print(table_text(table_rows(found.findings), width=None))
    for sample_id, reason in found.unreadable:
        print(f"left out {index.file_name(sample_id)}: {reason}")
    if pictures:
        for picture in found.pictures:
            name = f"{picture.finding}_{Path(index.file_name(picture.sample_id)).stem}.png"
            Image.fromarray(picture.pixels).save(pictures / name)
        print(f"{len(found.pictures)} pictures: {pictures}")
    if json:
        write_json(json, found.to_json(), indent=2)
        print(f"written: {json}")
    return 0


def _listed_boxes(file: Path | None, recipe: Recipe, run: Path) -> BoxList:
    """Before data and network are loaded. Raises ValueError: there is no such file, or as `read_boxes`."""
    from distcxr.data.index import MissingDataError
    from distcxr.data.read import nih_root
    from distcxr.data.sources.nih_boxes import FILE_NAME, read_boxes

    try:
        return read_boxes(file or nih_root(recipe.data) / FILE_NAME)
    except MissingDataError as error:
        other = f"distcxr predict {run} IMAGE ... --explain FOLDER"
        raise ValueError(f"{error}. To see heat maps over images that have no boxes: {other}") from None
