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
    text = json.dumps(dict(key), sort_keys=True)
    path = cache_folder() / kind / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    kept = _read(path)
    if kept is not None and kept["key"] == json.loads(text):
        return kept["value"]
    value = compute()
    write_text(path, json.dumps({"key": json.loads(text), "value": value}, indent=1) + "\n")
    return value


def _read(path: Path) -> dict[str, Json] | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return kept if isinstance(kept, dict) and {"key", "value"} <= kept.keys() else None
