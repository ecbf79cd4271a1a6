"""Checkpoint folders are there whole or not at all, whenever a kill comes."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

import pytest

from distcxr.runfolder import layout, manifest


def write(place: Path, weights: bytes = b"weights") -> None:
    """A checkpoint of two files."""
    with layout.checkpoint_being_written(place, {"findings": ["Mass"]}) as part:
        (part / manifest.MODEL).write_bytes(weights)
        (part / manifest.TRAINING).write_bytes(b"moments")


def weights_of(checkpoint: Path) -> bytes:
    return (checkpoint / manifest.MODEL).read_bytes()


def names_in(run: Path) -> list[str]:
    return sorted(path.name for path in layout.checkpoints_of(run).iterdir())


def test_the_last_file_names_the_others_with_their_checksums(tmp_path: Path) -> None:
    place = layout.last_folder(tmp_path, 12)
    write(place)
    assert place == tmp_path / "checkpoints" / "last-00000012"
    checksums = {"model.safetensors": zlib.crc32(b"weights"), "training.pt": zlib.crc32(b"moments")}
    content = json.loads((place / "checkpoint.json").read_text())
    own = content["crc32"].pop("checkpoint.json")
    assert content == manifest.read_meta(place)
    sizes = {"model.safetensors": 7, "training.pt": 7}
    assert content == {"format_version": 4, "findings": ["Mass"], "bytes": sizes, "crc32": checksums}
    assert own == zlib.crc32(json.dumps(content, sort_keys=True).encode())
    assert {file.stat().st_mode for file in place.iterdir()} == {(place / "checkpoint.json").stat().st_mode}
    assert manifest.damaged_files(place, content) == []
    (place / manifest.TRAINING).write_bytes(b"moment5")
    assert manifest.damaged_files(place, content) == [f"{place / 'training.pt'} is damaged: its checksum is wrong"]
    (place / manifest.TRAINING).write_bytes(b"moment")
    assert manifest.damaged_files(place, content) == [f"{place / 'training.pt'} is damaged: it has 6 bytes, not 7"]
    (place / manifest.TRAINING).unlink()
    with pytest.raises(FileNotFoundError):
        manifest.damaged_files(place, content)
    with pytest.raises(KeyError):
        manifest.damaged_files(place, {"crc32": {"model.safetensors": 0}})


def test_no_flipped_bit_of_the_last_file_changes_what_is_read(tmp_path: Path) -> None:
    place = layout.best_folder(tmp_path)
    meta = {"std": [0.25], "state": {"step": 21, "best": 0.8312, "history": [0.5, 0.25]}, "name": "Pleural_Thickening"}
    with layout.checkpoint_being_written(place, meta) as part:
        (part / manifest.MODEL).write_bytes(b"weights")
    path, expected, harmless = place / "checkpoint.json", manifest.read_meta(place), 0
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            assert manifest.read_meta(place) == expected
            harmless += 1
        except ValueError:
            pass
    assert harmless < 0.05 * 8 * len(whole)  # white space alone


def test_a_checkpoint_of_format_2_is_read_without_a_checksum_of_its_last_file(tmp_path: Path) -> None:
    """And one of format 3 without sizes."""
    place = layout.best_folder(tmp_path)
    write(place)
    meta = manifest.read_meta(place)
    (place / "checkpoint.json").write_text(json.dumps(meta | {"format_version": 2}))
    assert manifest.read_meta(place) == meta | {"format_version": 2}
    meta.pop("bytes")
    manifest.write_meta(place, meta | {"format_version": 3})
    assert manifest.damaged_files(place, manifest.read_meta(place)) == []
    (place / "checkpoint.json").write_text(json.dumps(meta | {"format_version": 3}))
    with pytest.raises(ValueError, match="no checksum of itself"):
        manifest.read_meta(place)


def test_everything_is_flushed_before_the_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, flushed = layout.best_folder(tmp_path), []

    def fsync(descriptor: int) -> None:
        flushed.append((os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")), place.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write(place)
    assert {name for name, renamed in flushed[:3]} == {"model.safetensors", "training.pt", "checkpoint.json"}
    assert flushed[3:] == [(".best.part", False), ("checkpoints", True)]
    assert not any(renamed for _, renamed in flushed[:3])


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_at_any_rename_leaves_a_whole_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    """Renames go as far as the case has it, then the process is gone: nothing is cleaned up."""
    place, left, rename = layout.best_folder(tmp_path), [renames], Path.rename
    write(place, b"old")

    def until_killed(self: Path, target: Path) -> Path:
        if not left[0]:
            raise SystemExit
        left[0] -= 1
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", until_killed)
        patch.setattr(layout.shutil, "rmtree", lambda *_, **__: None)
        if renames < 2:
            with pytest.raises(SystemExit):
                write(place, b"new")
        else:
            write(place, b"new")
    found = layout.find_checkpoint(tmp_path)
    assert weights_of(found) == (b"new" if renames == 2 else b"old") and layout.is_best(found)
    write(place, b"newer")
    assert weights_of(layout.find_checkpoint(tmp_path)) == b"newer" and names_in(tmp_path) == ["best"]


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    place = layout.stage_folder(tmp_path, 1)
    write(place, b"old")
    with pytest.raises(OSError), layout.checkpoint_being_written(place, {}) as part:
        (part / manifest.MODEL).write_bytes(b"half")
        raise OSError("no space left")
    assert weights_of(place) == b"old" and names_in(tmp_path) == ["stage-1"]


def test_a_copy_replaces_what_was_there(tmp_path: Path) -> None:
    ours, theirs = layout.best_folder(tmp_path / "ours"), layout.best_folder(tmp_path / "theirs")
    for place in (ours, theirs):
        place.parent.mkdir(parents=True)
        write(place, str(place).encode())
    layout.copy_checkpoint(theirs, ours)
    assert weights_of(ours) == str(theirs).encode() == weights_of(theirs)
    assert names_in(tmp_path / "ours") == ["best"]


def test_newest_first_by_number(tmp_path: Path) -> None:
    assert layout.last_folders(tmp_path) == [] and not layout.holds_checkpoints(tmp_path)
    for name in ("last-00000009", "last-100000000", "last-00000010", "last-x", "damaged-last-00000011", "best"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    found = layout.last_folders(tmp_path)
    assert [layout.step_of(path) for path in found] == [100_000_000, 10, 9] and layout.holds_checkpoints(tmp_path)
    layout.put_aside_as_damaged(found[:1])
    assert layout.last_folders(tmp_path) == found[1:]
    assert {"damaged-last-100000000", "last-x"} < set(names_in(tmp_path))
    layout.put_aside_as_damaged(found[1:])
    assert names_in(tmp_path) == ["best", "damaged-last-00000009", "damaged-last-00000010", "last-x"], "no more pile up"


def test_a_checkpoint_knows_its_run_folder() -> None:
    assert layout.run_folder_of(Path("runs/a/checkpoints/best")) == Path("runs/a")
    assert layout.run_folder_of(Path("copied/best")) is None
    assert not layout.is_best(Path("runs/a/checkpoints/last-00000012"))
