"""Files that someone made to do harm, one a case: refused with a sentence, in little time and memory."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import signal
import socket
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import caches
import numpy as np
import packs
import pytest
from fuzz.harness import cpu_limit
from fuzz.image_entries import htj2k_seeds, jpeg_seeds, segments_of
from fuzz.recipe_entries import _BOMB
from fuzz.store_entries import digest
from PIL import Image
from run_folders import write_run

from distcxr.data.pixels.decode import decode_grey
from distcxr.data.pixels.image_bytes import SIGNATURE, Part, UnreadableImage, read_file
from distcxr.data.read import read_index
from distcxr.data.sources.image_paths import checked_path
from distcxr.data.splits import read_list
from distcxr.data.store.cache_building import UnfinishedCache
from distcxr.data.store.cache_format import DecodedCache
from distcxr.data.store.pack_format import Pack
from distcxr.data.store.store_files import StoreError, write_json
from distcxr.recipe.data import Data
from distcxr.recipe.load import RecipeError, load_recipe
from distcxr.report.page import write_report
from distcxr.runfolder.contents import read_autotune, read_operating
from distcxr.runfolder.history import best_auroc, newest_step
from distcxr.tables import read_table


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def _socket(folder: Path) -> Path:
    with closing(socket.socket(socket.AF_UNIX)) as held:
        held.bind(str(folder / "s"))
    return folder / "s"


SPECIAL: dict[str, Callable[[Path], Path]] = {
    "pipe": _pipe, "endless": lambda _: Path("/dev/zero"), "random": lambda _: Path("/dev/urandom"),
    "socket": _socket, "folder": lambda folder: folder, "nothing": lambda folder: folder / "nothing",
    "link": lambda folder: _linked(folder, _pipe(folder)), "circle": lambda folder: _linked(folder, folder / "link"),
}  # fmt: skip


def _linked(folder: Path, to: Path) -> Path:
    (folder / "link").symlink_to(to)
    return folder / "link"


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_not_a_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = SPECIAL[kind](tmp_path)
    with cpu_limit(5):
        with pytest.raises(UnreadableImage, match=r"the file can't be read: \w"):
            read_file(path)
        with pytest.raises(ValueError, match=f"{path} can't be read: \\w"):
            read_table(path)
        with pytest.raises(ValueError, match=f"{path} can't be read: \\w"):
            read_list(path, {}, set())
        with pytest.raises(RecipeError, match=f"{path} can't be read: |no such file|no recipe has|the recipe "):
            load_recipe(path)


def test_a_file_larger_than_any_image_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    with path.open("wb") as stream:
        stream.truncate(1 << 42)
    with pytest.raises(UnreadableImage, match="larger than the 1,073,741,824 bytes"):
        read_file(path)
    with pytest.raises(ValueError, match="larger than the 1,073,741,824 bytes"):
        read_table(path)


def test_a_header_of_endless_names_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a" * 200_000 + ",b\n1,2\n")
    with pytest.raises(ValueError, match=r"a\.csv, line 1: not readable as CSV"):
        read_table(path)


@pytest.mark.parametrize(
    "name", ["recipe.yaml", "environment.json", "metrics_test.json", "steps.csv", "history.csv", "predictions_test.csv",
             "pictures/pictures.json", "pictures/0.png", "operating.json", "autotune.json"],
)  # fmt: skip
def test_a_pipe_in_a_run_folder_blocks_nobody(name: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", images=30, patients=12, replicates=4, pictures=1, steps=8)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    signal.alarm(20)  # ends the tests: a read that blocks knows no other way out
    try:
        newest_step(folder), best_auroc(folder)
        read = {"operating.json": read_operating, "autotune.json": read_autotune}.get(name, write_report)
        with pytest.raises(ValueError, match=f"{Path(name).name}.*a pipe or a device"):
            read(folder)
    finally:
        signal.alarm(0)


def test_a_zero_byte_in_the_steps_is_an_error_with_its_line(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", images=30, patients=12, replicates=4, pictures=1, steps=8)
    text = (folder / "steps.csv").read_text().split("\n")
    text[3] = text[3].replace(",0.", ",\0.", 1)
    (folder / "steps.csv").write_text("\n".join(text))
    with pytest.raises(ValueError, match=r"steps\.csv, column loss, line 4"):
        write_report(folder)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_one_long_row_does_not_take_gigabytes() -> None:
    """A row of 2^26 columns in 65 KB: the loops that undo filters and resize would take 5 GB for it."""
    width = 1 << 26
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, 8, 0, 0, 0, 0))
    packer = zlib.compressobj(9)
    rows = packer.compress(bytes(1)) + b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    with pytest.raises(UnreadableImage, match=r"more than the 65535 allowed on a side"):
        decode_grey(SIGNATURE + head + _chunk(b"IDAT", rows) + _chunk(b"IEND", b""))


def test_a_jpeg_of_a_thousand_scans_is_refused() -> None:
    """Each scan goes over all pixels, however few bytes it has: 300 KB took minutes."""
    parts = segments_of(jpeg_seeds()[1])
    last = max(number for number, part in enumerate(parts) if part[1] == 0xDA)
    with pytest.raises(UnreadableImage, match="more than 100 scans"):
        decode_grey(b"".join([*parts[:last], parts[last] * 1000, b"\xff\xd9"]))


def test_half_a_codestream_is_an_error_and_not_half_an_image(capfd: pytest.CaptureFixture[str]) -> None:
    """imagecodecs only prints what OpenJPH complains of in the midst of an image."""
    whole = htj2k_seeds()[1]
    assert decode_grey(whole).shape == (40, 50)
    refused = 0
    for at in range(len(whole) // 2, len(whole) - 2, 7):
        try:
            decode_grey(whole[:at] + bytes([whole[at] ^ 0x5A]) + whole[at + 1 :])
        except UnreadableImage:
            refused += 1
    assert refused > 10 and "ignored" not in capfd.readouterr().err
    assert decode_grey(whole).shape == (40, 50)


CODESTREAMS = {
    # Found by mutation: each ended the process with a segmentation fault in OpenJPH.
    "too few step sizes": lambda held: held.replace(b"\xff\x5c\0\x13", b"\xff\x5c\0\x03", 1),
    "31 bits": lambda held: held.replace(b"\xff\x5c\0\x13\x20\x48", b"\xff\x5c\0\x13\x20\xff", 1),
    "no style": lambda held: held.replace(b"\xff\x52", b"\xff\x64", 1),
}


@pytest.mark.parametrize("kind", CODESTREAMS)
def test_headers_that_openjph_reads_beyond_are_refused(kind: str) -> None:
    whole = htj2k_seeds()[1]
    forged = CODESTREAMS[kind](whole)
    assert forged != whole
    with pytest.raises(UnreadableImage, match="corrupt HTJ2K"):
        decode_grey(forged)


@pytest.mark.parametrize("num_bytes", [1 << 50, (1 << 63) - 1, -1, 0])
@pytest.mark.parametrize("offset", [0, 5, 1 << 50, -1])
def test_a_forged_part_of_a_pack_is_refused(num_bytes: int, offset: int, tmp_path: Path) -> None:
    path = tmp_path / "shard"
    path.write_bytes(b"0123456789")
    with path.open("rb") as stream, pytest.raises(UnreadableImage, match=r"cut short|damaged"):
        read_file(Part(str(path), os.getpid(), stream.fileno(), offset, num_bytes, 1))


def test_a_gzip_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n" * (1 << 18), 9) * 1024)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"bomb\.csv\.gz can't be read: its [\d,]+ bytes decompress to more than"):
        read_table(path)
    assert tracemalloc.get_traced_memory()[1] < 600 << 20
    tracemalloc.stop()


def _npz(path: Path, descr: str, shape: str, packed: int) -> None:
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    with zipfile.ZipFile(path, "w", packed) as archive:
        for split in ("train", "val", "test"):
            content = b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head + bytes(4 * 14)
            archive.writestr(f"{split}_labels.npy", content)


@pytest.mark.parametrize("packed", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    ("descr", "shape"),
    [("'|u1'", "(99999999999, 14)"), ("'|u1'", "(-1, 14)"), ("'|S0'", "(99999999999, 14)"), ("'|O'", "(4, 14)"),
     ("'|u1'", "(" * 300), ("'|u1'", "(4.0, 14)"), ("'<M8[s]'", "(4, 14)")],
)  # fmt: skip
def test_arrays_that_claim_what_they_have_not_are_refused(descr: str, shape: str, packed: int, tmp_path: Path) -> None:
    _npz(tmp_path / "chestmnist.npz", descr, shape, packed)
    with pytest.raises(ValueError, match=r"chestmnist\.npz"):
        read_index(Data(dataset="chestmnist"), tmp_path)


RECIPES = {
    "deep": "[" * 100_000, "deep keys": "a: " * 20_000, "bool": "data: !!bool maybe", "int": "data: !!int x",
    "long": "train: {epochs: " + "9" * 5000 + "}", "code": "data: !!python/object/apply:os.system [id]",
    "laughs": _BOMB, "itself": "model: &a {name: *a}", "base": "base: " + "a" * 5000, "base zero": 'base: "a\\0b"',
}  # fmt: skip


@pytest.mark.parametrize("kind", RECIPES)
def test_recipes_made_to_break_the_parser_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.yaml"
    path.write_text(RECIPES[kind])
    with pytest.raises(RecipeError, match=r"hostile\.yaml"):
        load_recipe(path)


@pytest.mark.parametrize("text", ["../x", "a/../../x", "/etc/passwd", "a\\..\\x", "a\0b", "", ".", ".."])
def test_no_path_of_a_table_leaves_the_root(text: str) -> None:
    with pytest.raises(ValueError, match="is not a path below the data root"):
        checked_path(text)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with a cache and a pack; each test damages a copy of a JSON file and puts it back."""
    root = tmp_path_factory.mktemp("stores")
    index = caches.dataset(root / "data", 6)
    caches.build(index, root / "cache", workers=1)
    packs.build(index, root / "pack", workers=1)
    (root / "outside").write_bytes(bytes(6 * caches.SIZE**2))
    return root


def _forge(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the content of a store's JSON file and give it the right checksum."""
    content = json.loads(file.read_text())["content"]
    change(content)
    write_json(file, content)
    assert json.loads(file.read_text())["sha256"] == digest(content)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "", ".", "..", "a\0b", "\ud800", 3, ["x"], {}, None])
def test_a_forged_cache_names_no_file_outside_its_folder(stores: Path, name: Any) -> None:
    file = stores / "cache" / "cache.json"
    before = file.read_bytes()
    try:
        for key in ("pixels", "entries"):
            file.write_bytes(before)
            _forge(file, lambda content, key=key: content.update({key: name}))  # type: ignore[misc]
            with pytest.raises(StoreError, match=r"cache\.json is damaged"):
                DecodedCache(stores / "cache", caches.SIZE)
    finally:
        file.write_bytes(before)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", 3])
def test_a_forged_pack_names_no_file_outside_its_folder(stores: Path, name: Any) -> None:
    file = stores / "pack" / "pack.json"
    before = file.read_bytes()
    try:
        _forge(file, lambda content: content.update(shards=[*content["shards"], name]))
        with pytest.raises(StoreError, match=r"pack\.json is damaged"):
            Pack(stores / "pack")
    finally:
        file.write_bytes(before)


def _with_entries(store: Path, name: str, change: Callable[[Any], bytes]) -> dict[Path, bytes]:
    """Have other bytes in the table of a store, and the right checksum of them; what was there before."""
    file = store / name
    content = json.loads(file.read_text())["content"]
    table = store / content["entries"]
    before = {file: file.read_bytes(), table: table.read_bytes()}
    data = change(np.load(table))
    table.write_bytes(data)
    _forge(file, lambda held: held.update(entries_sha256=hashlib.sha256(data).hexdigest()))
    return before


def _changed(name: str, value: Any) -> Callable[[Any], bytes]:
    def change(entries: Any) -> bytes:
        entries[name][0] = value
        stream = io.BytesIO()
        np.save(stream, entries)
        return stream.getvalue()

    return change


TABLES: dict[str, Callable[[Any], bytes]] = {
    "path": _changed("path", b"../../etc/pw"), "absolute": _changed("path", b"/etc/passwd"),
    "shard": _changed("shard", 1000), "not an array": lambda _: b"\x93NUMPY\1\0" + b"(" * 300, "empty": lambda _: b"",
    "huge": lambda entries: _header(entries, "(99999999999,)"), "short": lambda entries: _header(entries, "(7,)"),
}  # fmt: skip


def _header(entries: Any, shape: str) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": entries.dtype.descr, "fortran_order": False, "shape": (6,)})
    return stream.getvalue().replace(b"(6,)", shape.encode()).ljust(512, b" ") + entries.tobytes()


@pytest.mark.parametrize("kind", TABLES)
def test_a_forged_table_of_images_is_refused(stores: Path, kind: str) -> None:
    before = _with_entries(stores / "pack", "pack.json", TABLES[kind])
    try:
        with pytest.raises(StoreError, match="can't be used"):
            Pack(stores / "pack")
    finally:
        for file, data in before.items():
            file.write_bytes(data)


def test_a_pack_is_not_read_from_a_pipe(stores: Path) -> None:
    (shard,) = packs.shards(stores / "pack")
    shard.rename(stores / "aside")
    os.mkfifo(shard)
    try:
        with cpu_limit(5), pytest.raises(StoreError, match="a pipe or a device"):
            Pack(stores / "pack")
    finally:
        shard.unlink()
        (stores / "aside").rename(shard)


def test_a_resumed_build_writes_into_no_other_file(tmp_path: Path) -> None:
    """`building.json` names the file that pixels are written to."""
    names = np.array([b"a.png", b"b.png"])
    victim = tmp_path / "victim"
    victim.write_bytes(b"keep this")
    folder = tmp_path / "cache"
    folder.mkdir()
    for named in ("../victim", str(victim), "victim"):
        with closing(UnfinishedCache(folder, names, 4)) as begun:
            own = begun.pixels_name
        if named == "victim":
            (folder / "victim").symlink_to(victim)
        _forge(folder / "building.json", lambda content, named=named: content.update(pixels=named))  # type: ignore[misc]
        with closing(UnfinishedCache(folder, names, 4)) as resumed:
            assert resumed.pixels_name not in (own, named)
            resumed.put(0, [1, 1, 1, 1], np.zeros(16, np.uint8))
    assert victim.read_bytes() == b"keep this"


def test_pictures_of_ordinary_sizes_are_read_as_before() -> None:
    for side in ((1, 1), (1, 65_535), (65_535, 1)):
        stream = io.BytesIO()
        Image.fromarray(np.full(side, 7, np.uint8)).save(stream, "PNG")
        assert decode_grey(stream.getvalue()).shape == side
