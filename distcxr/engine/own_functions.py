"""The own parts of a recipe all at once: opened and tried before a run begins, and alike on all ranks."""

from __future__ import annotations

from distcxr.data.augment import input_side
from distcxr.data.augment.own_change import check_own_augment
from distcxr.data.dataset import Dataset
from distcxr.data.pixels.own_reader import check_own_reader
from distcxr.loss_building import check_own_loss
from distcxr.models.own_network import build_own
from distcxr.own_parts import PartError, open_parts
from distcxr.recipe import Recipe
from distcxr.runtime import Runtime

_NUM_FILES = 8


def with_sources(recipe: Recipe) -> Recipe:
    """The recipe with the SHA-256 of the source of each own part, all of which are opened.

    Raises PartError: as `open_parts`.
    """
    return recipe.model_copy(update={"sources": open_parts(recipe.own_functions(), recipe.sources)})


def with_same_sources(recipe: Recipe, runtime: Runtime) -> Recipe:
    """`with_sources` on all ranks; PartError on every one of them where a node has another source than rank 0."""
    recipe = with_sources(recipe)
    if not recipe.sources:
        return recipe
    of_main = runtime.decided_by_main(lambda: recipe.sources)

    def compare() -> None:
        if others := [key for key, sha256 in recipe.sources.items() if of_main[key] != sha256]:
            key = others[0]
            raise PartError(
                f"{key}={recipe.own_functions()[key]}: the source on rank {runtime.rank}'s node is not that of rank "
                "0's: bring the file to all nodes"
            )

    runtime.done_by_all(compare)
    return recipe


def check_functions(recipe: Recipe, dataset: Dataset) -> None:
    """Try the open parts of the recipe and its stages: the network and the functions on two made-up images, the reader
    on a training image.

    Raises:
        PartError: one that does not keep to its contract.
        ValueError: a reader that can't read any of the first few images.
    """
    num_classes, side = len(dataset.index.findings), input_side(recipe.data.image_size, recipe.augment)
    for key, name in recipe.own_functions().items():
        if key == "model.name":
            build_own(name, num_classes=num_classes, in_chans=recipe.model.in_chans, image_size=side)
        elif key == "data.reader":
            check_own_reader(name, dataset.index.files(dataset.splits.train[:_NUM_FILES]))
        elif key.endswith("loss.function"):
            check_own_loss(key, name, num_classes)
        elif key.endswith("augment.function"):
            check_own_augment(key, name, side)
