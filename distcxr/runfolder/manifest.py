"""`checkpoint.json`, the manifest of a checkpoint: sizes and checksums of the other files, and a checksum of its own.

format_version   of the layout
bytes, crc32     of each file by its name; `crc32` also of `checkpoint.json` itself: of its content without that
tables           bytes and crc32 of `steps.csv` as far as it reached when the checkpoint was made
recipe, state, findings, mean, std, world_size, conditions, hashes: see `engine/saving.py`
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distcxr.regular import open_regular, read_regular

MODEL, TRAINED, TRAINING, META = "model.safetensors", "trained.safetensors", "training.pt", "checkpoint.json"
FORMAT_VERSION = 4
READABLE_VERSIONS = (2, 3, FORMAT_VERSION)  # 2 has no checksum of checkpoint.json, 3 no sizes, tables and notes


def damaged_files(checkpoint: Path, meta: Mapping[str, Any]) -> list[str]:
    """A sentence for each file of a checkpoint that is not as its `checkpoint.json`, with the content `meta`, has it.

    Sizes come first: a file that was cut short need not be read.

    Raises:
        OSError: a file is missing or can't be read.
        KeyError: a file that every checkpoint has is not listed.
    """
    checksums, sizes, found = meta["crc32"], meta.get("bytes", {}), []
    for name in (MODEL, *((TRAINED,) if TRAINED in checksums else ()), TRAINING):
        path, expected = checkpoint / name, checksums[name]
        size = path.stat().st_size
        if size != sizes.get(name, size):
            found.append(f"{path} is damaged: it has {size:,} bytes, not {sizes[name]:,}")
        elif crc32_of(path) != expected:
            found.append(f"{path} is damaged: its checksum is wrong")
    return found


def read_meta(checkpoint: Path) -> dict[str, Any]:
    """The content of `checkpoint.json`, checked against the checksum of itself.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not JSON, or not what was written.
    """
    try:
        meta = json.loads(read_regular(checkpoint / META)[0])
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(meta, dict):
        raise ValueError(f"a {type(meta).__name__} where an object should be")
    for key in ("bytes", "crc32"):
        listed = meta.get(key, {})
        if not isinstance(listed, dict) or not all(type(number) is int for number in listed.values()):
            raise ValueError(f"{key}: not a whole number for each file")
    own = meta.get("crc32", {}).pop(META, None)
    if own is None and meta.get("format_version") in READABLE_VERSIONS[1:]:
        raise ValueError("it has no checksum of itself")
    if own is not None and own != _meta_crc32(meta):
        raise ValueError("its checksum of itself is wrong")
    return meta


def write_meta(checkpoint: Path, meta: Mapping[str, Any]) -> None:
    """Write `checkpoint.json` with the checksum of itself beside those in `meta`."""
    plain = json.loads(json.dumps(meta, allow_nan=False))  # as it will be read
    content = plain | {"crc32": plain["crc32"] | {META: _meta_crc32(plain)}}
    (checkpoint / META).write_text(json.dumps(content, indent=1))


def complete_meta(checkpoint: Path, meta: Mapping[str, Any]) -> None:
    """Write `checkpoint.json` with `meta`, the format, and sizes and checksums of the files that are there."""
    files = sorted(checkpoint.iterdir())
    sizes, checksums = {file.name: file.stat().st_size for file in files}, {file.name: crc32_of(file) for file in files}
    write_meta(checkpoint, {"format_version": FORMAT_VERSION} | dict(meta) | {"bytes": sizes, "crc32": checksums})


def _meta_crc32(meta: Mapping[str, Any]) -> int:
    """Of the content, not of the text: white space and order don't matter."""
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def crc32_of(path: Path, num_bytes: int | None = None) -> int:
    """Checksum of a file, or of its first `num_bytes`: about a second a gigabyte."""
    checksum, left = 0, path.stat().st_size if num_bytes is None else num_bytes
    with open(open_regular(path)[0], "rb") as file:
        while block := file.read(min(1 << 22, left)):
            checksum, left = zlib.crc32(block, checksum), left - len(block)
    return checksum
