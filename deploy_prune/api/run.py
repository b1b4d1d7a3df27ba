"""Run all of it from Python: a recipe, or a network and a task of your own."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from deploy_prune.errors import RecipeError
from deploy_prune.recipe.file import load_recipe, resolve
from deploy_prune.recipe.parts import Recipe
from deploy_prune.run.pipeline import Run, run
from deploy_prune.tasks import Task
from deploy_prune.types import Progress, silent


def run_recipe(
    recipe: Recipe | str | Path,
    out: str | Path = "runs",
    *,
    overrides: Sequence[str] = (),
    fresh: bool = False,
    jobs: int = 1,
    progress: Progress = silent,
) -> Run:
    """Run a recipe, as ``deploy-prune recipe`` does. Finished stages in ``out/NAME`` are not done again.

    Args:
        recipe: a `Recipe`, the path of a recipe, or a shipped recipe's name.
        out: the folder for run folders.
        overrides: as with ``--set``: ``["budgets=[50%]", "train.steps=100"]``. Only for a path or a name.
        fresh: do every stage again, measurements too.
        jobs: so many devices are measured on at once while budgets are planned.
        progress: called with the work's name, steps done and steps in all.

    Raises:
        DeployPruneError: the recipe can't be run. If only one target and budget fails, its row has the status "failed".
    """
    parsed = recipe if isinstance(recipe, Recipe) else load_recipe(str(recipe), overrides)
    return run(parsed, Path(out), progress, fresh, jobs=jobs)


def run_network(
    network: str | Callable[..., nn.Module],
    task: str | Task | Callable[[], Task] = "classification",
    *,
    targets: str | Sequence[str] = "host",
    budgets: str | Sequence[str] = "50%",
    out: str | Path = "runs",
    fresh: bool = False,
    jobs: int = 1,
    progress: Progress = silent,
    **keys: Any,
) -> Run:
    """Search, cut, retrain, export, check, measure and report any network for any task, without a recipe's file.

    What is written in ``out/NAME`` is a recipe's run: it can be resumed, exported, transferred and shown.

    Args:
        network: the function that builds it, or its name as in a recipe: ``torchvision:NAME``, ``module:callable``.
        task: ``classification``, ``detection`` or ``segmentation``; or a task of your own: a `Task`, a function that
            makes one, or ``module:callable``. It has the data, the loss and the score.
        targets: devices, as a recipe names them.
        budgets: as in a recipe: "50%", "12 ms", "2.5 MB".
        out: the folder for run folders.
        fresh: do every stage again, measurements too.
        jobs: so many devices are measured on at once while budgets are planned.
        progress: called with the work's name, steps done and steps in all.
        keys: a recipe's other keys: ``name``, ``data={"root": "photos"}``, ``model={"weights": "dense.pt"}``,
            ``train={"steps": 500}``. Default for ``name``: the network's.

    Raises:
        RecipeError: a key or value is wrong, or a function or a `Task` can't be found again by its name.
        DeployPruneError: as `run_recipe`.
    """
    source = _name_of(network, network, "network")
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", source.rpartition(":")[2]).strip("-._")
    values = {
        "name": plain, **keys, "task": _name_of(task, task.load if isinstance(task, Task) else task, "task"),
        "model": {**_mapping(keys.get("model", {})), "source": source},
        "targets": [targets] if isinstance(targets, str) else [*targets],
        "budgets": [budgets] if isinstance(budgets, str) else [*budgets],
    }  # fmt: skip
    return run(resolve(values, name="run_network"), Path(out), progress, fresh, jobs=jobs)


def _mapping(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        message = f"run_network: model: it should be a mapping such as {{'weights': 'dense.pt'}}, not {value!r}."
        raise RecipeError(message)
    return value


def _name_of(thing: object, near: object, key: str) -> str:
    """The ``module:name`` by which the run's files know a function or a `Task`. ``near``: what is of the same module.

    Raises:
        RecipeError: it can't be found again by a name.
    """
    if isinstance(thing, str):
        return thing
    module = str(getattr(near, "__module__", ""))
    names = vars(sys.modules[module]) if module in sys.modules and module != "__main__" else {}
    found = next((name for name, value in names.items() if value is thing), None)
    if found is None:
        message = (
            f"{key}: a run's files name it as module:name, and {thing!r} is no name of {module or 'a module'}. Define "
            "it at the top of a module of your own, not in a function, script or notebook, and import it from there."
        )
        raise RecipeError(message)
    return f"{module}:{found}"
