"""Reading ahead in threads: what the readers that do so share.

    requests ──► jobs ──► threads: pieces of work ──► launch ──► collect ──► Pixels, in the order asked
                          `prefetch` jobs             `_launched_at_once` jobs

Launching is for readers with something that runs after the threads: DALI's pipeline, a GPU's queue.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Generic, NamedTuple, TypeVar, cast

import torch

from distcxr.data.loader import Pixels, Request

Made = TypeVar("Made")
Launched = TypeVar("Launched")


class Job(NamedTuple, Generic[Made]):
    """Whole requests that are worked on together."""

    requests: Sequence[Request]  # in the order asked
    work: Sequence[Callable[[], Made]]  # calls that make their pieces, in order, each in a thread


class PrefetchingReader(ABC, Generic[Made, Launched]):
    """A `PixelReader` with threads that work a few jobs ahead; a subclass defines a job, and what follows on it.

    All but the work of a job runs in the thread that reads.
    """

    _launched_at_once = 1
    """Jobs that are launched and not yet collected, so that what runs them need not wait for us."""

    def __init__(self, *, num_threads: int, prefetch: int, name: str, device: torch.device | None = None) -> None:
        """Start the threads.

        Args:
            num_threads: 0 does the work in the thread that reads, with nothing read ahead.
            prefetch: jobs that are worked on ahead.
            device: a GPU that the threads use.
        """
        assert num_threads >= 0 and prefetch >= 1
        self._prefetch = prefetch
        # A thread begins on cuda:0, where another rank works: none of its calls may open a context there.
        begin = partial(torch.cuda.set_device, device) if device is not None and device.type == "cuda" else None
        self._pool = (
            ThreadPoolExecutor(num_threads, thread_name_prefix=name, initializer=begin) if num_threads else None
        )
        self._reading = False

    def read(self, requests: Iterable[Request]) -> Generator[Pixels]:
        """Pixels of each request, in order. Closing it early leaves nothing at work.
        Raises RuntimeError: the reader itself broke."""
        assert not self._reading, "one read at a time: use up or close the one before"
        self._reading = True
        try:
            jobs = self._jobs(requests)
            yield from self._read_here(jobs) if self._pool is None else self._read_ahead(jobs, self._pool)
        finally:
            self._reading = False

    def close(self) -> None:
        """Stop the threads; the reader can't be used again."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    @abstractmethod
    def _job(self, requests: list[Request]) -> Job[Made]:
        """What the threads do about these requests."""

    def _jobs(self, requests: Iterable[Request]) -> Iterator[Job[Made]]:
        """The requests as jobs, pulled no earlier than they are asked for."""
        return (self._job([request]) for request in requests)

    def _launch(self, requests: Sequence[Request], made: list[Made]) -> Launched:
        """Begin what follows on the threads' work, and wait for none of it."""
        return cast("Launched", made)

    @abstractmethod
    def _collect(self, launched: Launched) -> Sequence[Pixels]:
        """Wait for it: the answers to the job's requests."""

    def _handed_out(self) -> None:
        """Called when the consumer comes back for more; what was collected last lives until then."""

    def _abandon(self, launched: Sequence[Launched]) -> None:
        """Called at the end of each read, whatever ended it, with what was launched and not collected."""

    def _read_here(self, jobs: Iterator[Job[Made]]) -> Generator[Pixels]:
        for requests, work in jobs:
            yield from self._collect(self._launch(requests, [make() for make in work]))

    def _read_ahead(self, jobs: Iterator[Job[Made]], pool: ThreadPoolExecutor) -> Generator[Pixels]:
        making = deque[tuple[Sequence[Request], list[Future[Made]]]]()
        launched, answers = deque[Launched](), deque[Pixels]()
        collected: Launched | None = None
        try:
            while True:
                while len(making) < self._prefetch and (job := next(jobs, None)) is not None:
                    making.append((job.requests, [pool.submit(make) for make in job.work]))
                while making and len(launched) < self._launched_at_once:
                    asked, futures = making[0]
                    if (launched or answers) and not all(future.done() for future in futures):
                        break  # rather hand out what is ready than wait for what is not
                    made = [future.result() for future in futures]
                    making.popleft()
                    launched.append(self._launch(asked, made))
                    del made, futures  # they may be large
                if not answers:
                    if not launched:
                        return
                    collected = launched[0]
                    answers.extend(self._collect(collected))
                    launched.popleft()
                yield answers.popleft()
                self._handed_out()
                collected = None
        finally:
            ahead = [future for _, futures in making for future in futures]
            for future in ahead:
                future.cancel()
            wait(ahead)
            self._abandon(launched)
