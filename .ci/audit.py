"""Known vulnerabilities of the packages in .venv, by pip-audit, which asks PyPI's advisory database.

Exit code 1 where one is known. Where the database can't be asked (no network, pip-audit not installed) nothing is known
either way: that is printed, and the exit code is 0, or 1 with DISTCXR_AUDIT=required, for machines that do reach it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

_TIMEOUT_S = 300
_COMMAND = ("-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--timeout", "10", "--skip-editable")


def main() -> int:
    try:
        done = subprocess.run([sys.executable, *_COMMAND], capture_output=True, text=True, timeout=_TIMEOUT_S)
        found = report_of(done.stdout)
        why = (done.stderr.strip().splitlines() or [f"pip-audit ended with exit code {done.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        found, why = None, f"no answer in {_TIMEOUT_S} s"
    if found is None:
        print(f"NOT AUDITED: whether dependencies have known vulnerabilities was not found out ({why[:300]})")
        return int(os.environ.get("DISTCXR_AUDIT") == "required")
    lines = [
        f"{package['name']} {package['version']}: {one['id']}, fixed in {one['fix_versions']}"
        for package in found
        for one in package.get("vulns", [])
    ]
    skipped = [package["name"] for package in found if "skip_reason" in package]
    print("\n".join(lines))
    print(f"{len(found) - len(skipped)} packages audited, {len(lines)} known vulnerabilities; not on PyPI: {skipped}")
    return int(bool(lines))


def report_of(text: str) -> list[dict[str, Any]] | None:
    """The packages of pip-audit's report; None where it made none, or one of nothing."""
    try:
        packages: list[dict[str, Any]] = json.loads(text)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return None
    return packages if any("skip_reason" not in package for package in packages) else None


if __name__ == "__main__":
    sys.exit(main())
