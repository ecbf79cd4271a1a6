"""Leave one GPU architecture's code in a wheel: CUDA libraries hold eight, and seven of them need not be carried.

In a fat binary every entry names its architecture, and the driver takes the one that fits. The bodies of the others are
set to zero, so no offset changes, and zeros compress to nothing. On another GPU such a library finds no code.
"""

from __future__ import annotations

import re
import struct
import zipfile
from pathlib import Path

_MAGIC = struct.pack("<IHH", 0xBA55ED50, 1, 16)  # magic number, version, bytes of the header
_HEADER = struct.Struct("<IHHQ")  # the same, and the bytes of all entries
_ENTRY = struct.Struct("<HHIQ")  # kind, version, bytes of the entry's header, bytes of its body
_ARCHITECTURE = 28  # where in an entry's header the architecture is
_ELF = 2  # the kind that holds machine code; 1 is PTX
_MODULE = re.compile(r"\.cpython-(?P<version>\d+t?)-[^/]*\.so$")


def trim_wheel(wheel: Path, folder: Path, *, architecture: int, python: str) -> Path:
    """Write a smaller copy of a wheel: machine code for one architecture, modules for one Python, stronger compression.

    Args:
        folder: where the copy goes, under the same name.
        architecture: for example 90 for sm_90.
        python: digits of the version, for example 312.

    Returns:
        the copy.
    """
    copy = folder / wheel.name
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(copy, "w", zipfile.ZIP_LZMA) as target:
        modules = {name: _MODULE.search(name) for name in source.namelist()}
        dropped = {name for name, match in modules.items() if match and match["version"] != python}
        for name in (name for name in modules if name not in dropped):
            content = source.read(name)
            if name.endswith(".dist-info/RECORD"):
                lines = content.decode().splitlines()
                content = "\n".join(line for line in lines if line.split(",")[0] not in dropped).encode() + b"\n"
            elif re.search(r"\.so(\.\d+)*$", name):
                content = keep_architecture(content, architecture)
            info = source.getinfo(name)
            info.compress_type = zipfile.ZIP_LZMA
            target.writestr(info, content)
    return copy


def keep_architecture(library: bytes, architecture: int) -> bytes:
    """The library with the bodies of all other architectures' entries set to zero.

    A container without machine code for the architecture is left as it is: its PTX may be what is compiled for it.
    """
    content, at = bytearray(library), 0
    while (at := library.find(_MAGIC, at)) >= 0:
        _, _, header, size = _HEADER.unpack_from(library, at)
        entries = _entries(library, at + header, at + header + size)
        if any(found == architecture for _, _, found in entries):
            for begin, end, found in entries:
                if found != architecture:
                    content[begin:end] = bytes(end - begin)
        at += header + (size if entries else 0)
    return bytes(content)


def _entries(library: bytes, at: int, end: int) -> list[tuple[int, int, int]]:
    """Begin and end of the body and architecture (0 for anything but machine code) of each entry of a container; none
    where the bytes only look like one."""
    found = []
    while at < end:
        if at + _ARCHITECTURE + 4 > len(library):
            return []
        kind, _, header, size = _ENTRY.unpack_from(library, at)
        (architecture,) = struct.unpack_from("<I", library, at + _ARCHITECTURE)
        if kind not in (1, _ELF) or header < _ARCHITECTURE + 4 or at + header + size > end:
            return []
        found.append((at + header, at + header + size, architecture if kind == _ELF else 0))
        at += header + size
    return found
