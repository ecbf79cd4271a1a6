"""Fixtures of the SLURM tests: one cluster of three simulated nodes, and a place with a tiny recipe."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from slurm_cluster import Cluster, reason_against, short_folder
from slurm_jobs import Place

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    reason = reason_against()
    if reason is not None:
        pytest.skip(reason)
    folder = short_folder()
    with Cluster(folder, nodes=3) as cluster:
        yield cluster
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def place(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("slurm")
    tiny.phantom(folder)
    tiny.recipe(folder)
    return Place(cluster, folder, ROOT)
