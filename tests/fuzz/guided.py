"""Fuzzing that is guided by coverage: atheris (libFuzzer) keeps inputs that reach new lines of the package.

It sees Python's lines, not compiled loops: their modules are left out, as numba would compile what atheris changed.
`pip install atheris` first; it is in no extra, because it has no wheel for some Pythons.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

_COMPILED = ["distcxr.compiled", "distcxr.data.pixels.kernels", "distcxr.data.pixels.chunk_kernels"]
_PACKAGE = ["distcxr"]


def _atheris() -> Any:
    module: ModuleType = importlib.import_module("atheris")
    return module


def run_guided(name: str, inputs: int, seed: int, save: Path) -> int:
    """Run one entry; never returns: libFuzzer ends the process, with 77 where it found an input that broke."""
    atheris = _atheris()
    with atheris.instrument_imports(include=_PACKAGE, exclude=[*_COMPILED, "distcxr.metrics.area_kernels"]):
        from fuzz.entries import ENTRIES
        from fuzz.harness import INPUT_S, check

    (entry,) = (entry for entry in ENTRIES if entry.name == name)
    seeds = entry.seeds()
    corpus, broken = save / "corpus" / name, save / name
    for folder in (corpus, broken):
        folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(data)

    def mutate(data: bytes, most_bytes: int, drawn: int) -> bytes:
        """Ours, that knows the format; now and then libFuzzer's, that knows what comparisons failed.

        After one of libFuzzer's the next input may be of no format that ours can take apart.
        """
        if drawn % 4 == 0:
            return bytes(atheris.Mutate(data, most_bytes))
        try:
            return entry.mutate([data, *seeds] if drawn % 2 else [data], Random(drawn))[:most_bytes]
        except Exception:  # theirs, of a dozen formats' parsers; what is tested is `check`
            return bytes(atheris.Mutate(data, most_bytes))

    def one(data: bytes) -> None:
        check(entry, data)

    options = [f"-runs={inputs}", f"-seed={seed}", "-max_len=200000", f"-timeout={int(INPUT_S * 3)}"]
    options += ["-rss_limit_mb=6000", f"-artifact_prefix={broken}/", "-print_final_stats=1", str(corpus)]
    atheris.Setup([sys.argv[0], *options], one, custom_mutator=mutate)
    atheris.Fuzz()
    return 0
