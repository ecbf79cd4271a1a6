"""The `distcxr` command: one verb a file, thin."""

from __future__ import annotations

import argparse
import sys

from distcxr.cli import cache, explain, phantom, report, schema, score


def main() -> int:
    """Run one verb; 2 is the exit code of a user's mistake."""
    parser = argparse.ArgumentParser(prog="distcxr", description="Tools beside training.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for verb in (cache, explain, phantom, report, schema, score):
        verb.add_parser(verbs)
    args = parser.parse_args()
    try:
        return int(args.run(args))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
