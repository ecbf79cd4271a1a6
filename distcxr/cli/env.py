"""`distcxr env`: what a bug report needs."""

from __future__ import annotations

import json as plain_json
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from distcxr.cli.options import check_writable, fill_in

_SCREEN = Path("-")
_Json = Annotated[
    Path | None,
    typer.Option(metavar="[FILE]", show_default=False, help="write everything as JSON; without FILE show that alone"),
]


class FileMayBeLeftOut(TyperCommand):
    """The verb with a `--json` that takes a file, as others' do, or nothing."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Write out the value that is left out."""
        return super().parse_args(ctx, fill_in(args, "--json", str(_SCREEN), lambda word: word[:1] not in ("", "-")))


def run(json: _Json = None) -> int:
    """Show versions, GPUs, settings, and what is not installed.

    With what would install it. Paste it into a bug report: it names no user and no secret, only the environment
    variables that change a run.
    """
    from distcxr.jobs.machine import describe_machine
    from distcxr.runfolder.whole import write_json

    if json != _SCREEN:
        check_writable(json)
    sections = describe_machine()
    if json == _SCREEN:
        print(plain_json.dumps(sections, indent=1))
        return 0
    width = max(len(name) for values in sections.values() for name in values)
    for section, values in sections.items():
        print(section)
        for name, text in values.items():
            print(f"  {name:{width}}  {text}")
    if json:
        write_json(json, sections, indent=2)
        print(f"written: {json}")
    return 0
