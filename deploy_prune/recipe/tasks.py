"""The recipe of each task: they differ in what ``data`` has."""

from __future__ import annotations

from typing import Any, Final

from pydantic import Field

from deploy_prune.recipe.data import BoxesPart, MasksPart, Part, Shots
from deploy_prune.recipe.parts import (
    RETRAIN_DISTILL,
    RETRAIN_LR,
    SEARCH_LR,
    TASK_SCORES,
    Rate,
    Recipe,
    RetrainPart,
    Share,
    SourceSearchPart,
)


class OwnDataPart(Part):
    """Which examples, for a task of your own: its ``load`` gets this part, and reads of it what it needs."""

    root: str | None = Field(
        default=None, description="Where the files are. null: the variable DEPLOY_PRUNE_DATA, if the task reads it."
    )
    shots: Shots = Field(default=None, description="Training examples, as the task counts them. null: all.")
    args: dict[str, Any] = Field(default={}, description="Whatever else the task's load wants to know.")


class DetectionSearchPart(SourceSearchPart):
    """As a classifier's; a detector's few objects make for large gradients, and at 0.005 its loss went up 80 times."""

    lr: Rate = Field(default=0.001, description=SEARCH_LR)


class DetectionRetrainPart(RetrainPart):
    """As a classifier's; a detector learns more from the boxes than from its teacher's outputs, and at a higher rate.

    An SSDlite of half the latency, 300 steps, judged on BCCD's validation part (mAP; dense 52.8; one seed): 42.4 with a
    classifier's 0.001 and 0.9, 46.6 with 0.01 and 0.9, 48.3 with 0.003 and 0.5, 49.1 with these:
    `benchmarks/detection.py --validate --methods gate --points 50% --seeds 1 --retrain '{"lr": 0.003}'` and so on.
    """

    lr: Rate | None = Field(default=0.01, description=RETRAIN_LR)
    distill: Share = Field(default=0.5, description=RETRAIN_DISTILL)


class SegmentationSearchPart(SourceSearchPart):
    """As a classifier's; a loss over pixels bears less."""

    lr: Rate = Field(default=0.005, description=SEARCH_LR)


class OwnSearchPart(SourceSearchPart):
    """As a classifier's; of a loss of your own nothing is known."""

    lr: Rate = Field(default=0.002, description=SEARCH_LR)


class DetectionRecipe(Recipe):
    """One run for a detector."""

    data: BoxesPart = BoxesPart()  # type: ignore[assignment]
    search: DetectionSearchPart = DetectionSearchPart()
    retrain: DetectionRetrainPart = DetectionRetrainPart()


class SegmentationRecipe(Recipe):
    """One run for a network that gives every pixel a class."""

    data: MasksPart = MasksPart()  # type: ignore[assignment]
    search: SegmentationSearchPart = SegmentationSearchPart()


class OwnRecipe(Recipe):
    """One run for a task of your own."""

    data: OwnDataPart = OwnDataPart()  # type: ignore[assignment]
    search: OwnSearchPart = OwnSearchPart()

    @property
    def loaded_by(self) -> str:
        """The task."""
        return self.task


RECIPES: Final[dict[str, type[Recipe]]] = {
    "classification": Recipe, "detection": DetectionRecipe, "segmentation": SegmentationRecipe,
}  # fmt: skip
"""Task -> its recipe; of all others, `OwnRecipe`."""
BY_TASK: Final = {
    "data": "Which examples", "search": "Which method scores the channels",
    "retrain": "How the slim network is trained after the cut",
}  # fmt: skip
"""The parts whose keys or defaults are the task's, and what they say."""


def recipe_for(task: object) -> type[Recipe]:
    """The class of a task's recipe; an unknown task's is a classifier's, whose check names what there is."""
    if isinstance(task, str) and ":" in task:
        return OwnRecipe
    return RECIPES.get(str(task), Recipe)


def schema() -> dict[str, Any]:
    """The recipe's JSON schema (draft 2020-12), for editors that check YAML; ``data`` has the task's keys."""
    body = Recipe.model_json_schema()
    for name, what in BY_TASK.items():
        body["properties"][name] = {"description": f"{what}; keys and defaults are the task's.", "type": "object"}
    cases = []
    kinds: list[type[Recipe]] = [*RECIPES.values(), OwnRecipe]
    for kind in kinds:
        own = kind.model_json_schema()
        body["$defs"] |= own["$defs"]
        parts = {name: own["properties"][name] for name in BY_TASK}
        parts["score"] = {"enum": [*(score for task in _names(kind) for score in TASK_SCORES[task]), None]}
        cases.append({"if": _is_of(kind), "then": {"properties": parts}})
    title = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "deploy-prune recipe"}
    return title | {key: value for key, value in body.items() if key != "title"} | {"allOf": cases}


def _is_of(kind: type[Recipe]) -> dict[str, Any]:
    """The condition that a recipe is of this kind; one that names no task is a classifier's."""
    names = _names(kind)
    if kind is Recipe:
        return {"properties": {"task": {"enum": names}}}
    return {"required": ["task"], "properties": {"task": {"enum": names} if names else {"pattern": ":"}}}


def _names(kind: type[Recipe]) -> list[str]:
    """The tasks whose recipe this is; of `OwnRecipe` none."""
    return [name for name, of in RECIPES.items() if of is kind]
