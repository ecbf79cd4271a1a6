"""A case of the campaign: one fault in the run, or in the build, of a folder of its own."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults.job import Job, differences, files_of, result

STALL_S = 5
"""Of `train.stall_s` on an idle machine; a loaded one, where undisturbed runs are slow, gets more."""
PATIENCE_S = 60.0
"""No case may take longer than this, or twelve undisturbed runs, to end by itself after its fault."""
MARK = "DISTCXR_FAULT_CASE"
STORES = {"cache": "data.cache.path", "pack": "data.pack.path"}
"""Verbs that build a store, and the key of the folder that it goes to."""


@dataclass
class Place:
    """Folder of a campaign: data, recipe, and what undisturbed commands end with.

    Attributes:
        straight: what a command leaves, by the number of ranks, or by the verb of a build.
        straight_s: seconds that it takes.
        launch_s: seconds of a whole `distcxr train`, imports included.
    """

    folder: Path
    straight: dict[int | str, dict[str, Any]]
    straight_s: dict[int | str, float]
    launch_s: float = 20.0

    def words(self, output: Path, verb: str = "train") -> list[str]:
        key = STORES.get(verb, "output")
        return [str(self.folder / "recipe.yaml"), f"data.root={self.folder / 'phantom'}", f"{key}={output}"]


@dataclass
class Case:
    """One fault, with its random numbers and the folder of its run.

    Attributes:
        verb: of the command that the fault is done to, and that has to end well afterwards.
        sessions: of all processes that the case has started.
    """

    place: Place
    kind: str
    world_size: int
    random: random.Random
    folder: Path
    name: str
    verb: str = "train"
    sessions: set[int] = field(default_factory=set)

    @property
    def output(self) -> Path:
        return self.folder / "run"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def straight_s(self) -> float:
        return self.place.straight_s[self.world_size if self.verb == "train" else self.verb]

    def start(self, *overrides: str, **more: Any) -> Job:
        more["environ"] = {MARK: self.name} | more.get("environ", {})
        words = [*self.place.words(self.output, self.verb), *overrides]
        job = Job(words, self.world_size, self.log, verb=self.verb, grace_s=max(8.0, self.straight_s), **more).start()
        self.sessions |= set(job.pids())
        return job

    def moment(self, latest: float = 1.0) -> None:
        """Wait for a random moment of the run, its start and its end included; `latest` is a share of its time."""
        time.sleep(self.random.uniform(0.05, latest) * self.straight_s)

    def patience_s(self) -> float:
        return max(PATIENCE_S, 12 * self.straight_s)

    def differences(self) -> list[str]:
        """What is other than undisturbed."""
        if self.verb == "train":
            return differences(self.place.straight[self.world_size], result(self.output))
        return differences(self.place.straight[self.verb], files_of(self.output))
