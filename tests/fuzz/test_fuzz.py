"""The short form: some inputs of every entry, the same ones each time; `make fuzz` runs a million."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from random import Random

import pytest
from fuzz import harness
from fuzz.entries import ENTRIES
from fuzz.harness import Entry, check, make_input, run_entry

INPUTS = 100


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_valid_inputs_are_read(entry: Entry) -> None:
    """Else every input would be refused at the same gate, and nothing behind it be reached."""
    refused = [number for number, data in enumerate(entry.seeds()) if check(entry, data)]
    assert refused == []


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_spoilt_inputs_are_read_or_refused_with_a_sentence(entry: Entry, tmp_path: Path) -> None:
    result = run_entry(entry, seed=0, numbers=range(max(4, int(INPUTS * min(entry.share, 1)))), most_findings=1)
    for finding in result.findings:
        saved = tmp_path / entry.name / str(finding.number)
        saved.parent.mkdir()
        saved.write_bytes(finding.data)
        pytest.fail(f"{finding.what}\nReplay it: python tests/fuzz/run.py --replay {saved}", pytrace=False)


def _crash(data: bytes) -> None:
    if data == b"3":
        os.kill(os.getpid(), signal.SIGSEGV)
    if data == b"5":
        raise KeyError("no sentence")
    if data == b"7":
        held = bytearray(harness.MEMORY_BYTES * 2)
        assert held
    if data == b"9":
        while True:
            time.process_time()


def test_the_harness_finds_what_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash, another error, too much memory and a hang, each with its input; the inputs behind it run, too."""
    monkeypatch.setattr(harness, "INPUT_S", 0.3)
    inputs = [str(number).encode() for number in range(12)]
    entry = Entry("broken", lambda: inputs, lambda *_: b"", _crash, (ValueError,))
    result = run_entry(entry, 0, range(12))
    assert result.inputs == 12
    assert [(finding.number, finding.data) for finding in result.findings] == [(n, b"%d" % n) for n in (3, 5, 7, 9)]
    words_of = ("Segmentation|SIGSEGV", "KeyError", "MemoryError", "Hang")
    for finding, words in zip(result.findings, words_of, strict=True):
        assert any(word in finding.what for word in words.split("|")), finding.what


def test_inputs_are_the_same_each_time() -> None:
    for entry in ENTRIES:
        seeds = entry.seeds()
        numbers = range(len(seeds), len(seeds) + 60)
        once = [make_input(entry, seeds, 1, number) for number in numbers]
        assert once[::-1] == [make_input(entry, seeds, 1, number) for number in reversed(numbers)]
        assert len({entry.mutate(seeds, Random(number)) for number in range(30)}) > 10
