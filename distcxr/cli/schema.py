"""`distcxr schema`: the JSON schema of recipes, for editors."""

from __future__ import annotations

import json


def run() -> int:
    """Print the JSON schema of recipes.

    With it editors complete and check recipes; recipes/recipe.schema.json holds the same.
    """
    from distcxr.recipe.keys import json_schema

    print(json.dumps(json_schema(), indent=1))
    return 0
