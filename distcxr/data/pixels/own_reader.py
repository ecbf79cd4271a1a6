"""Who reads an image file: distcxr's decoders, or a user's own function.

Shapes: H, W of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distcxr.data.pixels.decode import decode_grey
from distcxr.data.pixels.image_bytes import Source, UnreadableImage, read_file, too_large
from distcxr.own_parts import broken, imported, note, part
from distcxr.recipe.data import Data

ReadGrey = Callable[[Source], NDArray[np.uint8]]
"""File -> grey pixels, uint8 [H, W]; UnreadableImage for one that can't be read. It can be sent to a worker process."""

_KEY = "data.reader"


def grey_reader(data: Data) -> ReadGrey:
    """The reader that a recipe's `data` section asks for."""
    return decode_file if data.reader is None else OwnReader(data.reader, part(data.reader))


def decode_file(file: Source) -> NDArray[np.uint8]:
    """`decode_grey` of a file."""
    return decode_grey(read_file(file)[0])


@dataclass(frozen=True)
class OwnReader:
    """A user's function as a `ReadGrey`."""

    name: str
    function: Callable[..., Any]

    def __reduce__(self) -> tuple[Any, ...]:
        """Workers find the function by its name: not every function can be pickled."""
        return _of_worker, (self.name,)

    def __call__(self, file: Source) -> NDArray[np.uint8]:
        """Raises UnreadableImage, or PartError where the function returns something else. Its own errors pass, but
        ValueError and OSError, which are about the file."""
        try:
            grey_HW = self.function(str(file))
        except (ValueError, OSError) as error:
            raise UnreadableImage(f"{self.name} can't read it: {error}") from error
        except Exception as error:
            note(error, _KEY, self.name)
            raise
        if not isinstance(grey_HW, np.ndarray):
            raise broken(_KEY, self.name, f"returned {type(grey_HW).__name__} for {file}")
        if grey_HW.dtype != np.uint8 or grey_HW.ndim != 2 or not grey_HW.size:
            raise broken(_KEY, self.name, f"returned {grey_HW.dtype} {list(grey_HW.shape)} for {file}")
        if too_large(*grey_HW.shape):
            raise UnreadableImage(f"its size is {grey_HW.shape[1]} x {grey_HW.shape[0]} pixels")
        return np.ascontiguousarray(grey_HW)


def check_own_reader(name: str, files: Sequence[str]) -> None:
    """Try a user's function on images until it has read one.

    Raises:
        PartError: it returns something else than an image.
        ValueError: it can read none of them.
    """
    reasons = []
    for file in files:
        try:
            OwnReader(name, part(name))(file)
            return
        except UnreadableImage as error:
            reasons.append(f"{file}: {error}")
    if reasons:
        raise ValueError(f"{_KEY}={name} can read none of {len(reasons)} images: {reasons[0]}")


def _of_worker(name: str) -> OwnReader:
    return OwnReader(name, imported(name))
