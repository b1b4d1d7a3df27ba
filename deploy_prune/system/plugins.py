"""The user's own code: ``module:callable``, importable or in the current directory."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from deploy_prune.errors import DeployPruneError

ADDED: Final[set[str]] = set()
"""Folders that were put on sys.path for the user's own code. They are for this process alone, not for its children."""


def import_callable(source: str, key: str, error: type[DeployPruneError]) -> Callable[..., Any]:
    """The callable that ``package.module:name`` names; arguments and errors as for `import_object`."""
    found = import_object(source, key, error)
    if not callable(found):
        message = f"{key}: {source!r} is not callable but of type {type(found).__name__}."
        raise error(message)
    return found  # type: ignore[no-any-return]


def import_object(source: str, key: str, error: type[DeployPruneError]) -> Any:
    """What ``package.module:name`` names. The current directory is searched last.

    Args:
        source: ``module:callable``.
        key: the recipe's key it comes from, for the message.
        error: the class to raise.

    Raises:
        DeployPruneError: (of the class ``error``) no such module, it fails to import, or it has nothing of that name.
    """
    module_name, _, name = source.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
        ADDED.add(here)
    importlib.invalidate_caches()
    try:
        found = getattr(importlib.import_module(module_name), name)
    except Exception as problem:
        message = f"{key}: {source!r} can't be imported: {problem}."
        raise error(message) from problem
    return found
