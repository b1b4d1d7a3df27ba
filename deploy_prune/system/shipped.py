"""Where the files are that the package ships, recipes and targets: found without reading them."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

PACKAGE: Final = Path(__file__).resolve().parents[1]


def shipped_folder(kind: Literal["recipes", "edge_targets"]) -> Path:
    """The folder of one kind: in the package where it is installed, beside it in a checkout."""
    installed = PACKAGE / kind
    return installed if installed.is_dir() else PACKAGE.parent / kind


def shipped_files(kind: Literal["recipes", "edge_targets"]) -> dict[str, Path]:
    """Name -> file of every recipe or target that is shipped, by name."""
    return {path.stem: path for path in sorted(shipped_folder(kind).glob("*.yaml"))}
