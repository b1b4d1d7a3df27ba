"""What reading files once said of them, kept in the cache for as long as their names, sizes and times stay the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import PIL

from deploy_prune.data.pictures import KIND, FilePicture, Scan, scans
from deploy_prune.system.cache import cached_json

A_TIME: Final = 4096
"""Files of an entry: some hundred kB, of which a changed file makes one new."""


def kept_scans(paths: Sequence[Path], workers: int, decode: bool) -> list[Scan | ValueError | None]:
    """What `pictures.scan` (``decode``) or `pictures.look` says of each file, in their order.

    Errors are values, too, and None stands for no file. A file counts as the same while its path, its size and the
    times of its last changes do. ``workers``: processes that read what isn't known yet.
    """
    found: list[Scan | ValueError | None] = []
    for start in range(0, len(paths), A_TIME):
        part = paths[start : start + A_TIME]
        key = {"files": listed(part), "decode": decode, "pillow": PIL.__version__}
        rows = cached_json(KIND, key, lambda part=part: list(map(_row, scans(part, workers, decode))))  # type: ignore[misc]
        found += [_scan(path, row) for path, row in zip(part, rows, strict=True)]
    return found


def listed(paths: Sequence[Path]) -> str:
    """SHA-256 (hexadecimal) of the files' names, sizes and times: of content and of metadata, which no program sets."""
    found = hashlib.sha256()
    for path in paths:
        try:
            about = path.stat()
            told = about.st_size, about.st_mtime_ns, about.st_ctime_ns
        except OSError:
            told = 0, 0, 0
        found.update(os.fsencode(path) + b"\0" + repr(told).encode())
    return found.hexdigest()


def _row(found: Scan | ValueError | None) -> Any:
    """As JSON has it: sizes, orientation and digest as one text, or an error; None if there is no file."""
    if not isinstance(found, Scan):
        return None if found is None else {"fault": str(found)}
    (wide, high), (stored_wide, stored_high) = found.picture.size, found.stored
    return f"{wide} {high} {stored_wide} {stored_high} {found.orientation} {found.picture.digest.hex()}"


def _scan(path: Path, row: Any) -> Scan | ValueError | None:
    if row is None:
        return None
    if isinstance(row, dict):
        return ValueError(row["fault"])
    *numbers, digest = row.split()
    wide, high, stored_wide, stored_high, orientation = map(int, numbers)
    picture = FilePicture(path=path, size=(wide, high), digest=bytes.fromhex(digest))
    return Scan(picture, (stored_wide, stored_high), orientation)
