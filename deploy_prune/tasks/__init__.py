"""What a network is for: its data, its loss and its score."""

from __future__ import annotations

from typing import Final

from deploy_prune.errors import RecipeError
from deploy_prune.system.plugins import import_object
from deploy_prune.tasks.classification import CLASSIFICATION
from deploy_prune.tasks.detection import SCORES, detection
from deploy_prune.tasks.segmentation import SEGMENTATION
from deploy_prune.tasks.task import Drawn as Drawn
from deploy_prune.tasks.task import Objective as Objective
from deploy_prune.tasks.task import Score as Score
from deploy_prune.tasks.task import Task as Task

TASKS: Final[dict[str, tuple[Task, ...]]] = {
    "classification": (CLASSIFICATION,),
    "detection": tuple(detection(score) for score in SCORES),
    "segmentation": (SEGMENTATION,),
}
"""A recipe's ``task`` -> what it is, once for each score that its networks can be judged by; the first by default."""


def task_named(name: str, score: str | None = None) -> Task:
    """The task of a recipe: one of TASKS, or ``module:callable``, a Task or a function of no arguments that makes one.

    ``score``: what networks are judged by, one of the task's; None: its default. A task of the user's own has one.

    Raises:
        RecipeError: it can't be imported, fails, or is no Task.
    """
    if name in TASKS:
        return next(task for task in TASKS[name] if score in {None, task.score.name})
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
