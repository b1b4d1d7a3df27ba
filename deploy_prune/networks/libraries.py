"""Import torchvision and timm, also beside a torch that can't load torchvision's compiled operators.

A torchvision that was built for CUDA can't load them beside a CPU-only torch, and then its import stops because the
schemas of two operators are missing. Networks don't call them; so declaring the two schemas is enough. Where the
compiled operators load, nothing is declared.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch
from torch.library import Library

from deploy_prune.errors import MissingDependencyError

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def import_torchvision() -> ModuleType:
    """The torchvision package.

    Raises:
        MissingDependencyError: it is not installed.
    """
    _require("torchvision", "torchvision")
    _declare_missing_operators()
    return importlib.import_module("torchvision")


def import_timm() -> ModuleType:
    """The timm package.

    Raises:
        MissingDependencyError: it is not installed.
    """
    _require("timm", "deploy-prune[timm]")
    import_torchvision()
    return importlib.import_module("timm")


def _require(package: str, requirement: str) -> None:
    if find_spec(package) is None:
        message = f"The package {package} is not installed: run `pip install '{requirement}'`."
        raise MissingDependencyError(message)


@cache  # the declarations live as long as the Library object
def _declare_missing_operators() -> Library | None:
    if _operators_load():
        return None
    library = Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    return library


def _operators_load() -> bool:
    """Whether torchvision's compiled operators load beside this torch (if so, they are loaded now)."""
    if hasattr(torch.ops.torchvision, "nms"):
        return True
    spec = find_spec("torchvision")
    folders = spec.submodule_search_locations if spec else None
    for library in (file for folder in folders or () for file in Path(folder).glob("_C*.*")):
        if library.suffix not in {".so", ".pyd", ".dylib"}:
            continue
        try:
            torch.ops.load_library(library)
        except (ImportError, OSError):
            continue
        return True
    return False
