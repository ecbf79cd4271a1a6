"""Caches and packs, whole and being built: their JSON, tables of images, pixels and shards, with right checksums."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import zlib
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from random import Random

import caches
import numpy as np
import packs
from fuzz.harness import Entry
from fuzz.mutations import HOSTILE_TEXT, spoil_bytes, spoil_value, to_text
from fuzz.places import Place, spoiling
from fuzz.table_entries import spoil_npy

from distcxr.data.index import SampleIndex
from distcxr.data.pixels.decode import decode_grey, load_kernels
from distcxr.data.pixels.image_bytes import UnreadableImage, read_file
from distcxr.data.store.cache_building import UnfinishedCache
from distcxr.data.store.cache_format import DecodedCache, open_cache
from distcxr.data.store.pack_format import Pack, PackListing
from distcxr.data.store.pack_shards import find_shards
from distcxr.data.store.store_files import StoreError

IMAGES = Place("images", lambda folder: caches.dataset(folder, 6))


def _index() -> SampleIndex:
    return caches.index_of(IMAGES.folder, sorted(IMAGES.files))


def _cache(folder: Path) -> None:
    caches.build(_index(), folder, workers=1)
    (folder / "lock").unlink()


def _building(folder: Path) -> None:
    """A build that was stopped after two images."""
    names = np.unique(_index().path)
    with closing(UnfinishedCache(folder, names, caches.SIZE)) as cache:
        for row in range(2):
            cache.put(row, [1, 1, 1, 1], np.zeros(caches.SIZE**2, np.uint8))


def _pack(folder: Path) -> None:
    packs.build(_index(), folder, workers=1)
    (folder / "lock").unlink()


STORE_CACHE, BUILDING, STORE_PACK = Place("cache", _cache), Place("building", _building), Place("pack", _pack)


def spoil_store(name: str, content: bytes, rng: Random, seeds: Sequence[bytes]) -> bytes:
    if name.endswith(".json"):
        whole = json.loads(content)
        if rng.random() < 0.05:
            return to_text(spoil_value(whole, rng), rng)
        held = spoil_value(whole["content"], rng)
        if isinstance(held, dict) and rng.random() < 0.3:
            key = rng.choice(("pixels", "shards", "entries", "unreadable", "image_size", "num_images"))
            text = rng.choice((*HOSTILE_TEXT, "../outside", "/etc/hosts", "."))
            held[key] = rng.choice((text, [text], 1, 1 << 40, {text: text}))
        return to_text({"sha256": digest(held), "content": held}, rng)
    if name.endswith((".npy", ".entries")) and rng.random() < 0.9:
        return spoil_entries(content, rng)
    if name.endswith(".j2k") and rng.random() < 0.7:
        return _shard(content, rng)
    return spoil_bytes(content, rng, seeds)


def digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def spoil_entries(content: bytes, rng: Random) -> bytes:
    """A table of images with hostile numbers and paths, or another array."""
    if rng.random() < 0.3:
        return spoil_npy(content, rng)
    try:
        entries = np.load(io.BytesIO(content), allow_pickle=False).copy()
        names = [name for name in entries.dtype.names if name != "path"]
    except (ValueError, TypeError, EOFError):
        return spoil_bytes(content, rng)
    for _ in range(rng.randint(1, 4)):
        row, name = rng.randrange(len(entries)), rng.choice([*names, "path"])
        if name == "path":
            entries["path"][row] = rng.choice(
                (b"../../etc/passwd", b"/etc/passwd", b"", b"a\0b", b"\xff", b"images/../x")
            )
        else:
            held = np.iinfo(entries.dtype[name])
            numbers = (0, 1, 2, 3, 1000, held.max, held.min, 1 << 20, held.max // 2)
            entries[name][row] = min(max(rng.choice(numbers), held.min), held.max)
    if rng.random() < 0.1:
        entries = entries[: rng.randrange(len(entries))]
    stream = io.BytesIO()
    np.save(stream, entries)
    return stream.getvalue()


def _shard(content: bytes, rng: Random) -> bytes:
    """A shard with another end: entries or reasons changed, sizes forged, its checksum right."""
    end = struct.Struct("<QQI8s")
    if len(content) < end.size:
        return content
    num_first, num_second, _, mark = end.unpack(content[-end.size :])
    start = len(content) - end.size - num_first - num_second
    first, second = content[start : start + num_first], content[start + num_first : -end.size]
    if rng.random() < 0.6:
        first = spoil_entries(first, rng)
    else:
        second = to_text(spoil_value(json.loads(second), rng), rng)
    crc = zlib.crc32(first + second)
    sizes = [len(first), len(second)]
    if rng.random() < 0.1:
        sizes[rng.randrange(2)] = rng.choice((0, 1, 1 << 40, (1 << 64) - 1, sum(sizes)))
    return content[:start] + first + second + end.pack(*sizes, crc, mark)


def _repaired(place: Place, json_name: str, name: str, content: bytes) -> dict[str, bytes]:
    """The JSON file has the checksum of the table as it is now."""
    if not name.endswith(".npy"):
        return {name: content}
    whole = json.loads(place.files[json_name])["content"]
    whole["entries_sha256"] = hashlib.sha256(content).hexdigest()
    return {name: content, json_name: json.dumps({"sha256": digest(whole), "content": whole}).encode()}


def _is_inside(folder: Path, files: Sequence[Path]) -> None:
    """Only files of the folder are opened, whatever the JSON file named."""
    for file in files:
        assert os.path.dirname(os.path.normpath(file)) == str(folder), file


def run_cache(data: bytes) -> None:
    load_kernels()
    with STORE_CACHE.holding(data, lambda name, held: _repaired(STORE_CACHE, "cache.json", name, held)):
        folder = STORE_CACHE.folder
        with closing(DecodedCache(folder, caches.SIZE)) as cache:
            _is_inside(folder, cache.files)
            rows = np.arange(len(cache.entries))
            out = np.zeros((len(rows), caches.SIZE**2), dtype=np.uint8)
            for row in rows:
                cache.content(int(row))
                cache.path(int(row))
            for _ in range(2):
                try:
                    cache.gather(rows, out)
                except RuntimeError as error:
                    assert str(folder) in str(error)
                    break
        with closing(open_cache(folder, _index(), caches.SIZE)) as cache:
            cache.check_sources()
            for row in np.flatnonzero(cache.entries["state"] == 2).tolist():
                cache.reason(row)


def run_building(data: bytes) -> None:
    with BUILDING.holding(data):
        folder = BUILDING.folder
        names = np.array(sorted(name.encode() for name in IMAGES.files))
        before = {path.name for path in folder.parent.iterdir()}
        unfinished = UnfinishedCache(folder, names, caches.SIZE)
        try:
            assert Path(unfinished.pixels_name).name == unfinished.pixels_name, unfinished.pixels_name
            assert len(unfinished.done) == len(names)
            for row in np.flatnonzero(unfinished.done):
                unfinished.recheck(int(row), str(IMAGES.folder / "images/01.png").encode())
        finally:
            unfinished.close()
            for path in folder.iterdir():
                if path.name not in BUILDING.files:
                    path.unlink()
            for name, held in BUILDING.files.items():
                (folder / name).write_bytes(held)
        assert {path.name for path in folder.parent.iterdir()} == before


def run_pack(data: bytes) -> None:
    with STORE_PACK.holding(data, lambda name, held: _repaired(STORE_PACK, "pack.json", name, held)):
        folder = STORE_PACK.folder
        try:
            shards, _ = find_shards(folder)
        except OSError:  # of a name too long, for one; `building_in` makes it a StoreError
            shards = []
        for shard in shards:
            try:
                for row in range(len(shard.entries)):
                    shard.content(row)
            finally:
                shard.close()
        PackListing(folder).names("images")
        with closing(Pack(folder)) as pack:
            _is_inside(folder, pack.files)
            for part in pack.parts(np.arange(len(pack.entries))):
                try:
                    decode_grey(read_file(part)[0])
                except UnreadableImage as error:
                    assert str(error)


ENTRIES = tuple(
    Entry(
        place.name, place.inputs, spoiling(spoil_store), run, (StoreError,),
        None if place is BUILDING else lambda place=place: str(place.folder),  # type: ignore[misc]
    )
    for place, run in ((STORE_CACHE, run_cache), (BUILDING, run_building), (STORE_PACK, run_pack))
)  # fmt: skip
