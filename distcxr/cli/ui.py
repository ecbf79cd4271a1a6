"""`distcxr ui RUN ...`: a page on this machine to show runs an X-ray, and to look at their worst errors."""

from __future__ import annotations

import signal
import socket
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

_Runs = Annotated[
    list[Path], typer.Argument(metavar="RUN", show_default=False, help="run folders or checkpoints, one or several")
]
_Port = Annotated[int, typer.Option(metavar="N", min=1, max=65535, help="of this machine")]
_Device = Annotated[
    str | None,
    typer.Option(metavar="DEVICE", show_default=False, help="cpu, cuda or cuda:1 (default: the first GPU, or the CPU)"),
]


def run(runs: _Runs, port: _Port = 7860, device: _Device = None) -> int:
    """Look at runs in a browser.

    The page shows what runs make of an X-ray, their worst errors, and two runs side by side. It is for this machine
    alone (127.0.0.1), sends nothing elsewhere, and ends with Ctrl-C. On a remote machine forward the port: ssh -L
    7860:127.0.0.1:7860 HOST
    """
    if find_spec("nicegui") is None:
        raise ValueError("distcxr ui needs NiceGUI: pip install 'distcxr[ui]'")
    _check_free(port)

    import torch

    from distcxr.api import NOT_CLINICAL, open_runs
    from distcxr.data.readers.budget import thread_budget
    from distcxr.ui.server import HOST, serve

    torch.set_num_threads(thread_budget(1))  # as `predict`
    predictors = {str(path): open_runs([path], device) for path in dict.fromkeys(runs)}
    print(f"{NOT_CLINICAL}\nhttp://{HOST}:{port} (end with Ctrl-C)", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # an end as by Ctrl-C, which removes what was uploaded
    with suppress(KeyboardInterrupt):
        serve(predictors, port)
    return 0


def _check_free(port: int) -> None:
    """Now, not after the runs are loaded. Raises ValueError."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ValueError(f"port {port} can't be used ({error.strerror}): choose another with --port") from None
