"""`distcxr explain RECIPE CHECKPOINT`: a checkpoint's heat maps against NIH's boxes."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "explain",
        help="hold a checkpoint's Grad-CAM heat maps against NIH's boxes",
        description="Makes a heat map for every finding that NIH drew a box of on an image of the split, and says how "
        "often its maximum is in a box (pointing), how well the two overlap (IoU) and how much of the heat lies in "
        "the boxes (coverage), beside what chance would give.",
    )
    parser.add_argument("recipe", type=Path, help="the checkpoint's recipe, a YAML file or a name")
    parser.add_argument("checkpoint", type=Path, help="folder, for example runs/NAME/checkpoints/best")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="for example data.root=/data/nih")
    parser.add_argument("--boxes", type=Path, help="the boxes' file (default: BBox_List_2017.csv in data.root)")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test", help="default %(default)s")
    parser.add_argument("--layer", help="the module whose output is the map (default: the last before pooling)")
    parser.add_argument("--threshold", type=float, default=0.5, help="of the IoU, share of the maximum (default 0.5)")
    parser.add_argument("--tolerance", type=float, default=0.0, help="pixels around a box that still hit (default 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="write pictures, 4 of each finding")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Make the maps and print the figures; a ValueError goes to the caller."""
    from functools import partial

    import numpy as np
    from PIL import Image

    from distcxr.data.sources.nih_boxes import place_boxes, read_boxes
    from distcxr.engine.checkpoint import open_checkpoint
    from distcxr.engine.compatible import as_tested
    from distcxr.engine.opening import opened
    from distcxr.engine.pictures import localise_rows
    from distcxr.explain.localisation import table_rows
    from distcxr.recipe import load_recipe
    from distcxr.runfolder.whole import write_json
    from distcxr.tracking.terminal import table_text

    if args.json and not args.json.absolute().parent.is_dir():  # now, not after the work
        raise ValueError(f"{args.json} can't be written: the folder {args.json.parent} is not there")
    if args.pictures:
        args.pictures.mkdir(parents=True, exist_ok=True)
    recipe = load_recipe(args.recipe, args.overrides)
    checkpoint = open_checkpoint(args.checkpoint)
    with opened(recipe, checkpoint, partial(as_tested, split=args.split)) as setup:
        index = setup.index
        boxes = place_boxes(read_boxes(args.boxes or index.root), index, recipe.data.image_size, recipe.augment)
        rows = np.intersect1d(setup.splits.rows(args.split), boxes.rows)
        if not len(rows):
            raise ValueError(f"no image of the {args.split} split has a box of {', '.join(index.findings)}")
        found = localise_rows(
            setup, rows, boxes, layer=args.layer, threshold=args.threshold, tolerance_px=args.tolerance,
            pictures=4 if args.pictures else 0,
        )  # fmt: skip
    print(f"{checkpoint.path}, step {checkpoint.step}: {len(rows):,} images of {args.split} with boxes")
    print(table_text(table_rows(found.findings), width=None))
    for sample_id, reason in found.unreadable:
        print(f"left out {index.file_name(sample_id)}: {reason}")
    if args.pictures:
        for picture in found.pictures:
            name = f"{picture.finding}_{Path(index.file_name(picture.sample_id)).stem}.png"
            Image.fromarray(picture.pixels).save(args.pictures / name)
        print(f"{len(found.pictures)} pictures: {args.pictures}")
    if args.json:
        write_json(args.json, found.to_json(), indent=2)
        print(f"written: {args.json}")
    return 0
