"""A DICOM's pixels as a viewer shows them, by pydicom: one grey image to uint8 [H, W].

    stored values ──► modality (rescale, LUT) ──► VOI (LUT, window) ──► MONOCHROME1 inverted ──► 8 bits
                      └── of each value that can be stored, 65,536 at most, not of each pixel ──┘

pydicom and what decompresses are imported with the first DICOM; the extra `dicom` brings them.

Shapes: H, W of the image; V values that can be stored.
"""

from __future__ import annotations

import io
import struct
import zlib
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distcxr.data.pixels.image_bytes import MAX_PIXELS, MAX_SIDE, UnreadableImage, too_large
from distcxr.data.pixels.jpeg import decode_jpeg, stream_size
from distcxr.regular import most_unpacked

if TYPE_CHECKING:
    from pydicom import Dataset

PREAMBLE_BYTES = 132
"""At a file's beginning: 128 with any content, then `DICM`."""

_INSTALL = "`pip install 'distcxr[dicom]'`"
_ENVELOPE = bytes.fromhex("06092a864886f70d0107")  # object identifier of CMS, in which secure media encrypt or sign
_UNDEFINED = 0xFFFFFFFF  # a length
_FAR = 1e12  # beyond any window
_RLE = "1.2.840.10008.1.2.5"
_JPEG_8_BIT = "1.2.840.10008.1.2.4.50"


def is_dicom(data: bytes) -> bool:
    """Whether a file is a DICOM, or one in an envelope, by its first `PREAMBLE_BYTES`."""
    return data[128:PREAMBLE_BYTES] == b"DICM" or _is_enveloped(data)


def _is_enveloped(data: bytes) -> bool:
    return data[:1] == b"\x30" and _ENVELOPE in data[:20]


class _File(io.BytesIO):
    """A file that notices when more is asked for than is left, and bounds what is inflated."""

    is_short = False

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:  # pydicom inflates the rest at once
            rest = super().read()
            most = most_unpacked(len(rest))
            if len(zlib.decompressobj(-zlib.MAX_WBITS).decompress(rest, most + 1)) > most:
                raise UnreadableImage(f"its deflated content has more than {most} bytes")
            return rest
        data = super().read(size)
        self.is_short |= len(data) < size and (bool(data) or size > 8)  # 8: a tag and its length, where none is left
        return data


def read_tags(data: bytes, *, pixels: bool = False) -> Dataset:
    """A file's tags, as pydicom's `Dataset`; with `pixels`, Pixel Data too.

    Raises UnreadableImage: pydicom is not installed, the file is encrypted, corrupt, or, with `pixels`, has none.
    """
    if _is_enveloped(data):
        raise UnreadableImage("encrypted or signed as a whole (a CMS envelope, as on secure media): decrypt it first")
    try:
        from pydicom import dcmread
    except ImportError as error:
        raise UnreadableImage(f"a DICOM, which takes pydicom to read: {_INSTALL}") from error
    file = _File(data)
    try:
        dataset = dcmread(file, stop_before_pixels=not pixels)
        if pixels and "PixelData" not in dataset:
            raise UnreadableImage(_why_no_pixels(dataset, len(data), file.is_short))
        if pixels and _is_cut(dataset):
            raise UnreadableImage(f"truncated: the file ends (at byte {len(data)}) in its pixels")
    except (MemoryError, UnreadableImage):
        raise
    except Exception as error:  # what pydicom raises for files that it can't parse has no class of its own
        raise _corrupt(error) from error
    return dataset


def _why_no_pixels(dataset: Dataset, num_bytes: int, is_short: bool) -> str:
    if is_short:
        return f"truncated: the file ends (at byte {num_bytes}) before its pixels or in them"
    if "EncryptedAttributesSequence" in dataset:
        return "its pixels are encrypted: decrypt it first"
    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        return "floating-point pixels, which are not read"
    kind = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
    return f"a DICOM without pixels ({getattr(kind, 'name', 'of no named kind')})"


def _is_cut(dataset: Dataset) -> bool:
    """Whether Pixel Data, of a length that its header has, is shorter than that."""
    element = dataset.get_item("PixelData")
    length, value = getattr(element, "length", _UNDEFINED), getattr(element, "value", None)
    return length != _UNDEFINED and len(value or b"") < length


def decode_dicom(data: bytes) -> NDArray[np.uint8]:
    """Decode a DICOM that holds one grey image.

    Rescale or modality LUT, then the first VOI LUT, or else the first window (linear or sigmoid), as pydicom computes
    them. The window's output range becomes 0 to 255; a VOI LUT's has as many bits as its highest entry, whatever its
    descriptor claims. With neither, or a window that the standard forbids, 8 bits stay as they are, and of more bits
    the lowest and the highest value in the image, padding left out, become 0 and 255. MONOCHROME1 is inverted at the
    end. Pixels stay where they are stored: those that are not square are not resampled.

    Returns uint8 [H, W]. Raises UnreadableImage: pydicom, or what the compression takes, is not installed; or the file
    is encrypted, truncated, corrupt, too large, in colour, of several frames, or has no pixels.
    """
    dataset = read_tags(data, pixels=True)
    try:
        _check(dataset)
        stored_HW = _stored(dataset)
        with np.errstate(over="ignore", invalid="ignore"):  # of a sigmoid, or of tags that make no sense
            table_V = _grey_of_values(dataset, stored_HW)
    except (MemoryError, UnreadableImage):
        raise
    except Exception as error:
        raise _corrupt(error) from error
    return np.take(table_V, stored_HW.view(f"u{stored_HW.itemsize}"))


def _corrupt(error: Exception) -> UnreadableImage:
    return UnreadableImage(f"corrupt DICOM: {' '.join(str(error).split())[:300] or type(error).__name__}")


def _check(dataset: Dataset) -> None:
    """Raise UnreadableImage for anything but one grey image of a size that can be decoded."""
    photometric = dataset.get("PhotometricInterpretation")
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or _number(dataset, "SamplesPerPixel", 1) != 1:
        raise UnreadableImage(
            f"its photometric interpretation is {str(photometric)[:40]}: only one channel of MONOCHROME1 or "
            "MONOCHROME2 is read, as X-rays have"
        )
    if (num_frames := _number(dataset, "NumberOfFrames", 1)) > 1:
        raise UnreadableImage(f"{num_frames} frames: only one image a file is read")
    height, width = _number(dataset, "Rows"), _number(dataset, "Columns")
    if height < 1 or width < 1:
        raise UnreadableImage(f"corrupt DICOM: its size is {width} x {height}")
    if too_large(height, width):
        limit = f"{MAX_PIXELS} pixels allowed" if width * height > MAX_PIXELS else f"{MAX_SIDE} allowed on a side"
        raise UnreadableImage(f"its size is {width} x {height}, more than the {limit}")
    if (bits := _number(dataset, "BitsAllocated")) not in (8, 16):
        raise UnreadableImage(f"{bits} bits are allocated for a pixel: 8 and 16 are read")
    if not 1 <= (stored := _number(dataset, "BitsStored")) <= bits:
        raise UnreadableImage(f"corrupt DICOM: {stored} of {bits} bits are stored")


def _number(dataset: Dataset, keyword: str, default: int | None = None) -> int:
    value = dataset.get(keyword)
    try:
        return int(default if value is None and default is not None else value)
    except (TypeError, ValueError) as error:
        raise UnreadableImage(f"corrupt DICOM: {keyword} is {str(value)[:40]!r}") from error


def _stored(dataset: Dataset) -> NDArray[Any]:
    """Stored values [H, W], of 8 or 16 bits, signed or not, decompressed."""
    from pydicom.encaps import get_frame
    from pydicom.pixels.decoders.base import get_decoder

    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise UnreadableImage("corrupt DICOM: it does not name its transfer syntax")
    shape = dataset.Rows, dataset.Columns
    plugin = ""
    if syntax.is_encapsulated:
        stream = get_frame(dataset.PixelData, 0, number_of_frames=1)
        if syntax == _RLE:
            return _unpacked(stream, dataset)
        if (size := stream_size(stream)) != (*shape, 1):
            raise UnreadableImage(
                f"corrupt DICOM: {shape[1]} x {shape[0]} pixels by its tags, and {size.width} x {size.height} with "
                f"{size.components} channels by what is compressed in it"
            )
        if syntax == _JPEG_8_BIT:
            return decode_jpeg(stream)
        plugin = "pylibjpeg"
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise UnreadableImage(f"its transfer syntax, {syntax.name[:80]}, is not read") from error
    if plugin and plugin not in decoder.available_plugins:
        raise UnreadableImage(f"{syntax.name}, which takes pylibjpeg with its plugins to read: {_INSTALL}")
    stored, _ = decoder.as_array(dataset, index=0, raw=True, decoding_plugin=plugin)
    if stored.shape != shape or stored.dtype.kind not in "iu" or stored.itemsize > 2:
        raise UnreadableImage("corrupt DICOM: its pixels are not those that its tags claim")
    return np.ascontiguousarray(stored, dtype=stored.dtype.newbyteorder("="))


def _unpacked(stream: bytes, dataset: Dataset) -> NDArray[Any]:
    """RLE Lossless: PackBits of each byte of the values, the highest first, by Pillow, which never writes too much.

    pydicom's own takes seconds in Python, and pylibjpeg's ends the program at a stream that is too long.
    """
    num, *ends = struct.unpack_from("<16L", stream)
    num_bytes, num_pixels = dataset.BitsAllocated // 8, dataset.Rows * dataset.Columns
    if num != num_bytes:
        raise UnreadableImage(f"corrupt DICOM: {num} segments of RLE for {num_bytes} bytes a pixel")
    ends[num:] = [len(stream)]
    size = num_pixels, 1  # one long row: some writers let runs cross the ends of rows
    planes = [
        np.asarray(Image.frombytes("L", size, stream[start:end], "packbits", "L")) for start, end in pairwise(ends)
    ]
    values = np.stack(planes, axis=-1).view(f">{'ui'[dataset.PixelRepresentation]}{num_bytes}")
    values = values.astype(values.dtype.newbyteorder("=")).reshape(dataset.Rows, dataset.Columns)
    unused = dataset.BitsAllocated - dataset.BitsStored
    stored: NDArray[Any] = values << unused >> unused
    return stored


def _grey_of_values(dataset: Dataset, stored_HW: NDArray[Any]) -> NDArray[np.uint8]:
    """What each value is shown as: uint8 [V], by the value's bits, read as an unsigned number."""
    from pydicom.pixels.processing import apply_modality_lut, apply_voi, apply_windowing

    for name in ("ModalityLUTSequence", "VOILUTSequence"):
        if dataset.get(name):  # pydicom computes in as many bits as the table's entries have, too few for 8 and 12
            dataset[name][0].LUTDescriptor[2] = 16
    bits = np.arange(1 << 8 * stored_HW.itemsize, dtype=f"u{stored_HW.itemsize}")
    values_V = bits.view(stored_HW.dtype).astype(np.int64)
    modal_V = apply_modality_lut(values_V, dataset)
    if dataset.get("VOILUTSequence"):
        num, first, _ = dataset.VOILUTSequence[0].LUTDescriptor
        inside_V = np.clip(np.rint(modal_V), first, first + (num or len(bits)) - 1).astype(np.int64)
        shown_V = apply_voi(inside_V, dataset).astype(np.float64)
        black, white = 0.0, float((1 << int(shown_V.max()).bit_length()) - 1)
    elif has_window(dataset):
        # What it makes of values far outside is its range, whatever bits, rescale and tables make of that.
        black, *shown, white = apply_windowing(np.concatenate([[-_FAR], modal_V, [_FAR]]), dataset)
        shown_V = np.array(shown)
    else:
        shown_V = modal_V.astype(np.float64)
        black, white = _extent(dataset, stored_HW, values_V, shown_V)
    if not np.isfinite(shown_V).all() or not np.isfinite([black, white]).all():
        raise UnreadableImage("corrupt DICOM: what its rescale and window tags ask for is not finite")
    share_V = np.clip((shown_V - black) / ((white - black) or 1.0), 0, 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        share_V = 1 - share_V
    return np.rint(255 * share_V).astype(np.uint8)


def has_window(dataset: Dataset) -> bool:
    """Whether its first window is one that the standard allows."""
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    try:
        centre, width = (float(np.ravel(dataset[name].value)[0]) for name in ("WindowCenter", "WindowWidth"))
    except (KeyError, IndexError, TypeError, ValueError):
        return False
    least = {"LINEAR": width >= 1, "LINEAR_EXACT": width > 0, "SIGMOID": width > 0}
    return bool(np.isfinite([centre, width]).all()) and least.get(function, False)


def _extent(
    dataset: Dataset, stored_HW: NDArray[Any], values_V: NDArray[np.int64], modal_V: NDArray[np.float64]
) -> tuple[float, float]:
    """Lowest and highest value after the modality's table: of all that 8 bits can store, or of an image of more."""
    low, high = int(stored_HW.min()), int(stored_HW.max())
    if dataset.BitsStored <= 8:
        low, high = (0, 255) if stored_HW.dtype.kind == "u" else (-128, 127)
    elif (padding := dataset.get("PixelPaddingValue")) is not None:
        ends = sorted((int(padding), int(dataset.get("PixelPaddingRangeLimit", padding))))
        seen = stored_HW[(stored_HW < ends[0]) | (stored_HW > ends[1])]
        low, high = (int(seen.min()), int(seen.max())) if seen.size else (low, high)
    inside = modal_V[(values_V >= low) & (values_V <= high)]
    return float(inside.min()), float(inside.max())
