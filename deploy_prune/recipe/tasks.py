"""The recipe of each task: they differ in what ``data`` has."""

from __future__ import annotations

from typing import Any, Final

from pydantic import Field

from deploy_prune.recipe.data import BoxesPart, MasksPart, Part, Shots
from deploy_prune.recipe.parts import Recipe


class OwnDataPart(Part):
    """Which examples, for a task of your own: its ``load`` gets this part, and reads of it what it needs."""

    root: str | None = Field(
        default=None, description="Where the files are. null: the variable DEPLOY_PRUNE_DATA, if the task reads it."
    )
    shots: Shots = Field(default=None, description="Training examples, as the task counts them. null: all.")
    args: dict[str, Any] = Field(default={}, description="Whatever else the task's load wants to know.")


class DetectionRecipe(Recipe):
    """One run for a detector."""

    data: BoxesPart = BoxesPart()  # type: ignore[assignment]


class SegmentationRecipe(Recipe):
    """One run for a network that gives every pixel a class."""

    data: MasksPart = MasksPart()  # type: ignore[assignment]


class OwnRecipe(Recipe):
    """One run for a task of your own."""

    data: OwnDataPart = OwnDataPart()  # type: ignore[assignment]


RECIPES: Final[dict[str, type[Recipe]]] = {
    "classification": Recipe, "detection": DetectionRecipe, "segmentation": SegmentationRecipe,
}  # fmt: skip
"""Task -> its recipe; of all others, `OwnRecipe`."""


def recipe_for(task: object) -> type[Recipe]:
    """The class of a task's recipe; an unknown task's is a classifier's, whose check names what there is."""
    if isinstance(task, str) and ":" in task:
        return OwnRecipe
    return RECIPES.get(str(task), Recipe)
