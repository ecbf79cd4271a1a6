"""Measures decoding of one synthetic X-ray of 1024 px, as PNG and as a DICOM of each form: CPU time of one thread.

    python benchmarks/dicom_decode.py

The DICOMs of 12 bits have noise in the four bits that the PNG does not have, a rescale and a window. CPU time, not the
clock's, so that other programs matter little. The tests' writer of DICOMs makes them, with imagecodecs.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from distcxr.data.pixels.decode import decode_grey, load_kernels
from distcxr.phantom.writing import MIN_IMAGES, write_phantom

ROOT = Path(__file__).resolve().parents[1]
_REPEATS = 9


def main() -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    from dicoms import ENCODERS, dicom
    from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGBaseline8Bit

    load_kernels()
    with tempfile.TemporaryDirectory() as folder:
        write_phantom(Path(folder), images=MIN_IMAGES, size=1024, workers=1)
        png = sorted(Path(folder).rglob("*.png"))[0].read_bytes()
    image = decode_grey(png)
    deep = (image.astype(np.uint16) << 4) | np.random.default_rng(0).integers(0, 16, image.shape, dtype=np.uint16)
    tags = {
        "BitsStored": 12, "HighBit": 11, "WindowCenter": "2048", "WindowWidth": "4000", "RescaleSlope": "1",
        "RescaleIntercept": "0",
    }  # fmt: skip
    cases = {"PNG": png, "DICOM, 8 bits": dicom(image), "DICOM, 8 bits, JPEG": dicom(image, JPEGBaseline8Bit)}
    for syntax in (ExplicitVRLittleEndian, *ENCODERS):
        if syntax != JPEGBaseline8Bit:
            cases[f"DICOM, 12 bits, {UID(syntax).keyword}"] = dicom(deep, syntax, **tags)
    for name, data in cases.items():
        decode_grey(data)
        times_s = []
        for _ in range(_REPEATS):
            started = time.thread_time()
            decode_grey(data)
            times_s.append(time.thread_time() - started)
        print(f"{name:<40}{1e3 * statistics.median(times_s):>8.1f} ms{len(data) / 1e3:>9,.0f} KB")


if __name__ == "__main__":
    main()
