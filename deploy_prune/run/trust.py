"""Code that a file names is not run unless the user allows it.

The recipe that a user gives as a command's argument is the user's own word. One that lies in a run folder or beside an
architecture is not: the folder may come from anyone.
"""

from __future__ import annotations

from pathlib import Path

from deploy_prune.architecture.json_file import require_trust
from deploy_prune.device.targets import load_targets
from deploy_prune.errors import RunFolderError
from deploy_prune.recipe.file import load_recipe
from deploy_prune.recipe.parts import Recipe
from deploy_prune.types import Target


def found_recipe(file: Path, trust: bool) -> Recipe:
    """The recipe in a run folder, or beside an architecture.

    Raises:
        RecipeError: it can't be read.
        ArchitectureError, RunFolderError: as ``trusted``.
    """
    return trusted(load_recipe(str(file)), file, trust)


def trusted(recipe: Recipe, file: Path, trust: bool) -> Recipe:
    """The recipe that was found in ``file``.

    Raises:
        ArchitectureError, RunFolderError: network, data or task is code of somebody's own, and ``trust`` is off.
    """
    require_trust(recipe.model, trust)
    if ":" in recipe.loaded_by and not trust:
        key = "task" if recipe.loaded_by == recipe.task else "data.source"
        _refuse(file, f"{key} is {recipe.loaded_by!r}, which is code")
    return recipe


def found_targets(recipe: Recipe, file: Path, trust: bool) -> dict[str, Target]:
    """The targets that a recipe in a run folder names, by name.

    Raises:
        TargetError: there is no such target, or its file is wrong.
        RunFolderError: one has a program to start on a device, and ``trust`` is off.
    """
    targets = {target.name: target for target in load_targets(recipe.targets, recipe.precision)}
    for target in targets.values():
        if target.program is not None and not trust:
            _refuse(file, f"the target {target.name!r} starts the program {target.program!r} on {target.runner}")
    return targets


def _refuse(file: Path, what: str) -> None:
    message = f"{file}: {what}; if you trust its author, allow it with --trust (from Python: trust=True)."
    raise RunFolderError(message)
