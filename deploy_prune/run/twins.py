"""Twins: stages of one key, in one run or in runs that lie beside each other. One is done, the others take its files.

The cache has, by key, where the last one that was finished lies and what its files' sums are; the files stay there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy_prune.errors import RunFolderError
from deploy_prune.system.cache import kept_json, store_json
from deploy_prune.system.locks import one_at_a_time
from deploy_prune.system.shell import atomic, digest, linked, shown


@dataclass(frozen=True, kw_only=True)
class Twins:
    """The twins of a stage.

    Attributes:
        runs: the folder of run folders in which they are looked for.
        since: those that were finished before (seconds since 1970) aren't taken.
        tell: gets a sentence if one is waited for or taken.
    """

    runs: Path
    since: float
    tell: Callable[[str], object]

    @contextmanager
    def alone(self, stage: str, key: str) -> Iterator[None]:
        """Wait until no other process does the stage of this key."""

        def wait() -> None:
            self.tell(f"{stage}: wait for another run that does the same")

        with one_at_a_time("stage", f"{shown(self.runs)} {key}", wait=wait):
            yield

    def take(self, stage: str, key: str, files: Sequence[Path]) -> str | None:
        """Make ``files`` those of a twin that is finished, by hard links if it can be; the place of the first of them.

        None if there is no twin, or its files aren't what they were.
        """
        kept = kept_json("stages", self._key(key), self.since)
        try:
            pairs = list(zip(_told(kept), files, strict=True))
            if not pairs or all(source == file for (source, _), file in pairs):
                return None
            for (source, known), file in pairs:
                _link(source, known, file)
        except (OSError, RunFolderError, ValueError):
            return None
        place = shown(pairs[0][0][0].parent)
        self.tell(f"{stage}: taken from {place}")
        return place

    def remember(self, key: str, files: Sequence[Path], sums: Sequence[str]) -> None:
        """These files are finished: a twin may take them."""
        told = [[shown(file.absolute()), known] for file, known in zip(files, sums, strict=True)]
        store_json("stages", self._key(key), told)

    def _key(self, key: str) -> dict[str, str]:
        return {"runs": shown(self.runs), "digest": key}


def _told(kept: Any) -> list[tuple[Path, str]]:
    """The files that the cache tells of, each with its sum; ValueError if it isn't that."""
    if not isinstance(kept, list) or not all(
        isinstance(one, list) and list(map(type, one)) == [str, str] for one in kept
    ):
        raise ValueError
    return [(Path(name), known) for name, known in kept]


def _link(source: Path, known: str, file: Path) -> None:
    """``file`` is ``source``, whose sum is ``known``; ValueError if it isn't."""
    with atomic(file) as temporary:
        linked(source, temporary)
        if digest(temporary) != known:
            raise ValueError
