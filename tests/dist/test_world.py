"""The `world_size` marker itself: the world has that size, and a failing rank fails the test."""

from __future__ import annotations

import pytest
import torch

pytest_plugins = ["pytester"]


@pytest.mark.world_size(3)
def test_the_world_has_the_size_of_the_marker() -> None:
    total = torch.ones(1)
    torch.distributed.all_reduce(total)
    assert total.item() == 3
