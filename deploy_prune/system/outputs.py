"""Where results may be written: never over a run's files, only over an earlier result of the same kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from deploy_prune.errors import RunFolderError
from deploy_prune.system.shell import files_of, shown

ARTIFACT: Final = frozenset(
    {
        "model.onnx", "model.onnx.data", "model.json", "build_engine.py", "engine.plan", "model.param", "model.bin",
        "Manifest.json",
    }
)  # fmt: skip
"""Files of artifacts that are folders; those of Core ML's packages are in Data beside the last one."""


def run_around(path: Path) -> Path | None:
    """The run folder that a path is, or lies in; it needs not be there."""
    whole = path.resolve()
    for place in (whole, *whole.parents):
        marks = (place / ".stages").is_dir() or (place / "provenance.json").is_file()
        if marks and (place / "recipe.yaml").is_file():
            return place
    return None


def require_outside_runs(path: Path) -> None:
    """Refuse to write where a run has its own files.

    Raises:
        RunFolderError: the path is in a run folder, and which.
    """
    if (run := run_around(path)) is not None:
        message = f"{shown(path)} is in the run folder {shown(run)}, whose files are the run's own; name another place."
        raise RunFolderError(message)


def require_replaceable(path: Path, what: str, is_ours: Callable[[str], bool]) -> None:
    """Refuse to replace what is no earlier result.

    Args:
        path: what is going to be written.
        what: the kind of result, in words.
        is_ours: whether a name in the folder is one that such a result has.

    Raises:
        RunFolderError: the path is in a run folder, or a folder with other files, and which.
    """
    require_outside_runs(path)
    if path.is_dir():
        others = [name for file in files_of(path) if not is_ours(name := file.relative_to(path).as_posix())]
        if others:
            message = f"{shown(path)} has {shown(others[0])}, which is not of {what} and would be lost; name another."
            raise RunFolderError(message)


def require_artifact_place(path: Path) -> None:
    """Refuse to write an artifact over anything but a file, or an artifact that is a folder.

    Raises:
        RunFolderError: the path is in a run folder, or a folder with other files, and which.
    """
    require_replaceable(path, "an artifact", lambda name: name in ARTIFACT or name.startswith("Data/"))
