"""A picture's mask of pixels in a file, and what its values mean."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import PIL

from deploy_prune.data.images import read_mask
from deploy_prune.data.in_workers import each
from deploy_prune.data.kept_scans import A_TIME, listed
from deploy_prune.data.object_masks import VOID
from deploy_prune.data.pictures import KIND, Array, Scan, array_digest, file_digest
from deploy_prune.errors import DataError
from deploy_prune.recipe.data import MasksPart
from deploy_prune.system.cache import cached_json

MAX_CLASSES: Final = VOID
_VALUES: Final = 65536  # that a mask of 16 bits can have
UNKNOWN: Final = -1


@dataclass(frozen=True, kw_only=True, eq=False)
class FileMask:
    """A mask in a file.

    ``orientation``: by which it is turned; ``table``: int16, value -> class, VOID or -1; ``content``: SHA-256 of the
    file's.
    """

    path: Path
    orientation: int
    table: Array
    content: bytes

    @property
    def digest(self) -> bytes:
        """SHA-256 of all of it."""
        return hashlib.sha256(self.content + array_digest(self.table) + bytes([self.orientation])).digest()

    def classes(self) -> Array:
        """uint8 [H, W]: 0 to C - 1, or VOID.

        Raises:
            DataError: the file can no longer be read, or is another one.
        """
        try:
            values = read_mask(self.path, self.orientation)
        except ValueError as error:
            message = f"data.root: {error}"
            raise DataError(message) from error
        if file_digest(self.path) != self.content:
            message = f"data.root: {self.path} is another one than when it was first read; leave the files as they are "
            message += "while they are used."
            raise DataError(message)
        found: Array = self.table[values.clip(0, _VALUES - 1)]
        return found.astype(np.uint8)


def kept_masks(
    masks: Sequence[tuple[Path, Scan]], table: Array, workers: int
) -> list[tuple[FileMask, tuple[int, ...]] | ValueError]:
    """Pictures' masks in files, and the classes that are in each, ascending; errors are values, too.

    What was found is kept in the cache for as long as the files' names, sizes and times stay the same, and their
    pictures' sizes. ``workers``: processes that read what isn't known yet.
    """
    found: list[tuple[FileMask, tuple[int, ...]] | ValueError] = []
    for start in range(0, len(masks), A_TIME):
        part = masks[start : start + A_TIME]
        sizes = repr([(scan.picture.size, scan.stored, scan.orientation) for _, scan in part])
        key = {
            "masks": listed([path for path, _ in part]), "sizes": hashlib.sha256(sizes.encode()).hexdigest(),
            "table": array_digest(table).hex(), "pillow": PIL.__version__,
        }  # fmt: skip
        rows = cached_json(KIND, key, lambda part=part: list(each(partial(_row, table), part, workers)))  # type: ignore[misc]
        found += [_read_row(path, table, row) for (path, _), row in zip(part, rows, strict=True)]
    return found


def _row(table: Array, given: tuple[Path, Scan]) -> Any:
    """As JSON has it: orientation, digest and classes as one text, or an error."""
    try:
        mask, classes = _in_file(*given, table)
    except ValueError as error:
        return {"fault": str(error)}
    return f"{mask.orientation} {mask.content.hex()} {' '.join(map(str, classes_in(classes)))}"


def _read_row(path: Path, table: Array, row: Any) -> tuple[FileMask, tuple[int, ...]] | ValueError:
    if isinstance(row, dict):
        return ValueError(row["fault"])
    orientation, content, *classes = row.split()
    mask = FileMask(path=path, orientation=int(orientation), table=table, content=bytes.fromhex(content))
    return mask, tuple(map(int, classes))


def classes_in(classes: Array) -> tuple[int, ...]:
    """Those that some pixel has, ascending."""
    return tuple(int(c) for c in np.unique(classes) if c != VOID)


def _in_file(path: Path, scan: Scan, table: Array) -> tuple[FileMask, Array]:
    """A picture's mask in a file, and its classes.

    Raises:
        ValueError: it can't be read, is of another size than its picture, or has values that are no class.
    """
    values, upright = read_mask(path), scan.picture.size
    is_turned = (values.shape[1], values.shape[0]) == scan.stored != upright
    orientation = scan.orientation if is_turned else 1
    classes = known(read_mask(path, orientation) if is_turned else values, table)
    _require_size(classes, upright)
    return FileMask(path=path, orientation=orientation, table=table, content=file_digest(path)), classes


def table_of(part: MasksPart) -> Array:
    """int16 [65536]: what each value of a mask means, a class, VOID or nothing (-1)."""
    table = np.full(_VALUES, UNKNOWN, np.int16)
    num = MAX_CLASSES if part.classes is None else len(part.classes)
    if part.values is not None and part.classes is not None and len(part.values) != num:
        message = f"data.values: there are {len(part.values)} and {num} names in data.classes; give one for each class."
        raise DataError(message)
    if num > MAX_CLASSES:
        message = f"data.classes: there are {num}; masks can have {MAX_CLASSES}."
        raise DataError(message)
    values = part.values or range(num)
    table[list(values)] = np.arange(len(values))
    if part.void is not None:
        table[part.void] = VOID
    return table


def known(values: Array, table: Array) -> Array:
    """The classes of a mask's values.

    Raises:
        ValueError: some have no class.
    """
    found: Array = table[values.clip(0, _VALUES - 1)]
    unknown = np.unique(values[(found == UNKNOWN) | (values < 0) | (values >= _VALUES)])
    if len(unknown):
        message = (
            f"it has the values {unknown[:5].tolist()}, which are no classes' (data.classes, data.values, data.void)"
        )
        raise ValueError(message)
    return found


def _require_size(mask: Array, size: tuple[int, int]) -> None:
    if mask.shape != (size[1], size[0]):
        message = f"it has {mask.shape[1]}x{mask.shape[0]} pixels, and its picture has {size[0]}x{size[1]}"
        raise ValueError(message)
