"""The stand-in for a GPU: its barriers and shuffles mean what CUDA's mean, and misuse is an error, not a hang."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from host_kernels import HostKernels

FLAWED = {
    "half a block at a barrier": ("if (threadIdx.x < 32) __syncthreads();", r"thread 0 waits .*, thread 32 has left"),
    "one thread leaves": ("if (threadIdx.x == 40) return;\n__syncthreads();", "thread 0 waits .*, thread 40 has left"),
    "two barriers for one": (
        "if (threadIdx.x < 32) { __syncthreads(); } else {\n __syncthreads(); }",
        r"__syncthreads in line 2, thread 32 waits at __syncthreads in line 3",
    ),
    "a shuffle without a lane": (
        "if (threadIdx.x != 5) out[0] = __shfl_up_sync(0xffffffffu, 1, 1);",
        "thread 0 waits at a warp's barrier or shuffle in line 2, thread 5 has left",
    ),
    "a warp waits for the block, the block for the warp": (
        "if (threadIdx.x % 2) __syncwarp(); else __syncthreads();",
        "not all threads reach",
    ),
    "a shuffle of half a warp": ("out[0] = __shfl_up_sync(0xffffu, 1, 1);", "among some lanes"),
    "shared memory overrun": ("DYNAMIC_SHARED(shared); shared[threadIdx.x + 1] = 1;", "outside the 64 bytes"),
}


def launch(folder: Path, body: str, *, threads: int = 64, shared: int = 64, descending: bool = False) -> np.ndarray:
    """Run a kernel of that body with uint64 `out[64]`, at first 0."""
    source = folder / "kernel.cu"
    source.write_text(f'extern "C" __global__ void test(unsigned long long* out) {{ (void)out;\n{body}\n}}\n')
    out = np.zeros(64, dtype=np.uint64)
    HostKernels(source, descending=descending).launch("test", (1, 1), threads, shared, [out.ctypes.data])
    return out


@pytest.mark.parametrize("flaw", FLAWED)
def test_what_cuda_leaves_undefined_is_an_error_not_a_hang(flaw: str, tmp_path: Path) -> None:
    body, message = FLAWED[flaw]
    with pytest.raises(RuntimeError, match=message):
        launch(tmp_path, body)


def test_it_runs_on_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        launch(tmp_path, FLAWED["one thread leaves"][0])
    (tmp_path / "whole").mkdir()
    assert launch(tmp_path / "whole", "__syncthreads(); out[threadIdx.x] = threadIdx.x;").tolist() == list(range(64))


def test_shuffles_move_values_between_the_lanes_of_a_warp(tmp_path: Path) -> None:
    body = (
        "unsigned long long mine = threadIdx.x + (1ull << 40);"
        "mine = __shfl_up_sync(0xffffffffu, mine, 1);"
        "out[threadIdx.x] = __shfl_down_sync(0xffffffffu, mine, 4);"
    )
    lanes = np.arange(64)
    up = np.where(lanes % 32 == 0, lanes, lanes - 1)
    down = np.where(lanes % 32 < 28, np.roll(up, -4), up)
    assert (launch(tmp_path, body) - (1 << 40)).tolist() == down.tolist()


def test_a_missing_barrier_shows_in_one_of_the_two_orders(tmp_path: Path) -> None:
    body = "DYNAMIC_SHARED(shared); shared[threadIdx.x] = threadIdx.x;{}out[threadIdx.x] = shared[63 - threadIdx.x];"
    expected = list(range(63, -1, -1))
    wrong = [launch(tmp_path, body.format(""), descending=way).tolist() != expected for way in (False, True)]
    assert any(wrong)
    (tmp_path / "with").mkdir()
    for way in (False, True):
        assert launch(tmp_path / "with", body.format("__syncthreads();"), descending=way).tolist() == expected
