"""Ways to spoil bytes, JSON values and lines of text, all drawn from one `Random`."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

NUMBERS = (0, 1, 2, 7, 8, 15, 16, 31, 32, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000,
           0xFFFFFFFF, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip
HOSTILE_TEXT = (
    "", " ", "\0", "a\0b", "..", "../x", "/etc/passwd", "a/../../b", "~", "~root/x", "\ud800", "x" * 5000, "9" * 5000,
    "-1", "1e999", "nan", "inf", "0x10", "1_0", "٣", "²", "<script>", "{{ 7*7 }}", "%s%n", "$(id)", "\r\n", '"', "'",
    "\u202e", "é" * 300, "__class__", "!!python/object/apply:os.system [id]", "/dev/zero", "\x1b[2J",
)  # fmt: skip
HOSTILE: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2**31, 2**63, -(2**63), 2**64, 10**40, 0.5, -0.0, 1e308, -1e308, 5e-324, float("inf"),
    float("nan"), [], {}, [[]], [{}], {"": None}, *HOSTILE_TEXT,
)  # fmt: skip


def spoil_bytes(data: bytes, rng: Random, others: Sequence[bytes] = (), most: int = 4) -> bytes:
    """One to `most` changes: bits, numbers, runs cut, doubled, moved or taken from another input."""
    held = bytearray(data)
    for _ in range(rng.randint(1, most)):
        at = rng.randrange(len(held) + 1)
        run = min(len(held) - at, rng.choice((1, 1, 2, 4, 8, 30, 200)))
        kind = rng.randrange(9)
        if kind <= 1 and at < len(held):
            held[at] ^= 1 << rng.randrange(8)
        elif kind == 2 and at < len(held):
            held[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif kind == 3:
            size = rng.choice((1, 2, 4, 8))
            number = (rng.choice(NUMBERS) + rng.choice((0, 0, -1, 1))) % (1 << 8 * size)
            held[at : at + size] = number.to_bytes(size, rng.choice(("big", "little")))
        elif kind == 4:
            del held[at : at + run]
        elif kind == 5:
            held[at:at] = held[at : at + run] * rng.choice((1, 1, 3, 50))
        elif kind == 6:
            held[at:at] = rng.randbytes(run)
        elif kind == 7:
            del held[at:]
        elif others:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            held[at : at + run] = other[start : start + rng.choice((1, 8, 64, 1000))]
    return bytes(held)


def spoil_value(value: Any, rng: Random, most: int = 3) -> Any:
    """A parsed JSON value with one to `most` places changed."""
    holder = [json.loads(json.dumps(value))]
    for _ in range(rng.randint(1, most)):
        parent, key = _place(holder, rng)
        kind = rng.randrange(8)
        if kind <= 2:
            parent[key] = copy.deepcopy(rng.choice(HOSTILE))  # the next change may be made in it
        elif kind == 3 and parent is not holder:
            del parent[key]
        elif kind == 4:
            parent[key] = [parent[key]] * rng.choice((1, 2, 100))
        elif kind == 5:
            parent[key] = {rng.choice(HOSTILE_TEXT): parent[key]}
        elif kind == 6 and isinstance(parent, dict):
            parent[rng.choice((*HOSTILE_TEXT, *map(str, parent)))] = parent.pop(key)
        else:
            other, place = _place(holder, rng)
            parent[key] = json.loads(json.dumps(other[place]))
    return holder[0]


def _place(holder: list[Any], rng: Random) -> tuple[Any, Any]:
    """A container and a key in it, any depth."""
    parent: Any = holder
    key: Any = 0
    while isinstance(parent[key], dict | list) and parent[key] and rng.random() < 0.85:
        parent = parent[key]
        key = rng.choice(list(parent)) if isinstance(parent, dict) else rng.randrange(len(parent))
    return parent, key


def to_text(value: Any, rng: Random) -> bytes:
    """JSON text: now and then as Python alone writes it, nested beyond reason, or with bytes changed."""
    text = json.dumps(value, allow_nan=True).encode()
    kind = rng.randrange(20)
    if kind == 0:
        return spoil_bytes(text, rng)
    if kind == 1:
        depth = rng.choice((50, 5_000, 200_000))
        return b"[" * depth + text + b"]" * depth
    if kind == 2:
        return text.replace(b"1", b"1" * rng.choice((30, 400, 5000)), 1)
    return text


def spoil_lines(text: bytes, rng: Random, others: Sequence[bytes] = (), most: int = 4) -> bytes:
    """Cells and lines of a table changed, moved, doubled; then perhaps bytes."""
    lines = text.split(b"\n")
    for _ in range(rng.randint(1, most)):
        row = rng.randrange(len(lines))
        cells = lines[row].split(b",")
        column = rng.randrange(len(cells))
        kind = rng.randrange(11)
        if kind <= 3:
            cells[column] = _cell(rng)
        elif kind == 4:
            del cells[column]
        elif kind == 5:
            cells[column:column] = [cells[column]] * rng.choice((1, 2, 200))
        elif kind == 6:
            other = rng.randrange(len(lines))
            lines[row], lines[other] = lines[other], lines[row]
            continue
        elif kind == 7:
            lines[row:row] = [lines[row]] * rng.choice((1, 2, 50))
            continue
        elif kind == 8:
            del lines[row]
            lines = lines or [b""]
            continue
        elif kind == 9:
            cells[column] = b'"' + cells[column] + rng.choice((b'"', b'""', b"", b'"x'))
        else:
            cells = [b"\t".join(cells)] if rng.random() < 0.5 else [*cells, b""]
        lines[row] = b",".join(cells)
    joined = rng.choice((b"\n", b"\n", b"\n", b"\r\n", b"\r")).join(lines)
    kind = rng.randrange(12)
    if kind == 0:
        return spoil_bytes(joined, rng, others)
    if kind == 1:
        return rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"PK\x03\x04", b"\0")) + joined
    if kind == 2:
        return joined.decode(errors="replace").encode(rng.choice(("utf-16", "utf-8-sig", "utf-32", "utf-7")))
    return joined


def _cell(rng: Random) -> bytes:
    text = rng.choice((*HOSTILE_TEXT, "0", "1", "-1", "0.5", "1e400", "-", "|", "||", "a|b"))
    return text.encode(errors="surrogatepass") + rng.choice((b"", b"", b" ", b"\xff"))


def of(change: Callable[..., bytes]) -> Callable[[Sequence[bytes], Random], bytes]:
    """`Entry.mutate` from a change of one input."""

    def mutate(seeds: Sequence[bytes], rng: Random) -> bytes:
        return change(rng.choice(seeds), rng, seeds)

    return mutate
