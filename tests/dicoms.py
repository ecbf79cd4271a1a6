"""DICOM files as the tests make them."""

from __future__ import annotations

import io
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileMetaDataset, dcmwrite
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

ENCODERS: dict[str, Any] = {
    JPEG2000Lossless: lambda image: imagecodecs.jpeg2k_encode(image, level=0, codecformat="j2k"),
    HTJ2KLossless: lambda image: imagecodecs.htj2k_encode(image, reversible=True),
    JPEGLSLossless: imagecodecs.jpegls_encode,
    JPEGLosslessSV1: imagecodecs.ljpeg_encode,
    JPEGBaseline8Bit: lambda image: imagecodecs.jpeg8_encode(image, level=100),
    RLELossless: lambda image: rle(image),
}
PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)


def dicom(
    pixels_HW: NDArray[Any], syntax: str = ExplicitVRLittleEndian, *, stream: bytes | None = None, **tags: Any
) -> bytes:
    """A file of one image, 8 or 16 bits, signed or not, compressed losslessly as `syntax` says.

    Args:
        stream: what to take for the compressed pixels instead.
        tags: others, by keyword; None leaves one out.
    """
    bits = 8 * pixels_HW.itemsize
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = generate_uid(entropy_srcs=["one"]), syntax
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "DX", "CHEST", "PA"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels_HW.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(pixels_HW.dtype.kind == "i")
    if syntax in ENCODERS or stream is not None:
        frame = ENCODERS[syntax](pixels_HW) if stream is None else stream
        dataset.PixelData = encapsulate([frame])
        dataset["PixelData"].VR = "OB"
    else:
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        dataset.PixelData = pixels_HW.astype(pixels_HW.dtype.newbyteorder(order)).tobytes() + b"\0" * (
            pixels_HW.nbytes % 2
        )
        dataset["PixelData"].VR = "OW" if bits == 16 else "OB"
    for keyword, value in tags.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    file = io.BytesIO()
    dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def rle(image_HW: NDArray[Any]) -> bytes:
    """A frame of RLE Lossless, all of it literal: a segment a byte plane, the highest first."""
    planes = image_HW.astype(image_HW.dtype.newbyteorder(">")).view(np.uint8).reshape(*image_HW.shape, -1)
    segments = []
    for plane in np.moveaxis(planes, 2, 0):
        data = plane.tobytes()
        packed = b"".join(
            bytes([len(run) - 1]) + run for run in (data[at : at + 128] for at in range(0, len(data), 128))
        )
        segments.append(packed + b"\0" * (len(packed) % 2))
    starts = np.cumsum([64, *map(len, segments[:-1])])
    header = np.zeros(16, dtype="<u4")
    header[: 1 + len(segments)] = [len(segments), *starts]
    return header.tobytes() + b"".join(segments)


def table(entries: NDArray[Any], first: int, bits: int) -> list[Dataset]:
    """A modality or VOI LUT sequence with one table."""
    item = Dataset()
    item.LUTDescriptor = [len(entries) % 65536, first, bits]
    item["LUTDescriptor"].VR = "US" if first >= 0 else "SS"
    item.add_new("LUTData", "US", [int(entry) for entry in entries])
    return [item]
