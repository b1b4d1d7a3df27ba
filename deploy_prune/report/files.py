"""A run folder's JSON files, read for the page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from deploy_prune.errors import RunFolderError
from deploy_prune.system import strict_json

T = TypeVar("T")


def read(path: Path, convert: Callable[[Any], T]) -> T | None:
    """A JSON file through ``convert``, or None if it is not there.

    Raises:
        RunFolderError: it is damaged: no JSON, or ``convert`` can't make anything of it.
    """
    if not path.is_file():
        return None
    try:
        return convert(strict_json.read(path, RunFolderError, finite=False))
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RunFolderError) as error:
        message = f"{path} is damaged ({type(error).__name__}: {error}): delete it and run the recipe again."
        raise RunFolderError(message) from error


def shaped(kind: Callable[..., T], value: Any) -> T:
    """The value as ``kind``, read strictly.

    Raises:
        RunFolderError: it has another shape.
    """
    return strict_json.conform(kind, value, RunFolderError, "it")
