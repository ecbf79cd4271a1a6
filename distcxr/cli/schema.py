"""`distcxr schema`: the JSON schema of recipes, for editors."""

from __future__ import annotations

import argparse
import json

from distcxr.recipe.schema import json_schema


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser("schema", help="print the JSON schema of recipes")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the schema."""
    print(json.dumps(json_schema(), indent=1))
    return 0
