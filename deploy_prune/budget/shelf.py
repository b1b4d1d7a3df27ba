"""A shelf of artifacts: each is written once in a run, and whoever needs it gets it under a path of their own."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from pathlib import Path
from typing import Final

from deploy_prune.system.shell import linked, remove
from deploy_prune.types import Artifact

MOST_BYTES: Final = 2 * 2**30
"""A shelf keeps so much; beyond, what was not asked for the longest goes. A choice: it lies among temporary files."""


class Shelf:
    """Artifacts by what they depend on. Not for several threads at a time."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._kept: dict[Hashable, Artifact] = {}
        self._written = 0

    def take(self, key: Hashable, path: Path, folder: Path, write: Callable[[Path], Artifact]) -> Artifact:
        """The artifact of this key at ``path``, which ends as all of this key do: a hard link, where there can be one.

        ``write`` writes it, if it must be, to a path in ``folder`` with the same name.
        """
        found = self._kept.pop(key, None)
        if found is None:
            self._written += 1
            found = write(folder / f"artifact-{self._written}" / path.name)
        self._kept[key] = found
        path.parent.mkdir(parents=True, exist_ok=True)
        linked(found.path, path)
        self._make_room()
        return replace(found, path=path)

    def _make_room(self) -> None:
        sizes = {key: one.size_bytes for key, one in self._kept.items()}
        for key in list(self._kept)[:-1]:
            if sum(sizes.values()) <= self._most_bytes:
                break
            del sizes[key]
            remove(self._kept.pop(key).path.parent)
