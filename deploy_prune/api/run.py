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
    """Do what a recipe says, as ``deploy-prune recipe`` does it; what is finished in ``out/NAME`` is not done again.

    Args:
        recipe: a `Recipe`, a recipe's file, or a shipped recipe's name.
        out: the folder in which the run's folder is made.
        overrides: as ``--set``: ``["budgets=[50%]", "train.steps=100"]``; only for a file or a name.
        fresh: do everything again, measurements included.
        progress: told of every step: see `types.Progress`.

    Raises:
        DeployPruneError: the recipe can't work. A target and budget that fails is a row with the status "failed".
    """
    parsed = recipe if isinstance(recipe, Recipe) else load_recipe(str(recipe), overrides)
    return run(parsed, Path(out), progress, fresh)
