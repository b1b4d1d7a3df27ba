"""The recipe's YAML file: read once and strictly, every error with its line; written back as resolved."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from math import isfinite
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from deploy_prune.errors import RecipeError, perhaps
from deploy_prune.recipe.parts import Recipe
from deploy_prune.recipe.tasks import recipe_for
from deploy_prune.system import strict_yaml
from deploy_prune.system.shipped import shipped_files

Key = tuple[int | str, ...]
"""Where a value is: ("train", "lr"), ("budgets", 0)."""

_PHRASES: Final = {
    "missing": "this key is missing",
    "model_type": "it should be a mapping of keys to values",
    "dict_type": "it should be a mapping of keys to values",
    "list_type": "it should be a list, as in [a, b]",
    "string_type": "it should be text (in quotes if it looks like a number)",
    "finite_number": "it should be a finite number",
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the values came from: the file's tree with its line numbers, and what --set changed."""

    name: str
    tree: CommentedMap
    overrides: dict[Key, str] = field(default_factory=dict)

    def where(self, key: Key) -> str:
        """Say "file:line" of the key, or of the nearest key around it; or the --set option that gave it."""
        for path, text in reversed(self.overrides.items()):
            if key[: len(path)] == path or (path[: len(key)] == key and not self._has(key)):
                return f"--set {text}"
        return f"{self.name}:{self.line(key)}" if len(self.tree) else self.name

    def line(self, key: Key) -> int:
        """The key's line in the file, from 1; of the nearest key around it if the file does not have it."""
        node: Any = self.tree
        line = node.lc.line
        for part in key:
            if isinstance(node, CommentedMap) and part in node:
                line = node.lc.key(part)[0]
            elif isinstance(node, CommentedSeq) and isinstance(part, int) and part < len(node):
                line = node.lc.item(part)[0]
            else:
                break
            node = node[part]
        return int(line or 0) + 1

    def _has(self, key: Key) -> bool:
        node: Any = self.tree
        for part in key:
            if not isinstance(node, CommentedMap) or part not in node:
                return False
            node = node[part]
        return True


def shipped() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return shipped_files("recipes")


def find(name_or_path: str) -> Path:
    """The file of a recipe: a path if the file exists, else a shipped recipe's name, with or without .yaml.

    Raises:
        RecipeError: there is no such file or recipe.
    """
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    known = shipped()
    name = name_or_path.removesuffix(".yaml")
    if name in known:
        return known[name]
    message = f"There is no recipe {name_or_path!r}: no such file, and the shipped recipes are {', '.join(known)}."
    raise RecipeError(message + perhaps(name, known))


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name or path. ``overrides``: "key.sub=value" each, the value in YAML; later ones win.

    Raises:
        RecipeError: it can't be found or read, or a key or value is wrong; says file and line, or which --set.
    """
    return validated(*read_values(name_or_path, overrides))


def read_values(name_or_path: str, overrides: Sequence[str] = ()) -> tuple[dict[Any, Any], Source]:
    """A recipe's values, as plain as the file has them, and where they came from; arguments as `load_recipe`.

    Raises:
        RecipeError: it can't be found or read.
    """
    path = find(name_or_path)
    tree = strict_yaml.read(path, RecipeError)
    if not isinstance(tree, CommentedMap):
        found = "is empty" if tree is None else "is not a mapping of keys to values"
        message = f"{path}:1: the recipe {found}; it needs at least the keys name and model."
        raise RecipeError(message)
    source = Source(name=str(path), tree=tree)
    values = _plain(tree, source)
    for text in overrides:
        _override(values, text, source)
    return values, source


def resolve(values: Mapping[str, Any], overrides: Sequence[str] = (), name: str = "the recipe") -> Recipe:
    """A recipe from plain values, as a file's would be read. ``overrides`` as for `load`; ``name``: for messages.

    Raises:
        RecipeError: a key or value is wrong.
    """
    source, changed = Source(name=name, tree=CommentedMap()), copy.deepcopy(dict(values))
    for text in overrides:
        _override(changed, text, source)
    return validated(changed, source)


def dump(recipe: Recipe) -> str:
    """The recipe as YAML, every default written out; reads back to an equal recipe."""
    stream = StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.sort_base_mapping_type_on_output = False, False  # type: ignore[assignment]
    yaml.allow_unicode, yaml.width = False, 2**31  # escaped and unfolded: some characters come back as line ends
    yaml.representer.ignore_aliases = lambda value: True
    yaml.dump(recipe.model_dump(), stream)
    return stream.getvalue()


def flat(recipe: Recipe) -> dict[str, Any]:
    """Every setting by its whole key, as in train.lr; lists and the user's own mappings (args, options) are values."""

    def walk(values: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            if isinstance(value, Mapping) and key not in {"args", "options"}:
                yield from walk(value, f"{above}{key}.")
            else:
                yield f"{above}{key}", value

    return dict(walk(recipe.model_dump(), ""))


def _plain(node: Any, source: Source, key: Key = ()) -> Any:
    """The tree as plain dicts, lists, text, numbers, booleans and None."""
    if isinstance(node, dict):
        return {k: _plain(v, source, (*key, k)) for k, v in node.items()}
    if isinstance(node, list):
        return [_plain(v, source, (*key, i)) for i, v in enumerate(node)]
    if isinstance(node, float) and not isfinite(node):
        message = f"{source.where(key)}: {_dotted(key)}: it should be a finite number, not {node}."
        raise RecipeError(message)
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    if node is None:
        return None
    kind_found = type(node).__name__.lower()
    message = f"{source.where(key)}: {_dotted(key)}: a {kind_found} is not a value here; put it in quotes."
    raise RecipeError(message)


def _override(values: dict[Any, Any], text: str, source: Source) -> None:
    """Write one "key.sub=value" into the values."""
    dotted, equals, written = text.partition("=")
    key = tuple(dotted.strip().split("."))
    if not equals or not all(key):
        message = f"--set {text}: write it as --set key=value or --set part.key=value."
        raise RecipeError(message)
    source.overrides[key] = text
    tree = strict_yaml.parse(written, lambda line: f"--set {text}", RecipeError)
    value = _plain(tree, Source(name="", tree=tree, overrides={(): text}), key)
    inner = values
    for depth, part in enumerate(key[:-1], 1):
        inner = inner.setdefault(part, {})
        if not isinstance(inner, dict):
            message = f"--set {text}: {_dotted(key[:depth])} has no keys of its own; set it as a whole."
            raise RecipeError(message)
    inner[key[-1]] = value


def validated(values: dict[Any, Any], source: Source) -> Recipe:
    """The recipe that has these values; RecipeError, with their place, if it can't have one."""
    kind = recipe_for(values.get("task", "classification"))
    try:
        return kind.model_validate(values, strict=True)
    except ValidationError as error:
        faults = sorted(error.errors(), key=lambda fault: (fault["type"] == "missing", source.line(fault["loc"])))
        more = f" ({len(faults) - 1} more error{'s' * (len(faults) > 2)} after this one.)" if len(faults) > 1 else ""
        raise RecipeError(_sentence(faults[0], source, kind) + more) from error


def _sentence(fault: ErrorDetails, source: Source, kind: type[Recipe]) -> str:
    key = tuple(part for part in fault["loc"] if part != "[key]")
    return f"{source.where(key)}: {_dotted(key)}: {_cause(fault, key, kind)}"


def _cause(fault: ErrorDetails, key: Key, recipe: type[Recipe]) -> str:
    kind, message, given = fault["type"], fault["msg"], fault["input"]
    if kind in ("extra_forbidden", "invalid_key"):
        return _unknown_key(key, recipe)
    if kind == "value_error":
        cause = str(fault["ctx"]["error"])
        return cause if cause.endswith(("?", ".")) else f"{cause}."
    cause = _PHRASES.get(kind, message.replace("Input should", "it should", 1))
    if kind == "missing":
        return cause + "."
    known = re.findall("'([^']*)'", fault["ctx"]["expected"]) if kind == "literal_error" else ()
    return f"{cause}, not {_shown(given)}.{perhaps(str(given), known)}"


def _unknown_key(key: Key, recipe: type[Recipe]) -> str:
    part: Any = recipe
    for name in key[:-1]:
        part = part.model_fields[name].annotation
    known = list(part.model_fields)
    owner = f"of {_dotted(key[:-1])}" if len(key) > 1 else "of a recipe"
    hint = perhaps(str(key[-1]), known)
    return f"this is not a key {owner}.{hint}" if hint else f"this is not a key {owner}; known: {', '.join(known)}."


def _shown(value: Any) -> str:
    text = "empty" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _dotted(key: Key) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).removeprefix(".")
