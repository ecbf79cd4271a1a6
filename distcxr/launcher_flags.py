"""What `accelerate launch` was asked for, against the recipe, the machine and the processes that it started."""

from __future__ import annotations

import os
import re
from pathlib import Path

from distcxr.processes import command_of
from distcxr.recipe import Recipe

_CONFIG = Path("accelerate") / "default_config.yaml"


def config_file() -> Path | None:
    """Accelerate's own settings of this user, which `accelerate launch` takes without a word; None without any."""
    cache = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    path = (cache / _CONFIG).expanduser()
    return path if path.is_file() else None


def overrule(recipe: Recipe) -> list[str]:
    """Take back what the launcher set in the environment against the recipe; one line for each disagreement."""
    lines = []
    mixed = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if mixed not in ("no", recipe.train.precision):  # also the launcher's default
        lines.append(f"the launcher sets mixed_precision={mixed}, the recipe train.precision={recipe.train.precision}")
    # This variable would override the code's own argument, and Accelerate would then divide every loss by it.
    accumulation = os.environ.pop("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if accumulation != "1":
        lines.append(
            f"the launcher sets gradient_accumulation_steps={accumulation}, the recipe "
            f"train.global_batch_size={recipe.train.global_batch_size}, from which accumulation follows"
        )
    dynamo = os.environ.pop("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if (dynamo != "no") != recipe.train.compile:
        if dynamo != "no":
            lines.append(f"the launcher sets dynamo_backend={dynamo}, the recipe train.compile=false")
    return [f"{line}: the recipe wins" for line in lines]


def check_asked() -> None:
    """Refuse to train in one process where several were asked for: without `--multi_gpu` Accelerate starts one on a
    machine without GPUs, and does not tell.

    Raises:
        ValueError: has the flag to add.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return
    words = command_of(os.getppid())
    launcher = " ".join(words[: next((at for at, word in enumerate(words) if word.endswith("launch.py")), len(words))])
    asked = re.search(r"--num[_-]processes[ =](\d+)", launcher)
    if re.search(r"accelerate(\.commands\.| )launch", launcher) and asked and int(asked[1]) > 1:
        raise ValueError(
            f"`accelerate launch --num_processes {asked[1]}` started one process: add --multi_gpu (without "
            f"GPUs as well), or use `distcxr train RECIPE --processes {asked[1]}`"
        )


def too_many_for_cores(local_world_size: int, cores: int) -> str | None:
    """What to log where ranks on a CPU share its cores; None where each has its own."""
    if local_world_size <= cores:
        return None
    config = config_file()
    why = f" ({config} may name that number)" if config else ""
    return f"{local_world_size} processes share {cores} core{'s' * (cores > 1)}{why}: --num_processes {cores} is faster"
