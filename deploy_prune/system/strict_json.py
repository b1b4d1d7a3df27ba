"""JSON that may come from anywhere: plain files of a bounded size, bounded depth, finite numbers, the shape asked for.

Everything is counted before memory is asked for it. ``error`` is the class to raise, so that a file of a run and an
answer of a device fail as what they are.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

from pydantic import TypeAdapter, ValidationError

from deploy_prune.errors import DeployPruneError, printable

T = TypeVar("T")

MAX_BYTES: Final = 8 * 2**20
"""The largest file that we write has about 1 MB. Python needs up to 25 times a JSON text's size for what it says."""
MAX_DEPTH: Final = 64
"""Ours are nested 8 deep at most."""
MAX_DIGITS: Final = 19
"""Of a whole number: those of 2**63."""
MAX_SHOWN: Final = 80
"""Characters of a value that a message shows."""
_BRACKETS: Final = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


def read(path: Path, error: type[DeployPruneError], max_bytes: int = MAX_BYTES, finite: bool = True) -> Any:
    """What a JSON file says. ``finite``: as for ``parse``.

    Raises:
        DeployPruneError: (of the class ``error``) as ``read_text`` and ``parse``; the message begins with the path.
    """
    return parse(read_text(path, error, max_bytes), error, str(path), finite)


def read_text(path: Path, error: type[DeployPruneError], max_bytes: int = MAX_BYTES) -> str:
    """The text of a plain file; never waits, as reading a pipe would.

    Raises:
        DeployPruneError: (of the class ``error``) it is missing, no plain file, too large, or not UTF-8.
    """
    try:
        told = path.stat()
        if not stat.S_ISREG(told.st_mode):
            _refuse(error, f"{path} can't be read: it is no file.")
        if told.st_size > max_bytes:
            _refuse(error, f"{path} is larger than {max_bytes} bytes, which is no honest file of this kind.")
        with path.open("rb") as file:
            return file.read(max_bytes).decode("utf-8-sig")
    except (OSError, ValueError) as problem:
        message = f"{path} can't be read: {printable(problem, 200)}."
        raise error(message) from problem


def is_file(path: Path) -> bool:
    """Whether there is a plain file; not where the name is none that the system can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def parse(text: str, error: type[DeployPruneError], where: str, finite: bool = True) -> Any:
    """JSON without duplicate keys, NaN, infinities, giant numbers, and not deeper than ``MAX_DEPTH``.

    ``finite``: refuse NaN and infinities; our own files may have some, as a ratio without noise is infinite.

    Raises:
        DeployPruneError: (of the class ``error``) it isn't; the message begins with ``where``.
    """

    def refuse(problem: str) -> NoReturn:
        _refuse(error, f"{where}: {problem}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            again = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            refuse(f"the key '{printable(again, MAX_SHOWN)}' appears twice.")
        return found

    def whole(digits: str) -> int:
        if len(digits.lstrip("-")) > MAX_DIGITS:
            refuse(f"it is not JSON as we write it: a whole number of {len(digits)} digits.")
        return int(digits)

    def number(digits: str) -> float:
        found = float(digits)
        if not math.isfinite(found):
            refuse(f"{printable(digits, MAX_SHOWN)} is no number that can be here: it is not finite.")
        return found

    def constant(name: str) -> float:
        if finite:
            refuse(f"{name} is no number that can be here.")
        return float(name)

    _bound_depth(text, error, where)
    try:
        return json.loads(
            text, object_pairs_hook=unique, parse_int=whole, parse_float=number, parse_constant=constant,
        )  # fmt: skip
    except (ValueError, RecursionError) as problem:
        message = f"{where}: it is not JSON: {printable(problem, 200)}."
        raise error(message) from problem


def conform(kind: Callable[..., T], value: Any, error: type[DeployPruneError], where: str) -> T:
    """The value as ``kind``: a pydantic model, a dataclass, or a type such as ``dict[str, float]``, read strictly.

    Raises:
        DeployPruneError: (of the class ``error``) it has another shape; the sentence says where.
    """
    try:
        found: T = _adapter(kind).validate_json(json.dumps(value), strict=True)
    except ValueError as problem:
        message = f"{where}: {_first(problem)}"
        raise error(message) from problem
    return found


def figures(value: Any, error: type[DeployPruneError], where: str) -> Any:
    """The value, whose numbers can all be figures of a network: 0, or from 1e-30 to 1e18 in size.

    Raises:
        DeployPruneError: (of the class ``error``) one is beyond, so that what is computed of it would overflow.
    """
    level = [value]
    while level:
        node = level.pop()
        level += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        if isinstance(node, int | float) and node != 0 and not 1e-30 <= abs(node) <= 1e18:
            _refuse(error, f"{where}: {node} is no figure that a network can have.")
    return value


def shown(value: Any, limit: int = MAX_SHOWN) -> str:
    """A value of unknown origin, fit for a message."""
    return printable(value, limit)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _first(problem: ValueError) -> str:
    """One sentence on the first thing that is wrong."""
    if not isinstance(problem, ValidationError):
        return f"{printable(problem, 200)}."
    told = problem.errors(include_url=False, include_context=False)[0]
    key = ".".join(printable(step, MAX_SHOWN) for step in told["loc"])
    if told["type"] == "missing":
        return f"'{key}' is missing."
    if told["type"] == "extra_forbidden":
        return f"'{key}' is not known here."
    cause = printable(told["msg"].removeprefix("Value error, "), 200)
    return f"{f'{key!r} is ' if key else 'it is '}{printable(repr(told['input']), MAX_SHOWN)}: {cause}."


def _bound_depth(text: str, error: type[DeployPruneError], where: str) -> None:
    """Count brackets outside strings, before anything is made of them."""
    depth = 0
    for token in _BRACKETS.finditer(text):
        first = token[0][0]
        depth += (first in "[{") - (first in "]}")
        if depth > MAX_DEPTH:
            _refuse(error, f"{where}: it is not JSON as we write it: nested more than {MAX_DEPTH} deep.")


def _refuse(error: type[DeployPruneError], message: str) -> NoReturn:
    raise error(message)
