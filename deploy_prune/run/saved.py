"""A slim network's folder outside of a run: architecture.json, weights.safetensors, and the recipe that trained it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from deploy_prune.architecture.json_file import Architecture
from deploy_prune.recipe.data import at_size, sizes_of
from deploy_prune.recipe.parts import Recipe

ARCHITECTURE: Final = "architecture.json"
WEIGHTS: Final = "weights.safetensors"
RECIPE: Final = "transfer.yaml"
"""Of a folder that belongs to no run."""


def recipe_file(place: Path) -> Path | None:
    """Beside an architecture: the recipe of a folder that belongs to no run, or of the run that it is in."""
    files = [place / RECIPE, place.resolve().parent.parent / "recipe.yaml"]
    return next((file for file in files if file.is_file()), None)


def at_its_size(recipe: Recipe, described: Architecture) -> Recipe:
    """The recipe with the input size of this network, where it lists several."""
    if len(sizes_of(recipe.data)) < 2:
        return recipe
    *_, high, wide = described.input_shape
    return recipe.model_copy(update={"data": at_size(recipe.data, (high, wide))})
