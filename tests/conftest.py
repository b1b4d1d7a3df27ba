"""What all tests share: one thread, and a cache of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
"""Before torch is imported, here and in what tests start: threads that wait for each other crawl on a busy machine."""


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests measure is kept apart from the user's own figures (a folder named from outside is used as it is)."""
    if "DEPLOY_PRUNE_CACHE" in os.environ:
        yield
        return
    folder: Path = tmp_path_factory.mktemp("cache")
    os.environ["DEPLOY_PRUNE_CACHE"] = str(folder)
    yield
    del os.environ["DEPLOY_PRUNE_CACHE"]
