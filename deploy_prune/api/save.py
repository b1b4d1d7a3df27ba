"""Keep a slim network that was trained on: a folder that `load`, and the commands, take like a run's own."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from torch import Tensor, nn

from deploy_prune.architecture import json_file
from deploy_prune.errors import ArchitectureError, RunFolderError, WeightsError
from deploy_prune.networks.copies import copied, is_wrapped
from deploy_prune.recipe.file import dump, load_recipe
from deploy_prune.run.folder import save_tensors
from deploy_prune.run.saved import ARCHITECTURE, RECIPE, WEIGHTS, at_its_size, recipe_file
from deploy_prune.system.outputs import require_replaceable
from deploy_prune.system.shell import atomic, shown, write_text

_FILES: Final = frozenset({ARCHITECTURE, WEIGHTS, RECIPE})


def save(network: nn.Module, out: str | Path, *, like: str | Path) -> Path:
    """Save a slim network that `load` gave and that you trained on, with its architecture and its recipe.

    `load` takes the folder, and so do ``deploy-prune show``, ``transfer`` and ``export``; with ``--bundle``, export
    checks the network's artifact on the recipe's examples and writes a bundle of it.

    Args:
        network: the network, also compiled or in DataParallel. It stays as it is.
        out: the folder to write. It appears only when it is complete; an earlier saved network there is replaced.
        like: where the network came from: a run's TARGET/BUDGET folder, a transfer's folder or an earlier saved one. Of
            an architecture.json alone, no recipe is known, and export writes artifacts only.

    Returns:
        The folder.

    Raises:
        ArchitectureError: a tensor isn't there, is unknown or has another shape; or the architecture can't be read.
        WeightsError: a tensor has values that aren't finite.
        RunFolderError: the folder is in a run, or has other files; or ``like`` isn't there.
    """
    like, out = Path(like), Path(out)
    file = like / ARCHITECTURE if like.is_dir() else like
    if not file.is_file():
        message = f"There is no {shown(file)}; give the folder that the network was loaded from."
        raise RunFolderError(message)
    described = json_file.load(file)
    state = (copied(network) if is_wrapped(network) else network).state_dict()
    _require_fit(state, described)
    require_replaceable(out, "a saved network", _FILES.__contains__)
    recipe = recipe_file(file.parent)
    with atomic(out) as folder:
        folder.mkdir()
        write_text(folder / ARCHITECTURE, file.read_text(encoding="utf-8"))
        save_tensors(folder / WEIGHTS, state)
        if recipe is not None:
            write_text(folder / RECIPE, dump(at_its_size(load_recipe(str(recipe)), described)))
    return out


def _require_fit(state: dict[str, Tensor], described: json_file.Architecture) -> None:
    """Whether these are the architecture's tensors, with numbers in them."""
    wanted = {name: slim for name, (_, slim) in described.shapes.items() if slim is not None}
    for name in [*wanted, *state]:
        have = tuple(state[name].shape) if name in state else None
        if have != wanted.get(name):
            message = f"The network has {_shape(have)} for {name}; the architecture has {_shape(wanted.get(name))}."
            raise ArchitectureError(message)
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            message = f"{name} has values that aren't finite; the training has diverged."
            raise WeightsError(message)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else str(list(shape))
