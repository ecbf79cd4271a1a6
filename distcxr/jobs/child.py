"""One run of a sweep, in a process of its own: `python -m distcxr.jobs.child PARENT PROCESSES CORES COMMAND...`.

It ends when the sweep that started it ends, however that comes about: no run is left behind on a GPU.
"""

from __future__ import annotations

import os
import signal
import sys

from distcxr.processes import end_with_parent


def main() -> None:
    """Bind this process to its cores, then train: here with one process, in ranks with more.

    PARENT is the sweep's process id, CORES are numbers joined by commas or `all`, COMMAND is what `launch.py` takes.
    """
    parent, processes, cores, *command = sys.argv[1:]
    end_with_parent(signal.SIGTERM)
    if os.getppid() != int(parent):  # it ended before it could be listened for
        sys.exit(1)
    if cores != "all":
        os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
    from distcxr.jobs.launcher import launch

    sys.exit(launch(command, int(processes)))


if __name__ == "__main__":
    main()
