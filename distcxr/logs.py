"""Where log lines go: to the terminal, and to a file of the run folder."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

from distcxr.error_file import is_reported_by_launcher


def start_logging(console: Console) -> None:
    """Log to the terminal: everything from rank 0, errors from the others, with their rank.

    All ranks read the same labels and lists, so rank 0's warnings stand for all. Lines about one node alone are logged
    with `extra={"from_any_rank": True}`.
    """
    rank = int(os.environ.get("RANK", "0"))
    handler: logging.Handler
    if sys.stderr.isatty():
        handler = RichHandler(console=console, show_path=False, show_level=False, log_time_format="%H:%M:%S")
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(_formatter(rank))
    if rank > 0:
        handler.addFilter(lambda record: record.levelno >= logging.ERROR or hasattr(record, "from_any_rank"))
    if is_reported_by_launcher():
        handler.addFilter(lambda record: not hasattr(record, "is_in_error_file"))
    handler.setLevel(logging.INFO)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("distcxr").setLevel(logging.INFO)


def log_to_file(path: Path) -> None:
    """Append rank 0's log to `path`."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_formatter(0))
    logging.getLogger().addHandler(handler)


def _formatter(rank: int) -> logging.Formatter:
    who = f"[rank {rank}] " if rank else ""
    return logging.Formatter(f"%(asctime)s {who}%(message)s", datefmt="%H:%M:%S")
