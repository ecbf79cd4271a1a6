"""The global batch in one piece, for losses that compare its images with each other.

Every rank has all scores and computes the same loss, with a gradient for its own images alone. Summed over ranks and
micro-batches these are the gradient of the whole loss, as if one process had computed it: each image's part is taken
where its network ran.

Shapes: B micro-batch, G global batch, C findings.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distcxr.data.batch import Batch
from distcxr.engine.kept_buffers import KeptBuffers
from distcxr.engine.setup import Setup
from distcxr.engine.training import Training
from distcxr.runtime import Runtime


class WholeBatch:
    """Logits and labels of all ranks and micro-batches, in the order of the global batch.

    Costs a sum over the ranks of 3 float32 numbers a label: 21 kB for 128 images and 14 findings. A sum with zeros, as
    every backend has it for every device, and exact.
    """

    def __init__(self, runtime: Runtime, logits: Sequence[Tensor], micro_batches: Sequence[Batch]) -> None:
        """Exchange them; every rank calls it, with as many images.

        Args:
            logits: without a gradient, [B, C] of each of the micro-batches.
        """
        own = torch.stack(
            [
                torch.cat(list(logits)).float(),
                torch.cat([batch.targets for batch in micro_batches]).float(),
                torch.cat([batch.mask for batch in micro_batches]).float(),
            ]
        )
        self._first = runtime.rank * own.shape[1]
        by_rank = own.new_zeros(runtime.world_size, *own.shape)
        by_rank[runtime.rank] = own
        by_rank = runtime.sum_over_ranks(by_rank)
        self._logits_GC, self._targets_GC, self._mask_GC = by_rank.transpose(0, 1).flatten(1, 2)

    def around(self, logits_BC: Tensor, micro_step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, targets and mask [G, C] with a micro-batch's logits in their place, through which a gradient goes."""
        start = self._first + micro_step * len(logits_BC)
        before, after = self._logits_GC[:start], self._logits_GC[start + len(logits_BC) :]
        return torch.cat([before, logits_BC, after]), self._targets_GC, self._mask_GC


@torch.no_grad()
def scored_first(
    setup: Setup, training: Training, step: int, numbered: Sequence[tuple[int, Batch]]
) -> list[Tensor]:  # fmt: skip
    """Logits [B, C] of every micro-batch as training is about to compute them again, which leave no trace.

    A loss of pairs needs the scores of all micro-batches before the first backward pass; to keep their activations
    instead would need the memory that accumulation is there to save. Costs a forward pass more, a third of the time.

    Args:
        numbered: micro-batches with their numbers in the global batch.
    """
    kept = KeptBuffers(setup.module)
    logits = []
    for number, batch in numbered:
        setup.runtime.seed_step(setup.recipe.seed, step, number)
        logits.append(setup.logits(setup.module, batch, transform=training.transform))
    kept.restore(torch.ones((), dtype=torch.bool, device=setup.runtime.device))
    return logits
