"""Evaluating the model while it trains: the best so far, and what a validation decides."""

from __future__ import annotations

import logging

from distcxr.engine.evaluate import Scores, batch_losses, evaluate
from distcxr.engine.shown import show_validation
from distcxr.engine.state import Run
from distcxr.metrics.summary import Summary, area_text, summarise
from distcxr.runfolder import filenames
from distcxr.runfolder.history import write_validations
from distcxr.runfolder.whole import not_fatal
from distcxr.stall.signs import SIGNS

logger = logging.getLogger(__name__)


def validate(run: Run) -> bool:
    """Score the validation split; True when `eval.best_metric` is the best of the run so far.

    Raises:
        Interrupted: the run was asked to stop meanwhile; its state is as it was before.
    """
    with run.evaluated_weights(), SIGNS.validation(run.state.step):
        scores = evaluate(run.setup, "val", stop=run.stop.agreed)
    return take_in(run, scores)


def take_in(run: Run, scores: Scores) -> bool:
    """Log, keep and write the scores of a validation; True when they are the best of the run so far."""
    state = run.state
    auroc, metric = scores.report.macro_auroc, run.setup.recipe.eval.best_metric
    lr = run.stage.lr_at(max(0, state.step - state.stage_step - 1), state.validations)  # of the newest update
    score = by_metric(scores, metric)
    if run.scheduled(run.horizon.eval_every):
        state.validations.append(score)
    state.last_val = {"step": state.step, "val_loss": scores.loss, "val_auroc": auroc}
    findings = len(scores.report.macro_findings)
    shown = "AUROC undefined" if auroc is None else f"macro AUROC {auroc:.4f} of {findings} findings"
    more = [] if scores.loss is None else [f"loss {scores.loss:.4f}"]
    if scores.accuracy is not None:
        more.append(f"accuracy {scores.accuracy:.4f}")
    averaged = "" if run.ema is None else " (of the averaged weights)"
    improved = score is not None and (state.best_score is None or score > state.best_score)
    if improved:
        state.best_score, state.best_step = score, state.step
        more.append(f"the best {metric} so far")
    elif state.best_score is not None:
        more.append(f"best {metric} so far {abs(state.best_score):.4f} at step {state.best_step}")
    logger.info(f"step {state.step}: validation{averaged} {', '.join([shown, *more])}")
    logger.info(f"lr {lr:g}; AUROC: {by_finding(scores.report)}")
    members = by_member(run, scores)
    if members:
        each = (f"{name} {area_text(one.macro_auroc)} ({len(one.macro_findings)})" for name, one in members.items())
        logger.info(f"macro AUROC of each member (of so many findings): {', '.join(each)}")
    _write(run, scores, lr, is_best=improved)
    if run.scheduled(run.horizon.eval_every):
        _log_what_follows(run)
    if run.tracker:
        tags = {"val/loss": scores.loss, "val/accuracy": scores.accuracy} | best_so_far(run)
        tags |= {f"val/auroc_of_member/{name}": one.macro_auroc for name, one in members.items()}
        values = scores.report.scalars() | {tag: value for tag, value in tags.items() if value is not None}
        run.tracker.scalars(values, state.step)
        with SIGNS.validation(state.step):
            show_validation(run, scores)
    return improved


def by_metric(scores: Scores, metric: str) -> float | None:
    """What `eval.best_metric` makes of a validation, the higher the better; None where it is undefined."""
    negated = None if scores.loss is None else -scores.loss
    return {"auroc": scores.report.macro_auroc, "accuracy": scores.accuracy, "loss": negated}[metric]


def _write(run: Run, scores: Scores, lr: float, *, is_best: bool) -> None:
    """Keep the validation's row, in place of one of the same step, and write all of them to `validations.csv`."""
    state, best = run.state, best_so_far(run)
    row = {
        "step": state.step,
        "epoch": state.epoch - (state.batch == 0),
        "stage": state.stage,
        "val_loss": scores.loss,
        "val_auroc": scores.report.macro_auroc,
        "val_accuracy": scores.accuracy,
        "lr": lr,
        "best": next(iter(best.values()), None),
        "best_step": state.best_step,
        "is_best": int(is_best),
    } | {f"auroc_{name}": score.auroc for name, score in scores.report.findings.items()}
    state.validated = [*(old for old in state.validated if old["step"] != state.step), row]
    if run.setup.runtime.is_main:
        with not_fatal(run.folder / filenames.VALIDATIONS, "written whole after the next validation"):
            write_validations(run.folder, state.validated, batch_losses(run.setup, scores, state.step))


def _log_what_follows(run: Run) -> None:
    """Log what the newest validation has decided: an early end, or a lower rate."""
    state, stage = run.state, run.stage
    step, before = state.step - state.stage_step, state.validations[:-1]
    if step == run.horizon.total_steps:
        return
    if run.stage_ended:
        waited, metric = run.setup.recipe.train.early_stop.patience, run.setup.recipe.eval.best_metric
        logger.info(f"train.early_stop ends {stage.title or 'training'}: no better {metric} in {waited} validations")
    elif stage.lr_at(step, state.validations) < stage.lr_at(step, before):
        logger.info(f"the plateau lowers lr to {run.lr:g}")


def best_so_far(run: Run) -> dict[str, float]:
    """The best validation so far by its tag; empty where there is none."""
    best, metric = run.state.best_score, run.setup.recipe.eval.best_metric
    return {} if best is None else {f"val/{metric}/best": -best if metric == "loss" else best}


def by_member(run: Run, scores: Scores) -> dict[str, Summary]:
    """The figures of each member of a joint data set alone, by its name; none of any other data set.

    All members' images in one AUROC reward a network that knows from which of them an image is, where they differ in
    how common a finding is.
    """
    setup = run.setup
    names = setup.index.member_names(scores.rows)
    if names is None:
        return {}
    macro = setup.recipe.eval.macro_findings
    return {
        member.name: summarise("val", scores.scored.within(names == member.name), macro)
        for member in setup.index.members
        if (names == member.name).any()
    }


def by_finding(report: Summary) -> str:
    """AUROC of every finding, in one line."""
    return ", ".join(f"{name} {area_text(score.auroc)}" for name, score in report.findings.items())
