"""A picture's mask of pixels in a file, and what its values mean."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from deploy_prune.data.images import read_mask
from deploy_prune.data.object_masks import VOID
from deploy_prune.data.pictures import Array, Scan, array_digest, file_digest
from deploy_prune.errors import DataError
from deploy_prune.recipe.data import MasksPart

MAX_CLASSES: Final = VOID
_VALUES: Final = 65536  # that a mask of 16 bits can have
UNKNOWN: Final = -1


@dataclass(frozen=True, kw_only=True, eq=False)
class FileMask:
    """A mask in a file.

    ``orientation``: by which it is turned; ``table``: int16, value -> class, VOID or -1; ``digest``: SHA-256 of all,
    with the file's content.
    """

    path: Path
    orientation: int
    table: Array
    digest: bytes

    def classes(self) -> Array:
        """uint8 [H, W]: 0 to C - 1, or VOID.

        Raises:
            DataError: the file can no longer be read, or has other values.
        """
        try:
            values = read_mask(self.path, self.orientation)
        except ValueError as error:
            message = f"data.root: {error}"
            raise DataError(message) from error
        found: Array = self.table[values.clip(0, _VALUES - 1)]
        if found.min() == UNKNOWN:
            message = f"data.root: {self.path} is another file than when the run began; leave the files as they are."
            raise DataError(message)
        return found.astype(np.uint8)


def in_file(path: Path, scan: Scan, table: Array) -> tuple[FileMask, Array]:
    """A picture's mask in a file, and its classes.

    Raises:
        ValueError: it can't be read, is of another size than its picture, or has values that are no class.
    """
    values, upright = read_mask(path), scan.picture.size
    is_turned = (values.shape[1], values.shape[0]) == scan.stored != upright
    orientation = scan.orientation if is_turned else 1
    classes = known(read_mask(path, orientation) if is_turned else values, table)
    _require_size(classes, upright)
    digest = hashlib.sha256(file_digest(path) + array_digest(table) + bytes([orientation])).digest()
    return FileMask(path=path, orientation=orientation, table=table, digest=digest), classes


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
