"""Run a recipe from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deploy_prune.recipe.file import load_recipe
from deploy_prune.recipe.parts import Recipe
from deploy_prune.run.pipeline import Run, run
from deploy_prune.types import Progress, silent


def run_recipe(
    recipe: Recipe | str | Path,
    out: str | Path = "runs",
    *,
    overrides: Sequence[str] = (),
    fresh: bool = False,
    progress: Progress = silent,
) -> Run:
    """Run a recipe, as ``deploy-prune recipe`` does. Finished stages in ``out/NAME`` are not done again.

    Args:
        recipe: a `Recipe`, the path of a recipe, or a shipped recipe's name.
        out: the folder for run folders.
        overrides: as with ``--set``: ``["budgets=[50%]", "train.steps=100"]``. Only for a path or a name.
        fresh: do every stage again, measurements too.
        progress: called with the work's name, steps done and steps in all.

    Raises:
        DeployPruneError: the recipe can't be run. If only one target and budget fails, its row has the status "failed".
    """
    parsed = recipe if isinstance(recipe, Recipe) else load_recipe(str(recipe), overrides)
    return run(parsed, Path(out), progress, fresh)
