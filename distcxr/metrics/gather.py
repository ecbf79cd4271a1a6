"""All ranks' logits in one table: ordered by sample id, each id exactly once.

Shape suffixes: B samples of this rank, N samples of all ranks, C findings.

Every function here is collective: all ranks call it, a rank without samples too. Ranks first exchange
how much they bring; what is wrong anywhere is then raised everywhere, so no rank is left waiting for one that
stopped.
"""

from __future__ import annotations

import json
from itertools import accumulate

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from distcxr.metrics.scored import first_few


def gather_by_sample_id(
    logits_BC: Tensor, sample_id_B: Tensor, expected_ids: NDArray[np.int64] | Tensor
) -> tuple[Tensor, Tensor]:
    """All ranks' logits in ascending order of sample id, on every rank.

    Args: this rank's float32 logits `[B, C]` and int64 sample ids `[B]` (B may be 0, C is the same
    everywhere), on any device; the ids that all ranks together should bring, in any order, each once, the
    same on every rank.
    Returns CPU tensors: float32 logits `[N, C]` and int64 ids `[N]`, N = the number of expected ids.
    Raises ValueError on every rank when any rank's shapes or dtypes are wrong, RuntimeError on every rank
    when an expected id is missing, or one came twice or unasked; the message names the first few.
    Without an initialised process group this process is the whole world.
    """
    is_valid = (
        logits_BC.ndim == 2
        and sample_id_B.shape == logits_BC.shape[:1]
        and logits_BC.dtype == torch.float32
        and sample_id_B.dtype == torch.int64
    )
    num_columns = logits_BC.shape[1] if is_valid else 0
    header = torch.tensor([sample_id_B.numel(), num_columns, is_valid], dtype=torch.int64)
    headers = [part.tolist() for part in _all_gather(header)]
    bad_ranks = [rank for rank, (_, _, valid) in enumerate(headers) if not valid]
    if bad_ranks:
        raise ValueError(
            f"ranks {bad_ranks}: logits must be float32 [B, C] and sample ids int64 [B]; this rank has "
            f"{logits_BC.dtype} {tuple(logits_BC.shape)} and {sample_id_B.dtype} {tuple(sample_id_B.shape)}"
        )
    num_rows = [rows for rows, _, _ in headers]
    num_findings = [columns for _, columns, _ in headers]
    if len(set(num_findings)) > 1:
        raise ValueError(f"ranks bring logits of {num_findings} findings; an empty shard is [0, C], too")

    ids_N = _gather_rows(sample_id_B.detach(), num_rows)
    logits_NC = _gather_rows(logits_BC.detach(), num_rows)
    order_N = torch.argsort(ids_N)
    ids_N = ids_N[order_N]
    expected = expected_ids.cpu().numpy() if isinstance(expected_ids, Tensor) else expected_ids
    _check_ids(ids_N.numpy(), expected)
    return logits_NC[order_N], ids_N


def gather_unreadable(unreadable: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """All ranks' (sample id, message) of files that could not be read, ordered by id, on every rank.

    The same entry from several ranks is kept once. Sent as JSON: nothing is unpickled.
    """
    encoded = json.dumps([[int(sample_id), message] for sample_id, message in unreadable]).encode()
    num_bytes = [int(part) for part in _all_gather(torch.tensor([len(encoded)], dtype=torch.int64))]
    mine = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
    payload = _gather_rows(mine, num_bytes).numpy().tobytes()
    ends = list(accumulate(num_bytes))
    parts = [json.loads(payload[end - length : end]) for end, length in zip(ends, num_bytes, strict=True)]
    return sorted({(sample_id, message) for part in parts for sample_id, message in part})


def _check_ids(ids_N: NDArray[np.int64], expected_ids: NDArray[np.int64]) -> None:
    """`ids_N` is sorted. Every rank holds the same ids and so comes to the same result."""
    expected, num_expected = np.unique(expected_ids, return_counts=True)
    if (num_expected > 1).any():
        raise ValueError(f"expected ids hold an id twice: {first_few(expected[num_expected > 1].tolist())}")
    if np.array_equal(ids_N, expected):
        return
    ids, num_seen = np.unique(ids_N, return_counts=True)
    problems = {
        "missing": np.setdiff1d(expected, ids, assume_unique=True),
        "duplicated": ids[num_seen > 1],
        "not expected": np.setdiff1d(ids, expected, assume_unique=True),
    }
    found = "; ".join(f"{len(bad)} {what}: {first_few(bad.tolist())}" for what, bad in problems.items() if len(bad))
    raise RuntimeError(
        f"the ranks scored {len(ids_N)} samples where {len(expected)} were due, each once. Sample ids {found}"
    )


def _gather_rows(rows: Tensor, num_rows: list[int]) -> Tensor:
    """Concatenate the ranks' rows in rank order, on the CPU; `num_rows` is how many each rank brings.

    all_gather wants equal shapes, so rows are padded to the longest rank: memory is world size times that.
    """
    longest = max(num_rows)
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    if padded.numel() == 0:
        return torch.zeros((sum(num_rows), *rows.shape[1:]), dtype=rows.dtype)
    padded[: len(rows)] = rows
    parts = _all_gather(padded)
    return torch.cat([part[:length].cpu() for part, length in zip(parts, num_rows, strict=True)])


def _all_gather(tensor: Tensor) -> list[Tensor]:
    """One equally shaped tensor per rank, on the device the process group talks through."""
    if not (dist.is_available() and dist.is_initialized()):
        return [tensor]
    # "cpu:gloo", "cuda:nccl" or both: where the CPU is served, the data can go straight to where it is wanted.
    through_cpu = "cpu:" in dist.get_backend_config()
    tensor = tensor.to("cpu" if through_cpu else f"cuda:{torch.cuda.current_device()}").contiguous()
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor)
    return parts
