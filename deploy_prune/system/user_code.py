"""A digest of the user's own code behind ``module:callable``: its file, and every module of theirs that it imports.

Read from disk, so that what counts is what the next process would run. Imports are found in the source without running
it; one whose name is only known when it runs (``importlib.import_module(name)``) is not seen. Installed packages and
the standard library are not followed: they count by their versions.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import sys
import sysconfig
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

_LIBRARIES: Final = tuple(
    Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
_SITES: Final = frozenset({"site-packages", "dist-packages"})
_OWN: Final = "deploy_prune"


def code_digest(source: str) -> str:
    """64 hex digits for ``module:callable``: of the contents of all files that are the user's own.

    A module without a file (one that was typed in) can't be known again: it has another digest each time.
    """
    name = source.partition(":")[0]
    found, files = hashlib.sha256(), files_of(name)
    for module, path in sorted(files.items()):
        found.update(f"{module}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    if not files:
        found.update(uuid.uuid4().bytes)
    elif is_installed(files[name]):
        found.update(repr(version_of(name)).encode())
    return found.hexdigest()


def files_of(name: str) -> dict[str, Path]:
    """Module name -> file: of a module, and of all that it imports from outside of the installed packages.

    Of a module that is itself installed, only its own file; {} if there is no file of it.
    """
    path = _file_of(name)
    if path is None:
        return {}
    found = {name: path}
    if is_installed(path):
        return found
    roots, to_read = _roots(path.parents[name.count(".") + (path.name == "__init__.py")]), [name]
    while to_read:
        module = to_read.pop()
        for wanted in _imported(module, found[module]):
            for part, file in _located(wanted, roots):
                if part not in found:
                    found[part] = file
                    to_read.append(part)
    return found


def version_of(name: str) -> str | None:
    """The version of the distribution that a module's top package comes with; None if it is of none."""
    known = importlib.metadata.packages_distributions().get(name.partition(".")[0])
    return importlib.metadata.version(known[0]) if known else None


def _file_of(name: str) -> Path | None:
    """Of the module that is loaded, else of the one that would be."""
    if name in sys.modules:
        told = getattr(sys.modules[name], "__file__", None)
    else:
        spec = importlib.util.find_spec(name)
        told = spec.origin if spec is not None and spec.has_location else None
    return Path(told).resolve() if told else None


def _roots(first: Path) -> tuple[Path, ...]:
    """Where modules are looked for, but for the installed ones'; the module's own folder first."""
    folders = [first, *(Path(entry).resolve() for entry in sys.path), Path.cwd()]
    return tuple(dict.fromkeys(f for f in folders if f.is_dir() and not is_installed(f / "any.py")))


def is_installed(path: Path) -> bool:
    """Whether a file is of a library or of Python, wherever these are installed, and not of the user's own code."""
    return bool(_SITES & {*path.parts}) or any(path.is_relative_to(folder) for folder in _LIBRARIES)


def _imported(module: str, path: Path) -> Iterator[str]:
    """The names of all modules that a file may import, anywhere in it, and of what it takes from them."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # a compiled module, or one that can't run: its content counts all the same
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _located(name: str, roots: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """(name, file) of a module and of the packages around it, as far as they are the user's own."""
    parts = name.split(".")
    if parts[0] == _OWN or parts[0] in sys.stdlib_module_names:
        return
    for depth in range(1, len(parts) + 1):
        inner = Path(*parts[:depth])
        places = (root / each for root in roots for each in (inner / "__init__.py", inner.with_suffix(".py")))
        found = next((place for place in places if place.is_file()), None)
        if found is not None:
            yield ".".join(parts[:depth]), found
