"""What a Dataset is, told without reading its items: what it holds, the code of its classes, and the files it names."""

from __future__ import annotations

import hashlib
import os
import pickle
import stat
from collections.abc import Iterable
from pathlib import Path, PurePath
from types import FunctionType
from typing import Any, Final

import numpy as np
import PIL
import torch
from torch import Tensor
from torch.utils.data import Dataset

from deploy_prune.data.kept_scans import listed
from deploy_prune.data.pictures import array_digest, file_digest
from deploy_prune.errors import DataError
from deploy_prune.system.user_code import files_of

_FOLDERS: Final = 4  # in which names of files are looked for
_LONGEST: Final = 4096  # characters of a path
_PLAIN: Final = frozenset({int, float, bool, tuple, list, dict, type(None)})  # as a rule the most


def identity(items: Any, where: str) -> str:
    """SHA-256 (hexadecimal) of what the Dataset is: another one, if it would give other items.

    Of what it holds (arrays by their content), of the files with the code of its classes and functions (and what these
    import of the user's own), and of names, sizes and times of the files that it names, with their folder or without.
    A Dataset says it itself with a text ``digest``, as the library `datasets` does with its fingerprints.

    Raises:
        DataError: it holds what can't be told.
    """
    found = hashlib.sha256()
    told = _Told(found)
    try:
        told.dump(items)
    except Exception as error:  # of the user's own classes, too
        message = f"data.source: {where} can't be told from another Dataset ({type(error).__name__}: {error}); give it "
        message += "an attribute digest, a text that you change whenever its items change."
        raise DataError(message) from error
    files = {name: file for module in told.modules for name, file in files_of(module).items() if file.is_file()}
    for module in sorted(told.modules | {*files}):
        content = file_digest(files[module]) if module in files else b""
        found.update(repr((module, content)).encode())
    found.update(repr((PIL.__version__, listed(_files(told.names)))).encode())
    return found.hexdigest()


class _Told(pickle.Pickler):
    """Writes what an object holds, and notes names and modules on the way. What it writes is never read."""

    def __init__(self, found: Any) -> None:
        super().__init__(_Written(found), protocol=5)
        self.names, self.modules = set[str](), set[str]()

    def persistent_id(self, held: Any) -> Any:  # what is written instead of it; None: as it is
        if type(held) in _PLAIN:
            return None
        if isinstance(held, str | PurePath):
            self.names.add(os.fspath(held))
        elif isinstance(held, type):
            self.modules.add(str(held.__module__))
            return "class", held.__module__, held.__qualname__
        elif isinstance(held, FunctionType):
            self.modules.add(str(held.__module__))
            cells = tuple(cell.cell_contents for cell in held.__closure__ or ())
            code = held.__code__.co_firstlineno, held.__code__.co_code
            return "function", held.__module__, held.__qualname__, code, held.__defaults__, cells
        elif isinstance(held, set | frozenset):  # in no order
            return "set", sorted(map(repr, held))
        elif isinstance(held, Tensor):
            stored = held.detach().cpu().contiguous().flatten().view(torch.uint8)
            return "tensor", str(held.dtype), list(held.shape), array_digest(stored.numpy())
        elif isinstance(held, np.ndarray) and not held.dtype.hasobject:
            return "array", array_digest(held)
        elif (said := _said(held)) is not None:
            return "said", type(held).__qualname__, said
        return None


class _Written:
    """A file whose content is only hashed."""

    def __init__(self, found: Any) -> None:
        self.write = found.update


def _said(held: Any) -> str | None:
    """What a Dataset says itself."""
    if isinstance(held, Dataset) and isinstance(said := getattr(held, "digest", None), str):
        return said
    if type(held).__module__.partition(".")[0] == "datasets":
        return getattr(held, "_fingerprint", None)
    return None


def _files(names: Iterable[str]) -> list[Path]:
    """Those of the names that are files', as they are or in a folder that is among the names, too."""
    found, folders, others = list[Path](), list[str](), list[str]()
    for name in sorted(names):
        mode = _mode(name)
        if stat.S_ISREG(mode):
            found.append(Path(name))
        elif stat.S_ISDIR(mode):
            folders.append(name)
        else:
            others.append(name)
    below = (f"{folder}/{name}" for folder in folders[:_FOLDERS] for name in others)
    return found + [Path(path) for path in below if stat.S_ISREG(_mode(path))]


def _mode(path: str) -> int:
    """0: there is nothing."""
    if not 0 < len(path) < _LONGEST or "\0" in path:
        return 0
    try:
        return os.stat(path).st_mode  # noqa: PTH116 - a Path takes three times as long, and there may be millions
    except (OSError, ValueError):
        return 0
