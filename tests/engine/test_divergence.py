"""A loss that is not finite: the run ends with what there is to know, or leaves the update out on all ranks."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from saved import tensors
from spoiled import spoiled

from distcxr.cli import main
from distcxr.data.augment import draw_parameters
from distcxr.data.order import TrainOrder
from distcxr.engine import fit as fitting
from distcxr.engine.checkpoint import newest_checkpoint
from distcxr.engine.replay_step import recipe_to_replay, replay
from distcxr.engine.step import Outcome, train_step
from distcxr.runfolder.diverged import diverged_files, read_diverged
from distcxr.runfolder.layout import last_folders

QUIET = ("eval.splits=[val]", "eval.pictures=0", "train.max_steps=7")
SKIP = ("train.on_nan=skip", *QUIET)


def images(folder: Path) -> None:
    """Enough for an epoch of 9 updates: no image is in two of the seven that are made."""
    tiny.phantom(folder, images=240)


def samples_of(folder: Path, step: int, rank: int = 0, world_size: int = 1) -> list[int]:
    """What a rank trains on in an update of the first epoch, counted from 1."""
    run = tiny.build(folder, f"output={folder / 'order'}", f"train.per_device_batch_size={16 // world_size}")
    order = run.training.loader.order
    assert isinstance(order, TrainOrder) and len(order) > 7
    _, rows = next(replace(order, plan=replace(run.setup.plan, rank=rank)).epoch(0, step - 1))
    run.setup.close()
    return [int(row) for row in rows]


def finite(folder: Path) -> list[str]:
    return [row["step"] for row in tiny.rows(folder / "steps.csv") if math.isfinite(float(row["loss"]))]


def test_a_run_that_diverges_keeps_its_losses_and_names_its_images(tmp_path: Path) -> None:
    """In its third update, which is read with the first two; before the first checkpoint."""
    images(tmp_path)
    bad = samples_of(tmp_path, 3)
    with (
        spoiled(bad[:2]),
        pytest.raises(ValueError, match="the loss is nan at step 3: training has diverged") as raised,
    ):
        tiny.train(tmp_path, *QUIET, f"output={tmp_path / 'run'}", "logging.every=20st", "checkpoint.every=9ep")
    message = str(raised.value)
    assert "begins anew, as there is no checkpoint yet" in message and "checkpoints" not in message
    assert "train.clip_norm (lower than 1)" in message and "train.precision" not in message
    assert "train.on_nan=skip" in message and "optim.lr (lower than 0.001)" in message
    assert finite(tmp_path / "run") == ["1", "2"] and len(tiny.rows(tmp_path / "run" / "steps.csv")) == 2

    (path,) = diverged_files(tmp_path / "run")
    assert path.name == "diverged-step-3.json" and str(path) in message
    content = read_diverged(path)
    assert (content["step"], content["epoch"], content["batch"], content["stage"]) == (3, 0, 2, 1)
    assert content["loss"] == "nan" and content["grad_norm"] == "nan" and not content["skipped"]
    (rank,) = content["ranks"]
    assert rank["sample_id"] == bad and rank["loss"] == "nan" and rank["files"][0].endswith(".png")
    recipe = tiny.recipe(tmp_path)
    positions = torch.arange(32, 48).numpy()
    assert torch.equal(
        torch.tensor(rank["augment"]), draw_parameters(recipe.augment, seed=recipe.seed, epoch=0, positions=positions)
    )
    norms = [step["grad_norm"] for step in content["steps"]]
    assert norms[2] == "nan" and all(isinstance(norm, float) and norm > 0 for norm in norms[:2])
    json.dumps(content, allow_nan=False)


def test_what_to_change_is_what_the_run_has(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After a checkpoint, without clipping: then a lower rate is taken, and only then."""
    images(tmp_path)
    run = (*QUIET, f"output={tmp_path / 'run'}", "checkpoint.every=1st", "train.clip_norm=null", tiny.BF16)
    with pytest.raises(ValueError, match="diverged") as raised, spoiled([samples_of(tmp_path, 6)[0]]):
        tiny.train(tmp_path, *run)
    message = str(raised.value)
    assert "at step 6" in message
    newest = last_folders(tmp_path / "run")[0]
    assert f"resumes from step {int(newest.name[-8:])}" in message
    assert "train.clip_norm=1" in message and "train.precision=no" in message and "output=" in message

    caplog.clear()
    with pytest.raises(ValueError, match="at step 6"), spoiled([samples_of(tmp_path, 6)[0]]):
        tiny.train(tmp_path, *run)
    assert "diverged at step 6, and nothing that would change that is different" in caplog.text
    with pytest.raises(ValueError, match="seed: 0 in the checkpoint, 1"):
        tiny.build(tmp_path, *run, "optim.lr=1e-4", "seed=1")

    caplog.clear()
    tiny.train(tmp_path, *run, "optim.lr=1e-4", "train.clip_norm=0.5")
    assert "diverged at step 6; it resumes from step 5 with optim.lr 0.0001 in place of 0.001" in caplog.text
    assert "train.clip_norm 0.5 in place of None" in caplog.text
    assert finite(tmp_path / "run") == [str(step) for step in range(1, 8)]
    with pytest.raises(ValueError, match=r"optim.lr: 0.0001 in the checkpoint, 0.001"):  # step 6 is behind it
        tiny.build(tmp_path, *run)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@tiny.worlds(1, 2)
def test_a_skipped_update_is_one_that_was_not_made(tmp_path: Path, world_size: int, optimizer: str) -> None:
    """The first, before there are moments, and the fifth, spoiled on the last rank alone; weights, moments, buffers."""
    if tiny.on_main(world_size):
        images(tmp_path)
    torch.distributed.barrier()
    common = (*SKIP, f"optim.name={optimizer}", "train.ema=0.9", f"train.per_device_batch_size={8 // world_size}")
    last = world_size - 1
    bad = [samples_of(tmp_path, step, last, world_size)[-1] for step in (1, 5)]
    with spoiled(bad):
        tiny.train(tmp_path, *common, f"output={tmp_path / 'skipped'}", "train.max_steps=7")

    step = train_step

    def leaving_out(run: Any, micro_batches: Sequence[Any]) -> Outcome:
        if run.state.step + 1 not in (1, 5):
            return step(run, micro_batches)
        run.ema.update(run.state.step)
        return Outcome(torch.tensor(0.0), torch.tensor(0.0), torch.tensor(False))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "train_step", leaving_out)
        tiny.train(tmp_path, *common, f"output={tmp_path / 'reference'}", "train.max_steps=7")
    if tiny.on_main(world_size):
        ours, theirs = (tensors(last_folders(tmp_path / name)[0]) for name in ("skipped", "reference"))
        assert ours.keys() == theirs.keys()
        moments = [name for name in ours if name.startswith("optimizer.")]
        assert len(moments) > 40 and all(value.isfinite().all() for value in ours.values())
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
        files = diverged_files(tmp_path / "skipped")
        assert [read_diverged(path)["step"] for path in files] == [1, 5]
        shares = [rank["loss"] for rank in read_diverged(files[0])["ranks"]]
        assert shares[last] == "nan" and all(isinstance(share, float) for share in shares[:last])
        assert read_diverged(files[0])["ranks"][last]["sample_id"][-1] == bad[0]
        assert set(finite(tmp_path / "skipped")) == {str(one) for one in range(1, 8) if one not in (1, 5)}
    torch.distributed.barrier()


def test_a_limit_of_skips_and_a_resumed_count(tmp_path: Path) -> None:
    """The same command ends at the same step; a higher limit resumes, and the checkpoint has the count so far."""
    images(tmp_path)
    bad = [samples_of(tmp_path, step)[0] for step in (2, 4, 6)]
    run = (*SKIP, f"output={tmp_path / 'run'}", "checkpoint.every=1st", "logging.every=3st")
    with spoiled(bad):
        for _ in range(2):
            with pytest.raises(
                ValueError, match=r"at step 6, after 2 updates left out \(train.max_skips=2\)"
            ) as raised:
                tiny.train(tmp_path, *run, "train.max_skips=2")
            assert "train.max_skips (more than 2)" in str(raised.value)
            assert "resumes from step 5" in str(raised.value)
        assert finite(tmp_path / "run") == ["1", "3", "5"]
        tiny.train(tmp_path, *run, "train.max_skips=3")
    assert finite(tmp_path / "run") == ["1", "3", "5", "7"]
    assert [read_diverged(path)["skipped"] for path in diverged_files(tmp_path / "run")] == [True, True, True]
    newest = newest_checkpoint(tmp_path / "run")
    assert newest is not None and newest.meta["state"]["num_skipped"] == 3
    (row,) = tiny.rows(tmp_path / "run" / "history.csv")
    losses = [float(row["loss"]) for row in tiny.rows(tmp_path / "run" / "steps.csv")]
    assert float(row["train_loss"]) == pytest.approx(sum(loss for loss in losses if math.isfinite(loss)) / 4)


class OddLoss:
    """A loss that is infinite at step 5, with the gradient of the one it wraps; and with a very large one at step 1."""

    of_pairs = False

    def __init__(self, run: tiny.Run, factor: float) -> None:
        self._run, self._loss, self._factor = run, run.training.loss, factor

    def __call__(self, *arguments: Any) -> torch.Tensor:
        loss, step = self._loss(*arguments), self._run.state.step + 1
        if step == 1:
            return loss + (loss - loss.detach()) * self._factor
        return loss + (math.inf if step == 5 else 0.0)

    def count(self, mask: torch.Tensor) -> torch.Tensor:
        return self._loss.count(mask)


@pytest.mark.parametrize("is_fp16", [False, True])
def test_what_counts_as_a_skip(tmp_path: Path, is_fp16: bool) -> None:
    """NaN at step 3, an infinite loss with a finite gradient at step 5; under fp16 GradScaler skips step 1 for itself.

    GradScaler on a CPU, as PyTorch has fp16 for GPUs alone; its arithmetic is the same.
    """
    images(tmp_path)
    changed = []

    def watching(run: Any, micro_batches: Sequence[Any]) -> Outcome:
        weight = next(run.setup.module.parameters())
        before = weight.detach().clone()
        outcome = train_step(run, micro_batches)
        changed.append(not torch.equal(before, weight))
        return outcome

    with spoiled([samples_of(tmp_path, 3)[0]]), pytest.MonkeyPatch.context() as patch:
        run = tiny.build(tmp_path, *SKIP, f"output={tmp_path / 'run'}", "train.clip_norm=null", "optim.name=sgd")
        if is_fp16:
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
            run.setup.runtime.accelerator.scaler = scaler
            run.training.optimizer = AcceleratedOptimizer(run.training.optimizer.optimizer, scaler=scaler)
        run.training.loss = OddLoss(run, 1e38 if is_fp16 else 0.0)  # type: ignore[assignment]
        patch.setattr(fitting, "train_step", watching)
        fitting.fit(run)
    run.setup.close()
    assert changed == [not is_fp16, True, False, True, False, True, True]
    assert run.state.num_skipped == 2
    files = [read_diverged(path) for path in diverged_files(tmp_path / "run")]
    assert [(file["step"], file["loss"]) for file in files] == [(3, "nan"), (5, "inf")]
    assert (files[0]["grad_scale"] is not None) == is_fp16
    assert all(value.isfinite().all() for value in run.setup.module.state_dict().values())


def test_a_step_is_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the checkpoint before it; one image alone is not finite, and the layer is named."""
    images(tmp_path)
    bad = samples_of(tmp_path, 6)[3]
    folder = tmp_path / "run"
    with spoiled([bad]):
        with pytest.raises(ValueError, match="at step 6"):
            tiny.train(tmp_path, *QUIET, f"output={folder}", "checkpoint.every=1st", "train.per_device_batch_size=8")
        content = read_diverged(folder / "diverged-step-6.json")
        AcceleratorState._reset_state(reset_partial_state=False)
        found = replay(content, folder, recipe_to_replay(content, []))
    assert found.checkpoint == folder / "checkpoints" / "last-00000005" and found.weights_step == 5
    assert math.isnan(found.loss) and math.isnan(found.grad_norm)
    assert found.layer == "layer2" and found.parameter is not None
    first, *others = found.samples
    assert [first.file] == [content["ranks"][0]["files"][3]] and len(others) == 15
    assert first.alone is not None and math.isnan(first.alone)
    assert all(one.alone is not None and math.isfinite(one.alone) for one in others)

    with spoiled([bad]):
        assert command("replay", str(folder), f"--json={tmp_path / 'found.json'}") == 0
    shown = capsys.readouterr().out
    assert "the first output that is not finite: layer2" in shown and first.file in shown.split("loss alone")[1]
    assert json.loads((tmp_path / "found.json").read_text())["samples"][0]["alone"] == "nan"


@pytest.mark.parametrize("loss", ["{name: bce}", "{name: combined, parts: [{name: bce}, {name: auc_margin}]}"])
def test_a_replayed_step_is_the_step(tmp_path: Path, capsys: pytest.CaptureFixture[str], loss: str) -> None:
    """Loss and gradient norm of a finite step, with dropout, from its own weights: as the run had them."""
    images(tmp_path)
    run = (
        *QUIET, f"loss={loss}", "model.name=test_efficientnet", "model.drop_rate=0.3", "train.per_device_batch_size=8",
    )  # fmt: skip
    with spoiled([samples_of(tmp_path, 2)[0]], layer="bn1"), pytest.raises(ValueError, match="at step 2"):
        tiny.train(tmp_path, *run, f"output={tmp_path / 'run'}", "checkpoint.every=1st", "logging.every=1st")
    content = read_diverged(tmp_path / "run" / "diverged-step-2.json")
    AcceleratorState._reset_state(reset_partial_state=False)
    found = replay(content, tmp_path / "run", recipe_to_replay(content, []))  # nothing is spoiled now
    tiny.train(tmp_path, *run, f"output={tmp_path / 'well'}", "train.max_steps=2", "logging.every=1st")
    expected = float(tiny.rows(tmp_path / "well" / "steps.csv")[1]["loss"])
    assert found.loss == pytest.approx(expected, rel=1e-5) and found.layer is None and found.parameter is None
    assert all(one.alone is not None and one.alone > 0 for one in found.samples)
    if "combined" in loss:
        return
    assert command("replay", str(tmp_path / "run" / "diverged-step-2.json")) == 0
    assert "everything is finite with these weights, which are those of the step" in capsys.readouterr().out

    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ValueError, match="made of other data: labels, train changed"):
        tiny.phantom(other, images=96)
        AcceleratorState._reset_state(reset_partial_state=False)
        replay(content, tmp_path / "run", recipe_to_replay(content, [f"data.root={other / 'phantom'}"]))
    assert command("replay", str(tmp_path)) == 2
    assert "has no diverged-step-*.json" in capsys.readouterr().err


def test_a_spike_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny.phantom(tmp_path)
    run = tiny.build(tmp_path, *QUIET, f"output={tmp_path / 'run'}")
    run.steps.recent.extend([0.1] * 30)
    fitting.fit(run)
    run.setup.close()
    lines = [record.getMessage() for record in caplog.records if "spikes" in record.getMessage()]
    assert lines[0].startswith("step ") and "times the median of the steps before (0.1)" in lines[0]


def command(*words: str) -> int:
    """`distcxr`, in this process."""
    AcceleratorState._reset_state(reset_partial_state=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["distcxr", *words])
        patch.setattr("distcxr.logs.start_logging", lambda console: None)  # it would take pytest's handlers
        return main()
