"""Decode a few PNGs on the GPU and compare every pixel with the CPU's: small enough to run under compute-sanitizer.

    compute-sanitizer --tool memcheck --report-api-errors no python benchmarks/gpu_sanitize.py --inflate gpu
    compute-sanitizer --tool racecheck --kernel-name kns=unfilter python benchmarks/gpu_sanitize.py --inflate cpu

PYTORCH_NO_CUDA_MEMORY_CACHING=1 gives every tensor an allocation of its own, so memcheck sees its ends. Without a
GPU the kernels run as the tests compile them for the CPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from gpu_decode import ROOT, check, make_decoder

from distcxr.data.pixels.image_bytes import read_file
from distcxr.phantom.png_encoder import encode_png

SIZE = 96
SHAPES = ((1, 1), (33, 65), (64, 32), (100, 31), (513, 40), (300, 257))
"""Beside two X-rays of 1024 pixels: less than a warp's rows, one more, and odd widths."""


def main() -> int:
    """Decode once; 1 where a pixel differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--inflate", choices=("gpu", "cpu"), default="cpu", help="who inflates (default %(default)s)")
    parser.add_argument("--images", type=int, default=8, help="at most 8, the largest last (default %(default)s)")
    args = parser.parse_args()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place:
        files = [Path(place) / f"{height}x{width}.png" for height, width in SHAPES]
        for file, shape in zip(files, SHAPES, strict=True):
            file.write_bytes(encode_png(rng.integers(0, 256, shape).astype(np.uint8)))
        files = [*files, *sorted((ROOT / "tests" / "fixtures" / "nih").glob("*.png"))][: args.images]
        decoder = make_decoder(SIZE, device, args.inflate)
        prepared = [(str(file), decoder.prepare(read_file(str(file))[0])) for file in files]
        check(decoder, [(file, image) for file, image in prepared if image is not None], SIZE, device)
    print(f"{decoder.where}: {len(prepared)} images, all pixels the CPU's")
    return int(any(image is None for _, image in prepared))


if __name__ == "__main__":
    sys.exit(main())
