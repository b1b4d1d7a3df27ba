"""YAML that may come from anywhere: a small plain file, whose values are spelled out where they are.

No aliases (a few lines of them expand to gigabytes), merges or tags; bounded depth; plain values only.
"""

from __future__ import annotations

import stat
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent, ScalarEvent
from ruamel.yaml.reader import ReaderError

from deploy_prune.errors import DeployPruneError
from deploy_prune.system.strict_json import shown

MAX_BYTES: Final = 2**18
"""Of a file; the largest that is shipped has 9 kB."""
MAX_DEPTH: Final = 50
MAX_NUMBER: Final = 40
"""Characters of a number: more than any has that is meant."""


def read(path: Path, error: type[DeployPruneError]) -> Any:
    """What a YAML file says, with line numbers.

    Raises:
        DeployPruneError: (of the class ``error``) it can't be read, is no plain file, too large, not UTF-8, or as
            ``parse``; says file and line.
    """
    try:
        told = path.stat()
        if not stat.S_ISREG(told.st_mode) or told.st_size > MAX_BYTES:
            cause = "is no plain file" if told.st_size <= MAX_BYTES else f"is larger than {MAX_BYTES} bytes"
            message = f"{path}: it {cause}."
            raise error(message)
        with path.open("rb") as file:
            text = file.read(MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = problem.object[: problem.start].count(b"\n") + 1
        message = f"{path}:{line}: the file is not UTF-8 text (byte {problem.object[problem.start]:#04x}); save it as "
        message += "UTF-8."
        raise error(message) from problem
    except (OSError, ValueError) as problem:
        message = f"{path}: the file can't be read: {getattr(problem, 'strerror', None) or problem}."
        raise error(message) from problem
    return parse(text, lambda line: f"{path}:{line}", error)


def parse(text: str, where: Callable[[int], str], error: type[DeployPruneError]) -> Any:
    """YAML 1.2 with line numbers; ``where`` names a line.

    Raises:
        DeployPruneError: (of the class ``error``) it is no YAML, or not written as described above.
    """
    try:
        for line, problem in _refused(text):
            message = f"{where(line)}: {problem}."
            raise error(message)
        return YAML(typ="rt", pure=True).load(text)
    except DeployPruneError:
        raise
    except (YAMLError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError, AssertionError) as problem:
        line, cause = _problem(problem, text)
        message = f"{where(line)}: the YAML can't be read: {cause}."
        raise error(message) from problem


def odd(tree: Any) -> tuple[tuple[Any, ...], str] | None:
    """The first key or value that is not plain (text, number, boolean, nothing), and what is wrong with it."""
    level: deque[tuple[tuple[Any, ...], Any]] = deque([((), tree)])
    while level:
        key, node = level.popleft()
        if isinstance(node, dict):
            bad = [name for name in node if not isinstance(name, str)]
            if bad:
                return key, f"has the key {shown(bad[0])}, which is no text"
            level += [((*key, name), value) for name, value in node.items()]
        elif isinstance(node, list):
            level += [((*key, place), value) for place, value in enumerate(node)]
        elif not isinstance(node, bool | int | float | str | None):
            return key, f"is a {type(node).__name__.lower()}, which is not a value here; put it in quotes"
    return None


def plain(tree: Any) -> Any:
    """The tree without its line numbers: dicts, lists, and Python's own text, numbers, booleans and None."""
    if isinstance(tree, dict):
        return {str(key): plain(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [plain(value) for value in tree]
    return next((kind(tree) for kind in (bool, int, float, str) if isinstance(tree, kind)), None)


def _refused(text: str) -> Iterator[tuple[int, str]]:
    """Line and cause of what is not read."""
    depth = 0
    for event in YAML(typ="rt", pure=True).parse(text):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        line = event.start_mark.line + 1
        if depth > MAX_DEPTH:
            yield line, f"it is nested more than {MAX_DEPTH} deep"
        if isinstance(event, AliasEvent) or (isinstance(event, ScalarEvent) and event.value == "<<"):
            yield line, "aliases (*x) and merges (<<) are not read; write the values out"
        elif isinstance(event, NodeEvent) and event.anchor:
            yield line, "anchors (&x) and aliases are not read; write the values out"
        if isinstance(event, NodeEvent) and getattr(event, "tag", None):
            yield line, "tags (!x) are not read; write the plain value"
        if isinstance(event, ScalarEvent) and _giant(event):
            yield line, f"a number has more than {MAX_NUMBER} characters"


def _giant(event: ScalarEvent) -> bool:
    plain = event.style is None or event.style == ""
    return plain and len(event.value) > MAX_NUMBER and event.value.lstrip("+-")[:1].isdigit() and " " not in event.value


def _problem(error: Exception, text: str) -> tuple[int, str]:
    """Line and cause of what the YAML library says."""
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        return mark.line + 1 if mark else 1, str(error.problem or error.context).split(" with value")[0]
    if isinstance(error, ReaderError):
        return text.count("\n", 0, error.position) + 1, f"the character {text[error.position]!r} is not allowed"
    return 1, (str(error).splitlines() or [type(error).__name__])[0]
