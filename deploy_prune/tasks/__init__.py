"""What a network is for: its data, its loss and its score."""

from __future__ import annotations

from typing import Final

from deploy_prune.errors import RecipeError
from deploy_prune.system.plugins import import_object
from deploy_prune.tasks.classification import CLASSIFICATION
from deploy_prune.tasks.detection import detection
from deploy_prune.tasks.segmentation import SEGMENTATION
from deploy_prune.tasks.task import Objective as Objective
from deploy_prune.tasks.task import Score as Score
from deploy_prune.tasks.task import Task as Task

TASKS: Final[dict[str, Task]] = {
    "classification": CLASSIFICATION,
    "detection": detection(),
    "segmentation": SEGMENTATION,
}
"""A recipe's ``task`` -> what it is."""


def task_named(name: str) -> Task:
    """The task of a recipe: one of TASKS, or ``module:callable``, a Task or a function of no arguments that makes one.

    Raises:
        RecipeError: it can't be imported, fails, or is no Task.
    """
    if name in TASKS:
        return TASKS[name]
    found = import_object(name, "task", RecipeError)
    try:
        made = found if isinstance(found, Task) else found()
    except Exception as error:
        message = f"task: {name!r} failed: {type(error).__name__}: {error}"
        raise RecipeError(message) from error
    if not isinstance(made, Task):
        message = f"task: {name!r} gave {type(made).__name__}, not a deploy_prune.Task."
        raise RecipeError(message)
    return made
