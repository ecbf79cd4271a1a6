"""Folders with valid files, of which an input replaces one for as long as it is read."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from random import Random


@cache
def workspace() -> Path:
    """A folder in memory where there is one; removed when the process that made it ends."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="distcxr-fuzz-", dir=memory if memory.is_dir() else None))
    owner = os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)
    return folder


class Place:
    """A folder made once a process. An input is `NAME\\nBYTES`: the file that it replaces, and with what."""

    def __init__(self, name: str, make: Callable[[Path], object]) -> None:
        self.name, self._make = name, make
        self._whole: dict[str, bytes] = {}

    @property
    def folder(self) -> Path:
        return workspace() / self.name

    @property
    def files(self) -> dict[str, bytes]:
        """All files of the folder as they were made, by path."""
        if not self._whole:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make(self.folder)
            found = (path for path in sorted(self.folder.rglob("*")) if path.is_file())
            self._whole = {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in found}
        return self._whole

    def inputs(self, names: Sequence[str] = ()) -> tuple[bytes, ...]:
        """The seeds: each of these files, or of all."""
        return tuple(name.encode() + b"\n" + self.files[name] for name in names or self.files)

    @contextmanager
    def holding(self, data: bytes, repair: Callable[[str, bytes], dict[str, bytes]] | None = None) -> Iterator[str]:
        """Have the input's file in the folder; its name.

        Args:
            repair: from name and content to all the files to write, such as those with right checksums.
        """
        name, _, content = data.partition(b"\n")
        which = name.decode(errors="replace")
        if which not in self.files:
            which = next(iter(self.files))
        changed = repair(which, content) if repair else {which: content}
        mark = workspace() / f"{self.name}.dirty"  # of a process that died
        if mark.exists():
            self._restore(mark.read_text().split("\n"))
        mark.write_text("\n".join(changed))
        try:
            for path, held in changed.items():
                (self.folder / path).write_bytes(held)
            yield which
        finally:
            self._restore(changed)
            mark.unlink()

    def _restore(self, names: Sequence[str] | dict[str, bytes]) -> None:
        for name in names:
            if name in self.files:
                (self.folder / name).write_bytes(self.files[name])
            else:
                (self.folder / name).unlink(missing_ok=True)


def spoiling(by: Callable[[str, bytes, Random, Sequence[bytes]], bytes]) -> Callable[[Sequence[bytes], Random], bytes]:
    """`Entry.mutate` for inputs of a place; `by` gets the file's name and its content."""

    def mutate(seeds: Sequence[bytes], rng: Random) -> bytes:
        name, _, content = rng.choice(seeds).partition(b"\n")
        return name + b"\n" + by(name.decode(), content, rng, seeds)

    return mutate
