"""What every reader keeps to, whatever it reads.

A file of tests imports these and has the fixtures `reader`, `asked`: requests that it can answer, `check`: compares an
answer with its request, and `ahead`: how many more requests than it answered it may pull.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from distcxr.data.loader import PixelReader, Pixels, Request

Check = Callable[[Pixels, Request], None]


def test_nothing_asked_nothing_given(reader: PixelReader, asked: list[Request], check: Check) -> None:
    assert list(reader.read([])) == []
    check(next(reader.read(asked)), asked[0])


def test_an_early_end_leaves_a_clean_start(reader: PixelReader, asked: list[Request], check: Check) -> None:
    for stop_after in (0, 1, 2):
        with closing(reader.read(asked)) as answers:
            for _ in range(stop_after):
                next(answers)
        for answer, request in zip(reader.read(asked[::-1]), asked[::-1], strict=True):
            check(answer, request)


def test_requests_are_pulled_only_a_little_ahead(reader: PixelReader, asked: list[Request], ahead: int) -> None:
    pulled = 0

    def endless() -> Iterator[Request]:
        nonlocal pulled
        while True:
            pulled += 1
            yield asked[0][:2]

    with closing(reader.read(endless())) as answers:
        for used in range(1, 20):
            next(answers)
            assert pulled <= used + ahead


def test_an_error_in_the_order_comes_through_and_leaves_a_clean_start(
    reader: PixelReader, asked: list[Request], check: Check
) -> None:
    def broken() -> Iterator[Request]:
        yield from asked[:3]
        raise RuntimeError("the order broke")

    with pytest.raises(RuntimeError, match="the order broke"):
        list(reader.read(broken()))
    answers = list(reader.read(asked))
    check(answers[0], asked[0])
    assert len(answers) == len(asked)


def test_two_reads_at_once_are_refused(reader: PixelReader, asked: list[Request]) -> None:
    with closing(reader.read(asked)) as first:
        next(first)
        with pytest.raises(AssertionError, match="one read at a time"):
            next(reader.read(asked))
