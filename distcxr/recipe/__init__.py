"""What to do: recipes, typed and validated once. `load_recipe` is the way in."""

from distcxr.recipe.load import RecipeError, load_recipe
from distcxr.recipe.schema import Recipe

__all__ = ["Recipe", "RecipeError", "load_recipe"]
