"""Recipes: YAML files that describe a run, typed and validated once. `load_recipe` reads one."""

from distcxr.recipe.load import RecipeError, load_recipe
from distcxr.recipe.schema import Recipe

__all__ = ["Recipe", "RecipeError", "load_recipe"]
