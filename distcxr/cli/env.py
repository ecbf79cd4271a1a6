"""`distcxr env`: what a bug report needs."""

from __future__ import annotations

import json
from typing import Annotated

import typer

_Json = Annotated[bool, typer.Option("--json", help="the same as JSON")]


def run(as_json: _Json = False) -> int:
    """Show versions, GPUs and settings of this machine, and what is missing with what would install it.

    Paste it into a bug report: it names no user and no secret, only the environment variables that change a run.
    """
    from distcxr.jobs.machine import describe_machine

    sections = describe_machine()
    if as_json:
        print(json.dumps(sections, indent=1))
        return 0
    width = max(len(name) for values in sections.values() for name in values)
    for section, values in sections.items():
        print(section)
        for name, text in values.items():
            print(f"  {name:{width}}  {text}")
    return 0
