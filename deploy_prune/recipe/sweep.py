"""Sweeps: a recipe with a list where a key takes one value is a recipe for each value, or for each pair, and so on."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final, get_args, get_origin

from deploy_prune.errors import RecipeError
from deploy_prune.recipe.data import Part
from deploy_prune.recipe.file import Key, Source, read_values, validated
from deploy_prune.recipe.parts import Recipe
from deploy_prune.recipe.tasks import recipe_for

MOST: Final = 1000
"""Recipes of a sweep."""
NO_SENSE: Final = {
    "name": "the recipes get names of their own",
    "task": "another task is another recipe",
    "device": "results don't depend on it; give --devices",
    "threads": "results hardly depend on it",
    "processes": "results hardly depend on it",
}
"""Keys of which a list makes no sense, and why."""


@dataclass(frozen=True, kw_only=True)
class Swept:
    """One recipe, and what is set (as in --set) to get it from the file."""

    recipe: Recipe
    settings: tuple[str, ...]


def load_recipes(name_or_path: str, overrides: Sequence[str] = ()) -> list[Swept]:
    """A recipe by name or path, or those of a sweep, with names such as NAME-dap-0; arguments as `load_recipe`.

    Raises:
        RecipeError: as `load_recipe`; or a list makes no sense where it is.
    """
    values, source = read_values(name_or_path, overrides)
    lists = dict(_lists(values, recipe_for(values.get("task", "classification"))))
    for key, choices in lists.items():
        _check(key, choices, source)
    if not lists:
        return [Swept(recipe=validated(values, source), settings=tuple(overrides))]
    made = list(itertools.islice(itertools.product(*lists.values()), MOST + 1))
    if len(made) > MOST:
        message = f"{source.where(next(iter(lists)))}: the lists make more than {MOST} recipes; shorten one."
        raise RecipeError(message)
    found = [_one(values, source, dict(zip(lists, chosen, strict=True)), overrides) for chosen in made]
    name, times = Counter(one.recipe.name for one in found).most_common(1)[0]
    if times > 1:
        message = f"{source.where(next(iter(lists)))}: {times} recipes of the sweep would have the name {name!r}."
        raise RecipeError(message)
    return found


def _lists(values: Mapping[Any, Any], kind: type[Part], path: Key = ()) -> Iterator[tuple[Key, list[Any]]]:
    """Each list where no list can be, with its key."""
    for key, value in values.items():
        field = kind.model_fields.get(str(key))
        if field is None:
            continue
        part = field.annotation if isinstance(field.annotation, type) and issubclass(field.annotation, Part) else None
        if part is not None and isinstance(value, dict):
            yield from _lists(value, part, (*path, key))
        elif part is None and isinstance(value, list) and not _takes_lists(field.annotation):
            yield (*path, key), value


def _takes_lists(kind: object) -> bool:
    """Whether a key of this type may have a list itself."""
    return (
        Any in (kind, get_origin(kind))
        or bool({list, tuple} & {kind, get_origin(kind)})
        or any(map(_takes_lists, get_args(kind) if get_origin(kind) is not None else ()))
    )


def _check(key: Key, choices: Sequence[object], source: Source) -> None:
    """A list of different, single values, of a key that can be swept."""
    dotted = ".".join(map(str, key))
    why = NO_SENSE.get(dotted)
    if why is not None:
        why = f"a list makes no sense here: {why}"
    elif not choices:
        why = "the list is empty; write one value, or several for a sweep"
    elif not all(isinstance(one, str | int | float | None) for one in choices):
        why = "a sweep's values should be texts, numbers, true, false or null"
    elif len({json.dumps(one) for one in choices}) < len(choices):
        why = "a sweep should have each value once"
    if why is not None:
        message = f"{source.where(key)}: {dotted}: {why}."
        raise RecipeError(message)


def _one(values: Mapping[Any, Any], source: Source, chosen: Mapping[Key, Any], overrides: Sequence[str]) -> Swept:
    changed = deepcopy(dict(values))
    for key, value in chosen.items():
        part = changed
        for name in key[:-1]:
            part = part[name]
        part[key[-1]] = value
    if "name" in changed:
        chosen = {**chosen, ("name",): "-".join([str(changed["name"]), *map(_as_name, chosen.values())])}
        changed["name"] = chosen["name",]
    told = [f"{'.'.join(map(str, key))}={json.dumps(value)}" for key, value in chosen.items()]
    return Swept(recipe=validated(changed, source), settings=(*overrides, *told))


def _as_name(value: object) -> str:
    """A value as a part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", value if isinstance(value, str) else json.dumps(value)).strip("-")
