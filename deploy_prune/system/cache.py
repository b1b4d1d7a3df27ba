"""The cache: small results that are slow to compute, kept as JSON files for this machine."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deploy_prune.errors import RunFolderError
from deploy_prune.system import strict_json
from deploy_prune.system.locks import one_at_a_time
from deploy_prune.system.shell import write_text

MAX_AGE_DAYS: Final = 30.0
"""What was measured is measured again after so many days. A choice: a run that is resumed in the next weeks takes the
same way, and a new driver, firmware or cooling, which no key can see, is noticed within a month."""
DAY_S: Final = 86_400.0
KINDS: Final = ("granularity", "groups", "latency", "missed", "pictures", "stages", "table")
"""What the package keeps: a device's steps of channels, a network's groups, latencies of cuts, the time of the last
miss (older latencies of that network aren't used), what was found in files of pictures, where finished stages lie, and
latency tables."""
_ENTRY: Final = re.compile(r"[0-9a-f]{32}\.json")

Json = Any
"""What ``json`` reads and writes."""


def cache_folder() -> Path:
    """``DEPLOY_PRUNE_CACHE``, or ``~/.cache/deploy-prune``.

    Raises:
        RunFolderError: there is no home folder, and no other is named.
    """
    if named := os.environ.get("DEPLOY_PRUNE_CACHE"):
        return Path(named)
    try:
        return Path.home() / ".cache" / "deploy-prune"
    except RuntimeError:
        message = "There is no home folder to keep measurements in: set DEPLOY_PRUNE_CACHE to a folder, or HOME."
        raise RunFolderError(message) from None


def still_valid() -> float:
    """The moment (seconds since 1970) after which something must have been measured to be believed without asking."""
    return time.time() - MAX_AGE_DAYS * DAY_S


def cached_json(
    kind: str, key: Mapping[str, Json], compute: Callable[[], Json], since: float = 0.0,
    enough: Callable[[Json], bool] = lambda value: True,
) -> Json:  # fmt: skip
    """The value of ``compute`` for this key, computed at most once per cache folder.

    The file holds the key and the time beside the value. A file that can't be read, holds another key, is from before
    ``since`` (seconds since 1970), or whose value isn't ``enough``, is written again. Processes and threads that ask at
    the same time wait for the first.
    """
    if (kept := _kept(kind, key, since)) is not None and enough(kept["value"]):
        return kept["value"]
    with one_at_a_time(kind, str(_path(kind, key))):
        if (kept := _kept(kind, key, since)) is not None and enough(kept["value"]):
            return kept["value"]
        value = compute()
        store_json(kind, key, value)
        return value


def kept_json(kind: str, key: Mapping[str, Json], since: float = 0.0) -> Json | None:
    """The value kept for this key; None if there is none since then, or its file can't be read."""
    kept = _kept(kind, key, since)
    return None if kept is None else kept["value"]


def store_json(kind: str, key: Mapping[str, Json], value: Json) -> None:
    """Keep a value for this key, whatever was kept before; where that can't be, say so once: it only costs time."""
    entry = {"key": _plain(key), "written": time.time(), "value": value}
    try:
        write_text(_path(kind, key), json.dumps(entry, indent=1) + "\n")
    except RunFolderError:
        _say(f"What is found is not kept for the next time: the cache {cache_folder()} can't be written.")


@functools.cache
def _say(sentence: str) -> None:
    """Once."""
    print(f"deploy-prune: {sentence}", file=sys.stderr)


def _kept(kind: str, key: Mapping[str, Json], since: float) -> dict[str, Json] | None:
    kept = _read(_path(kind, key))
    return kept if kept is not None and kept["key"] == _plain(key) and _written(kept) >= since else None


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What the cache has of one kind. ``oldest_days`` and ``newest_days``: ages."""

    name: str
    entries: int
    size_bytes: int
    oldest_days: float
    newest_days: float


def kinds() -> tuple[Kind, ...]:
    """What is in the cache, by name."""
    found = []
    for name, files in _files().items():
        ages = [max(0.0, time.time() - file.stat().st_mtime) / DAY_S for file in files]
        size = sum(file.stat().st_size for file in files)
        found.append(Kind(name=name, entries=len(files), size_bytes=size, oldest_days=max(ages), newest_days=min(ages)))
    return tuple(found)


def clear(kind: str | None = None) -> int:
    """Remove what is in the cache, or what it has of one kind; how many entries there were. Other files stay."""
    gone = [file for name, files in _files().items() if kind in {None, name} for file in files]
    for file in gone:
        file.unlink(missing_ok=True)
    return len(gone)


def _files() -> dict[str, list[Path]]:
    """Kind -> its entries, for the kinds that have any."""
    found: dict[str, list[Path]] = {}
    for file in sorted(cache_folder().glob("*/*.json")):
        if _ENTRY.fullmatch(file.name):
            found.setdefault(file.parent.name, []).append(file)
    return found


def _written(kept: Mapping[str, Json]) -> float:
    """When an entry was written; 0 if it doesn't say so."""
    told = kept.get("written")
    return float(told) if isinstance(told, int | float) else 0.0


def _path(kind: str, key: Mapping[str, Json]) -> Path:
    text = json.dumps(dict(key), sort_keys=True)
    return cache_folder() / kind / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _plain(key: Mapping[str, Json]) -> Json:
    """The key as a file gives it back (tuples are lists there)."""
    return json.loads(json.dumps(dict(key), sort_keys=True))


def _read(path: Path) -> dict[str, Json] | None:
    try:
        kept = strict_json.read(path, RunFolderError, finite=False)
    except RunFolderError:
        return None
    return kept if isinstance(kept, dict) and {"key", "value"} <= kept.keys() else None
