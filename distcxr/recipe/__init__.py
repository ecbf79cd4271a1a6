"""Recipes: YAML files that describe a run, typed and validated once. `load_recipe` reads one."""

from distcxr.recipe.keys import Recipe
from distcxr.recipe.load import RecipeError, load_recipe

__all__ = ["Recipe", "RecipeError", "load_recipe"]
