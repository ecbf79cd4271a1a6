"""The `distcxr` command: one verb a file, thin. A verb imports what it needs when it runs, so that --help is fast."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

from distcxr.cli import (
    cache,
    checking,
    embed,
    env,
    explain,
    export,
    find_lr,
    import_weights,
    list_models,
    pack,
    phantom,
    predict,
    probe,
    replay,
    report,
    schema,
    score,
    start_training,
    status,
    submit,
    sweep,
    test_split,
    ui,
)
from distcxr.cli.options import SeveralWords
from distcxr.exit_codes import ENVIRONMENT, USER
from distcxr.own_parts import blamed
from distcxr.runfolder.storage import StorageError
from distcxr.version import __version__

_ABOUT = """Train and test chest X-ray classifiers.

Begin with distcxr phantom FOLDER and distcxr train quickstart data.root=FOLDER. RECIPE is a YAML file or the name of
one that comes with distcxr, key=value changes one of its keys, RUN is the folder that a training leaves.
"""

app = typer.Typer(
    name="distcxr", help=_ABOUT, pretty_exceptions_enable=False,
    rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
_CLASSES = {"env": env.FileMayBeLeftOut, "export": export.FileComesLast, "sweep": sweep.NumberMayBeLeftOut}
for _name, _verb in {
    "check": checking, "train": start_training, "test": test_split, "predict": predict, "report": report, "ui": ui,
    "sweep": sweep, "submit": submit, "status": status, "find-lr": find_lr, "probe": probe, "replay": replay,
    "score": score, "explain": explain, "embed": embed, "export": export, "import": import_weights,
    "models": list_models, "cache": cache, "pack": pack, "phantom": phantom, "schema": schema, "env": env,
}.items():  # fmt: skip
    app.command(_name, cls=_CLASSES.get(_name, SeveralWords))(_verb.run)


def _show_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _distcxr(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None: ...


def main() -> int:
    """Run one verb and return its exit code, see `exit_codes`; a user's mistake is reported in one sentence."""
    try:
        return int(app(sys.argv[1:] or ["--help"], prog_name="distcxr", standalone_mode=False) or 0)
    except typer.TyperException as error:  # of the command line itself
        message = " ".join(error.format_message().split()).rstrip(".")
        context = getattr(error, "ctx", None)
        see = f"; see {context.command_path} --help" if context else ""
        print(f"error: {message}{see}", file=sys.stderr)
        return error.exit_code
    except StorageError as error:
        print(f"error: {error}", file=sys.stderr)
        return ENVIRONMENT
    except Exception as error:
        return _user(error)


def _user(error: Exception) -> int:
    """Report an error that is the user's to mend, and return the exit code; others are raised again."""
    if part := blamed(error):
        traceback.print_exception(error)
        print(f"error: {type(error).__name__}; {part}", file=sys.stderr)
    elif isinstance(error, OSError):  # a full disk, a folder that can't be written
        where = "" if error.filename is None else f"{error.filename}: "
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
    elif isinstance(error, ValueError):
        print(f"error: {error}", file=sys.stderr)
    else:
        raise error
    return USER
