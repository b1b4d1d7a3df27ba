"""A run's own recipe: kept in its folder with the target files that it names, so that the folder can be moved.

A run folder has the results of one experiment: of one network, data set and search method. With another of these the
recipe is refused there, for its results would take the place of the first one's. Everything else may change, and the
run goes on: targets and budgets are added to those that are there, and of other settings (steps, seeds, classes ...)
the stages that depend on them are made again, which is said.
"""

from __future__ import annotations

import logging
from io import StringIO
from pathlib import Path
from typing import Final

from ruamel.yaml import YAML

from deploy_prune.device.targets import is_path, load_target, split, with_setting
from deploy_prune.errors import RecipeError, RunFolderError
from deploy_prune.recipe.file import dump, flat, load_recipe
from deploy_prune.recipe.model import is_published
from deploy_prune.recipe.parts import Recipe
from deploy_prune.system.shell import write_text
from deploy_prune.training.processes import batches_a_step

NAME: Final = "recipe.yaml"
TARGETS: Final = "targets"
EXPERIMENT: Final = ("task", "model.source", "data.source", "search.method")
"""What a run folder's results are of."""
_NO_RESULT: Final = frozenset({"name", "targets", "budgets", "metric", "device", "threads", "track"})
"""Keys that no finished result depends on."""
_BATCHES: Final = ("accumulate", "processes")
"""Of these, only the product is part of a result."""
_LOG = logging.getLogger(__name__)


def require_same_experiment(recipe: Recipe, folder: Path) -> None:
    """Refuse a recipe whose results would replace another experiment's; warn of settings that replace results.

    Raises:
        RunFolderError: the folder has results of another network, data set or method; or its recipe can't be read.
    """
    if not (folder / NAME).is_file() or not any((folder / ".stages").glob("*.json")):
        return
    try:
        earlier = load_recipe(str(folder / NAME))
    except RecipeError as error:
        message = f"The run folder {folder} can't be resumed: {error} Give another name, or --fresh."
        raise RunFolderError(message) from error
    before, now = flat(earlier), flat(recipe)
    for key in EXPERIMENT:
        if before.get(key) != now.get(key):
            message = (
                f"The run folder {folder} has the results of another experiment, which these would replace: {key} is "
                f"{before.get(key)!r} there and {now.get(key)!r} here. Give this one a name of its own (--set "
                "name=...), or start again with --fresh."
            )
            raise RunFolderError(message)
    changed = [key for key in now if key.partition(".")[0] not in _NO_RESULT and before.get(key) != now[key]]
    changed = [key for key in changed if key not in {"model.weights", "data.root"}]  # these count by their content
    if batches_a_step(earlier) == batches_a_step(recipe):
        changed = [key for key in changed if key not in _BATCHES]
    if changed:
        told = ", ".join(f"{key} {before.get(key)!r} -> {now[key]!r}" for key in changed[:5])
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        _LOG.warning("%s: other settings than before (%s%s); what depends on them is replaced", folder, told, more)


def write(recipe: Recipe, folder: Path) -> None:
    """Write recipe.yaml, with absolute paths, and a copy of each target file of the user's own in targets/."""
    targets = [_kept(name, folder) if is_path(name) else name for name in recipe.targets]
    weights, root = recipe.model.weights, recipe.data.root
    kept = weights if weights is None or is_published(weights) else str(Path(weights).absolute())
    model = recipe.model.model_copy(update={"weights": kept})
    data = recipe.data.model_copy(update={"root": root and str(Path(root).expanduser().absolute())})
    whole = recipe.model_copy(update={"targets": targets, "model": model, "data": data})
    write_text(folder / NAME, dump(whole))


def read(folder: Path) -> str:
    """The file's text."""
    return (folder / NAME).read_text(encoding="utf-8")


def load(folder: Path) -> Recipe:
    """The run's recipe; targets of the user's own are those in the folder, wherever it lies now.

    Raises:
        RecipeError: it can't be read.
    """
    recipe = load_recipe(str(folder / NAME))
    return recipe.model_copy(update={"targets": [_here(name, folder) for name in recipe.targets]})


def _here(name: str, folder: Path) -> str:
    base, setting = split(name)
    copied = folder / TARGETS / Path(base).name
    return with_setting(str(copied.absolute()), setting) if is_path(name) and copied.is_file() else name


def _kept(name: str, folder: Path) -> str:
    """The path of the target file's copy, in which the path of a benchmark program is absolute."""
    base, setting = split(name)
    target, source = load_target(base), Path(base)
    copied = (folder / TARGETS / f"{target.name}.yaml").absolute()
    text = source.read_text(encoding="utf-8")
    if target.program is not None:
        yaml, stream = YAML(typ="rt"), StringIO()
        tree = yaml.load(text)
        tree["program"] = str(Path(target.program).absolute())
        yaml.dump(tree, stream)
        text = stream.getvalue()
    if not copied.is_file() or not copied.samefile(source):
        write_text(copied, text)
    return with_setting(str(copied), setting)
