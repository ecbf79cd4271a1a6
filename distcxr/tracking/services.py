"""Weights & Biases and MLflow, through Accelerate's trackers: the scalars and texts that TensorBoard gets.

A service that can't be started before the first step ends the run, so a missing key is found at once. One that fails
later is logged once, and training continues without it.

Figures, tables and the recipe are sent. Images and the terminal's output, which may name files, are not: a data use
agreement such as MIMIC's forbids to pass on what belongs to patients.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from distcxr.runfolder import filenames
from distcxr.runfolder.whole import write_json

logger = logging.getLogger(__name__)

_NOT_A_NAME = re.compile(r"[^\w\-./: ]")


class Service(Protocol):
    """One run at a service."""

    run_id: str
    """The service's name of the run; given again, that run is resumed."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """One point on each curve."""

    def text(self, tag: str, markdown: str, step: int) -> None:
        """A text as it was written."""

    def close(self) -> None: ...


class Wandb:
    """A run at Weights & Biases. Its curves are over our own step, because theirs can't go back after a restart."""

    def __init__(self, project: str, name: str, folder: Path, config: Mapping[str, Any], run_id: str | None) -> None:
        from accelerate.tracking import WandBTracker

        self._tracker = WandBTracker(
            project, name=name, dir=str(folder), id=run_id, resume="allow", settings={"console": "off"}
        )
        self._tracker.start()
        self._tracker.store_init_configuration(dict(config))
        self._tracker.tracker.define_metric("*", step_metric="step")
        self.run_id = str(self._tracker.tracker.id)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._tracker.log({"step": step, **values})

    def text(self, tag: str, markdown: str, step: int) -> None:
        import wandb

        self._tracker.log({"step": step, f"text/{tag}": wandb.Html(f"<pre>{escape(markdown)}</pre>", inject=False)})

    def close(self) -> None:
        """Wait until what was logged has been sent, or written where there is no network."""
        self._tracker.finish()


class Mlflow:
    """A run of an MLflow experiment, stored where MLflow is set to (`MLFLOW_TRACKING_URI`)."""

    def __init__(self, project: str, name: str, folder: Path, config: Mapping[str, Any], run_id: str | None) -> None:
        from accelerate.tracking import MLflowTracker

        self._tracker = MLflowTracker(experiment_name=project, run_id=run_id, run_name=name)
        self._tracker.start()
        active = self._tracker.tracker
        # MLflow refuses to change a parameter, and keys such as train.max_steps may change on resume: the first stays.
        known = active.data.params
        self._tracker.store_init_configuration({key: value for key, value in config.items() if key not in known})
        self.run_id = str(active.info.run_id)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._tracker.log({_NOT_A_NAME.sub("_", tag): value for tag, value in values.items()}, step=step)

    def text(self, tag: str, markdown: str, step: int) -> None:
        """A text as it was written: an artifact with the step in its name."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{step:08d}.md"
            path.write_text(markdown, encoding="utf-8")
            self._tracker.log_artifact(str(path), artifact_path=_NOT_A_NAME.sub("_", tag))

    def close(self) -> None:
        """Mark the run as finished."""
        self._tracker.finish()


_SERVICES: dict[str, Callable[[str, str, Path, Mapping[str, Any], str | None], Service]] = {
    "wandb": Wandb,
    "mlflow": Mlflow,
}


def check_installed(services: Sequence[str]) -> None:
    """Refuse services without their package. Raises ValueError that names them, with the command that installs them."""
    absent = [name for name in services if find_spec(name) is None]
    if absent:
        raise ValueError(
            f"logging.trackers names {', '.join(absent)}, not installed here: pip install {' '.join(absent)}, or "
            "logging.trackers=[] (TensorBoard's curves are always written)"
        )


class Services:
    """All services that a run asked for; a service that fails is left out from then on."""

    def __init__(self, names: Sequence[str], *, project: str, folder: Path, config: Mapping[str, Any]) -> None:
        """Start a run at each of `logging.trackers`, or resume it; they are called by the run folder's last two names.

        The recipe goes there as `config`, which runs are compared by.
        Raises ValueError: a package is missing, or a service does not start a run.
        """
        check_installed(names)
        ids = _stored_ids(folder / filenames.TRACKERS)
        self._running: dict[str, Service] = {}
        folder = folder.absolute()
        for name in names:
            try:
                self._running[name] = _SERVICES[name](
                    project, f"{folder.parent.name}/{folder.name}", folder, _flat(config), ids.get(name)
                )
            except Exception as error:  # theirs, of any kind: no key, no network, another version
                raise ValueError(
                    f"logging.trackers: {name} does not start a run: {error}. "
                    + ("Log in with `wandb login`, or keep it here with WANDB_MODE=offline" if name == "wandb" else "")
                    + ("MLFLOW_TRACKING_URI sets where it is kept" if name == "mlflow" else "")
                ) from error
        if self._running:
            ids |= {name: service.run_id for name, service in self._running.items()}
            write_json(folder / filenames.TRACKERS, ids)

    def send(self, call: Callable[[Service], None]) -> None:
        """Make a call to every service that still answers."""
        for name, service in list(self._running.items()):
            try:
                call(service)
            except Exception as error:
                logger.warning(f"{name} failed, training continues without it: {error}")
                del self._running[name]
                with suppress(Exception):
                    service.close()


def _stored_ids(path: Path) -> dict[str, str]:
    try:
        ids = json.loads(path.read_text())
        return {str(name): str(run_id) for name, run_id in ids.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        logger.warning(f"{path} can't be read ({error}): services begin a new run")
        return {}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"optim.lr": 1e-4, ...}`; lists as text, which every service takes."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            plain = value is None or isinstance(value, bool | int | float | str)
            flat[f"{prefix}{key}"] = value if plain else json.dumps(value)
    return flat
