"""Where in the user's code a layer is that is left whole."""

from __future__ import annotations

import inspect
import site
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import nn

from deploy_prune.report.results import Place
from deploy_prune.types import Whole


def places(network: nn.Module, whole: Sequence[Whole]) -> tuple[Place | None, ...]:
    """For each of them, the class whose code uses the layer: the nearest module around it that isn't torch.nn's own.

    None where that class has no file, as of code that was typed into an interpreter.
    """
    return tuple(_place(network, one.name) for one in whole)


def _place(network: nn.Module, name: str) -> Place | None:
    for module in _around(network, name):
        kind = type(module)
        if kind.__module__.partition(".")[0] == "torch":
            continue
        try:
            file, line = inspect.getsourcefile(kind), inspect.getsourcelines(kind)[1]
        except (OSError, TypeError):
            continue
        return Place(kind=kind.__name__, file=_short(Path(str(file))), line=max(line, 1))
    return None


def _around(network: nn.Module, name: str) -> Iterator[nn.Module]:
    """The module of this name (or whose tensor it is), and those around it, from the innermost on."""
    path = name.partition("#")[0].split(".")
    for length in range(len(path), -1, -1):
        try:
            yield network.get_submodule(".".join(path[:length]))
        except AttributeError:  # a tensor's own name
            continue


def _short(file: Path) -> str:
    """Relative to the working folder or to where packages are, if it is below one of them."""
    for folder in (Path.cwd(), *map(Path, site.getsitepackages()), Path(sys.prefix)):
        if file.is_relative_to(folder):
            return str(file.relative_to(folder))
    return str(file)
