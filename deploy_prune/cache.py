"""Small results that are slow to find again, kept per machine as JSON files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deploy_prune.shell import write_text

Json = Any
"""What ``json`` reads and writes."""


def cache_folder() -> Path:
    """``DEPLOY_PRUNE_CACHE``, or ``~/.cache/deploy-prune``."""
    named = os.environ.get("DEPLOY_PRUNE_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "deploy-prune"


def cached_json(kind: str, key: Mapping[str, Json], compute: Callable[[], Json]) -> Json:
    """The value of ``compute`` for this key, computed at most once per cache folder.

    The file holds the key beside the value. A file that can't be read, or holds another key, is written again.
    """
    kept = _read(_path(kind, key))
    if kept is not None and kept["key"] == _plain(key):
        return kept["value"]
    value = compute()
    store_json(kind, key, value)
    return value


def kept_json(kind: str, key: Mapping[str, Json]) -> Json | None:
    """The value kept for this key; None if there is none, or its file can't be read."""
    kept = _read(_path(kind, key))
    return kept["value"] if kept is not None and kept["key"] == _plain(key) else None


def store_json(kind: str, key: Mapping[str, Json], value: Json) -> None:
    """Keep a value for this key, whatever was kept before."""
    write_text(_path(kind, key), json.dumps({"key": _plain(key), "value": value}, indent=1) + "\n")


def _path(kind: str, key: Mapping[str, Json]) -> Path:
    text = json.dumps(dict(key), sort_keys=True)
    return cache_folder() / kind / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _plain(key: Mapping[str, Json]) -> Json:
    """The key as a file gives it back (tuples are lists there)."""
    return json.loads(json.dumps(dict(key), sort_keys=True))


def _read(path: Path) -> dict[str, Json] | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return kept if isinstance(kept, dict) and {"key", "value"} <= kept.keys() else None
