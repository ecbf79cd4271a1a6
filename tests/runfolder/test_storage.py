"""What a disk refuses is one sentence with the path, the bytes needed and the bytes free."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import disks
import pytest

from distcxr.runfolder import layout, manifest, storage


def write(place: Path, size: int, needed: int) -> None:
    with layout.checkpoint_being_written(place, {"findings": ["Mass"]}, needed) as part:
        (part / manifest.MODEL).write_bytes(bytes(size))
        (part / manifest.TRAINING).write_bytes(b"moments")


def test_what_does_not_fit_is_not_begun(tmp_path: Path) -> None:
    with disks.small_disk(tmp_path / "disk", 512) as disk:
        (disk / "run").mkdir()
        old, new = layout.last_folder(disk / "run", 1), layout.last_folder(disk / "run", 2)
        write(old, 200_000, 200_000)
        (old.parent / ".last-00000003.part").mkdir()
        (old.parent / ".last-00000003.part" / "x").write_bytes(bytes(200_000))  # a kill left it
        with pytest.raises(storage.StorageError) as caught:
            write(new, 400_000, 400_000)
        expected = rf"{re.escape(str(new))} does not fit on the disk: 400\.0 kB needed, 3\d\d\.\d kB free\. What was"
        assert re.match(expected, str(caught.value)), caught.value
        assert [path.name for path in old.parent.iterdir()] == ["last-00000001"]
        assert manifest.damaged_files(old, manifest.read_meta(old)) == []


def test_a_disk_that_fills_up_meanwhile_loses_nothing(tmp_path: Path) -> None:
    with disks.small_disk(tmp_path / "disk", 512) as disk:
        (disk / "run").mkdir()
        place = layout.best_folder(disk / "run")
        write(place, 200_000, 200_000)
        with pytest.raises(storage.StorageError) as caught:
            write(place, 400_000, 1)  # the need is estimated: another program may be faster, too
        assert f"{place} can't be written: No space left on device; 1 bytes needed, " in str(caught.value)
        assert [path.name for path in place.parent.iterdir()] == ["best"]
        assert (place / manifest.MODEL).stat().st_size == 200_000


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    place = layout.best_folder(tmp_path / "gone")
    with pytest.raises(storage.StorageError, match=r"best can't be written: No such file or directory; 7 bytes needed"):
        write(place, 7, 7)
    with pytest.raises(storage.StorageError, match="its folder is gone"):
        storage.check_space(place, 7)


def test_a_disk_is_to_blame_or_not() -> None:
    assert storage.of_the_disk(storage.StorageError("a sentence")) == "a sentence"
    shared = "could not unlink the shared memory file /torch_1 : Disk quota exceeded (122)"
    assert "Disk quota exceeded" in str(storage.of_the_disk(RuntimeError(shared)))
    assert storage.of_the_disk(RuntimeError("a tensor of size (28)")) is None
    full = storage.of_the_disk(OSError(errno.ENOSPC, "x", "runs/a/steps.csv"))
    assert full is not None and full.startswith("runs/a/steps.csv can't be written: No space left on device. What was")
    assert "a file of the run can't be written: Read-only" in (storage.of_the_disk(OSError(errno.EROFS, "x")) or "")
    assert storage.of_the_disk(FileNotFoundError(errno.ENOENT, "x")) is None
    assert storage.of_the_disk(RuntimeError("x")) is None


class RustError(Exception):
    """As safetensors': no OSError."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EIO, os.strerror(errno.EIO)), "Input/output error"),
        (RustError("Error while serializing: I/O error: No space left on device (os error 28)"), "No space left"),
    ],
)
def test_the_reason_is_found_behind_other_errors(tmp_path: Path, error: Exception, message: str) -> None:
    with pytest.raises(storage.StorageError, match=message) as caught, storage.storage_errors(tmp_path / "best", 5):
        try:
            raise error
        except Exception:
            raise RuntimeError("unexpected pos 576 vs 534")  # noqa: B904  as torch.save
    assert caught.value.errno is None


def test_other_errors_are_left_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not finite"), storage.storage_errors(tmp_path / "best", 5):
        raise ValueError("not finite")


@pytest.mark.parametrize(
    ("num_bytes", "shown"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (92_345_678, "92.3 MB"),
                             (3 * 10**12, "3.0 TB")]
)  # fmt: skip
def test_bytes_in_units(num_bytes: int, shown: str) -> None:
    assert storage.in_units(num_bytes) == shown
