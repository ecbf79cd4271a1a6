"""How a process that fails tells its launcher the reason, so that it stands in the last lines on the screen.

torchrun and `accelerate launch` give every rank a file for its error and show the first one in their summary. `distcxr
train` shows it alone, in place of the launcher's traceback.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
SHOWN_BY_LAUNCHER = "DISTCXR_ERRORS_SHOWN_BY_LAUNCHER"
"""Environment variable that `distcxr train` sets to 1: the ranks leave it to their launcher to show an error."""


def leave_reason(message: str) -> None:
    """Write why this process fails where its launcher looks for it; without a launcher nothing happens."""
    path = os.environ.get(_ERROR_FILE)
    if path:
        content = {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}
        Path(path).write_text(json.dumps({"message": content}))


def is_shown_by_launcher() -> bool:
    """Whether the launcher shows the reason itself, so that this process need not."""
    return os.environ.get(SHOWN_BY_LAUNCHER) == "1"
