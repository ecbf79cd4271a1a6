"""Evaluation: every readable sample once on any world, rank 0's BatchNorm statistics everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from distcxr.engine.evaluate import batch_losses, evaluate


@tiny.worlds(2, 4)
def test_one_image_scores_the_same_on_every_rank(tmp_path: Path, world_size: int) -> None:
    """BatchNorm statistics of each rank differ after a step; evaluation must not."""
    if tiny.on_main(world_size):
        tiny.phantom(tmp_path)
    torch.distributed.barrier()
    run = tiny.build(tmp_path, f"output={tmp_path / 'run'}", "train.global_batch_size=8", "loss.weights=balanced")
    rank = torch.distributed.get_rank()
    with torch.no_grad():
        for buffer in run.setup.module.buffers():
            if buffer.is_floating_point():
                buffer.add_(0.1 * rank)
    scores = evaluate(run.setup, "val")
    everyone = [torch.empty(scores.logits_NC.shape) for _ in range(world_size)]
    torch.distributed.all_gather(everyone, torch.from_numpy(scores.logits_NC))
    assert all(torch.equal(logits, everyone[0]) for logits in everyone)
    batches = batch_losses(run.setup, scores, 7)  # of eight images, however many ranks share them
    assert [row["num_images"] for row in batches] == [8, 7] and len({row["loss"] for row in batches}) == 2
    losses, known = zip(*((row["loss"], row["num_known"]) for row in batches), strict=True)
    assert np.average(losses, weights=known) == pytest.approx(scores.loss, rel=1e-12)

    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    run.setup.module.eval()
    with torch.no_grad():
        logits = run.setup.module(image)
    own = [torch.empty_like(logits) for _ in range(world_size)]
    torch.distributed.all_gather(own, logits)
    assert all(torch.equal(one, own[0]) for one in own)


@pytest.mark.parametrize("loader", ["torch", "dali"])
@tiny.worlds(1, 2, 3, 4)
def test_every_world_scores_every_sample_once(tmp_path: Path, world_size: int, loader: str) -> None:
    """Five validation images: uneven shards, and with 4 ranks of 2 images a rank runs a batch that others do not."""
    if tiny.on_main(world_size):
        data = tiny.phantom(tmp_path)
        names = (data / "train_val_list.txt").read_text().split()
        patients = sorted({name[:8] for name in names})
        val = [name for name in names if name[:8] in patients[-3:]][:5]
        (data / "val.txt").write_text("\n".join(val))
        (data / "train.txt").write_text("\n".join(name for name in names if name[:8] not in patients[-3:]))
    torch.distributed.barrier()
    lists = "data.lists={train: train.txt, val: val.txt, test: test_list.txt}"
    run = tiny.build(
        tmp_path, f"output={tmp_path / 'run'}", "data.split=lists", lists, "train.global_batch_size=24",
        "train.per_device_batch_size=2",
        f"data.loader={loader}",
    )  # fmt: skip
    scores = evaluate(run.setup, "val")
    assert scores.rows.tolist() == run.setup.splits.val.tolist() and len(scores.rows) == 5

    images = [run.setup.reader.read([np.array([row])]) for row in scores.rows]
    run.setup.module.eval()
    for at, answer in enumerate(images):
        pixels = next(answer).pixels
        answer.close()
        with torch.no_grad():
            alone = run.setup.module(run.setup.transform(pixels, _identity()))
        assert np.allclose(alone.numpy()[0], scores.logits_NC[at], atol=1e-5)


def _identity() -> torch.Tensor:
    from distcxr.data.augment import identity_parameters

    return identity_parameters(1)


def test_macro_needs_positives(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    run = tiny.build(tmp_path, f"output={tmp_path / 'run'}")
    run.setup.index.targets_NC[:, 0] = 0
    report = evaluate(run.setup, "val").report
    name = run.setup.index.findings[0]
    assert report.findings[name].auroc is None and "no positives" in str(report.findings[name].reason)
    assert name not in report.macro_findings and report.macro_auroc is not None
    assert report.macro_auroc == pytest.approx(np.mean([report.findings[f].auroc for f in report.macro_findings]))
