"""Run a script on the null CUDA and see what it asked of the device:  python tests/nullcuda/run.py SCRIPT [ARG ...]

NULLCUDA_DEVICES=4 shows it four devices. Within the script, `from nullcuda import counts` reads the counts of a part;
`ranks.pretend(2, 4)`, before anything else, makes it rank 2 of four. All counts go to standard error at the end.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from nullcuda import build, counts, scenario

_INSIDE = "NULLCUDA_INSIDE"


def main() -> int:
    """Build it and begin anew under it; in there, run the script."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.stderr.write(__doc__ or "")
        return 2
    if _INSIDE in os.environ:
        code = _run_script(sys.argv[1:])
        sys.stderr.write(counts.read().table() + "\n")
        scenario.leave(code)
    reason = build.why_not()
    if reason:
        sys.exit(f"the null CUDA can't be built here: {reason}")
    with tempfile.TemporaryDirectory(prefix="nullcuda_") as folder:
        library = build.build(Path(folder))
        devices = int(os.environ.get("NULLCUDA_DEVICES", "1"))
        environment = scenario.environment(library, devices, **{_INSIDE: "1"})
        return subprocess.run([sys.executable, *sys.argv], env=environment).returncode


def _run_script(arguments: list[str]) -> int:
    """As if it had been started by itself; its exit code."""
    sys.argv = arguments
    sys.path[0] = str(Path(arguments[0]).resolve().parent)
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
