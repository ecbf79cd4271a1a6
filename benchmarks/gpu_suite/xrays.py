"""About 96 images of 1024 pixels for a machine that has none: few enough to carry, and costly like NIH's to decode.

    python -m gpu_suite.xrays FOLDER [--images 96] [--size 1024]

With DISTCXR_NIH_ROOT the real ones, spread evenly over it, with their rows of the tables. Else phantoms, made a little
smoother and darker than `distcxr phantom` draws them: their rows then have the filters that NIH's have (Paeth and
Average on nine of ten, about half each) and take the bytes that NIH's take (400 KB an image).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

TABLE, LISTS = "Data_Entry_2017_v2020.csv", ("train_val_list.txt", "test_list.txt")
DONE = "whole"
_DARKER = 0.45


def main() -> int:
    """Make the folder, unless it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=96, help="(default %(default)s)")
    parser.add_argument("--size", type=int, default=1024, help="of phantoms, in pixels (default %(default)s)")
    args = parser.parse_args()
    wanted = f"{args.images} {args.size} {os.environ.get('DISTCXR_NIH_ROOT', '')}"
    done = args.folder / DONE
    if not (done.exists() and done.read_text() == wanted):
        shutil.rmtree(args.folder, ignore_errors=True)
        make(args.folder, args.images, args.size)
        done.write_text(wanted)
    files = list((args.folder / "images").glob("*.png"))
    print(f"{args.folder}: {len(files)} PNGs, {sum(file.stat().st_size for file in files) / 1e6:.1f} MB")
    return 0


def make(folder: Path, images: int, size: int) -> None:
    """Write the folder from nothing."""
    root = os.environ.get("DISTCXR_NIH_ROOT")
    if root:
        pick(Path(root), folder, images)
    else:
        draw(folder, images, size)


def pick(root: Path, folder: Path, images: int) -> None:
    """Copy real images and the rows that are about them.

    Raises:
        ValueError: there are not as many.
    """
    found = sorted(file for place in root.glob("images*") for file in place.rglob("*.png"))
    if len(found) < images:
        raise ValueError(f"{root} holds {len(found)} PNGs in images*/, fewer than {images}")
    picked = [found[number * len(found) // images] for number in range(images)]
    names = {file.name for file in picked}
    (folder / "images").mkdir(parents=True)
    for file in picked:
        shutil.copyfile(file, folder / "images" / file.name)
    header, *rows = (root / TABLE).read_text().splitlines()
    kept = [header, *(row for row in rows if row.split(",", 1)[0] in names)]
    (folder / TABLE).write_text("\n".join(kept) + "\n")
    for name in LISTS:
        lines = [line for line in (root / name).read_text().split() if line in names]
        (folder / name).write_text("\n".join(lines) + "\n")


def draw(folder: Path, images: int, size: int) -> None:
    """Draw phantoms and encode them anew; a second of a core each."""
    from distcxr.phantom.writing import write_phantom

    write_phantom(folder, images=images, size=size)
    files = sorted((folder / "images").glob("*.png"))
    # Spawned, as the phantoms' own processes: this one may hold threads.
    with ProcessPoolExecutor(min(len(os.sched_getaffinity(0)), 16), mp_context=get_context("spawn")) as pool:
        list(pool.map(encode_anew, files, chunksize=4))


def encode_anew(file: Path) -> None:
    """Write a phantom smoother along its rows and darker: less noise, other filters."""
    import numpy as np

    from distcxr.data.pixels.decode import decode_grey
    from distcxr.phantom.png_encoder import encode_png

    image = decode_grey(file.read_bytes()).astype(np.float64)
    smooth = (6 * image + np.roll(image, 1, axis=1) + np.roll(image, -1, axis=1)) / 8
    file.write_bytes(encode_png(np.rint(_DARKER * smooth).astype(np.uint8)))


if __name__ == "__main__":
    sys.exit(main())
