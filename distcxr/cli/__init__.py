"""The `distcxr` command: one verb a file, thin."""

from __future__ import annotations

import argparse
import os
import sys

from distcxr.cli import (
    cache,
    embed,
    explain,
    export,
    import_weights,
    pack,
    phantom,
    report,
    schema,
    score,
    status,
    submit,
    sweep,
)


def main() -> int:
    """Run one verb; 2 is the exit code of a user's mistake."""
    parser = argparse.ArgumentParser(prog="distcxr", description="Tools beside training.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for verb in (
        cache,
        embed,
        explain,
        export,
        import_weights,
        pack,
        phantom,
        report,
        schema,
        score,
        status,
        submit,
        sweep,
    ):
        verb.add_parser(verbs)
    args, late = parser.parse_known_args()
    if late and (not hasattr(args, "overrides") or any(word.startswith("-") or "=" not in word for word in late)):
        parser.error(f"unrecognized arguments: {' '.join(late)}")
    if late:  # key=value after an option: argparse takes one run of them alone
        args.overrides += late
    try:
        return int(args.run(args))
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, a folder that can't be written
        where = "" if error.filename is None else f"{error.filename}: "
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
