"""The parts of the documentation that are made from the package: keys, options, errors and commands, as Markdown.

A page has ``<!-- generated: NAME -->`` where one of `PARTS` belongs; conf.py puts it there when the site is built.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import click

from deploy_prune import cli, errors
from deploy_prune.device.targets import file_schema
from deploy_prune.recipe.parts import Recipe
from deploy_prune.recipe.tasks import DetectionRecipe, SegmentationRecipe
from deploy_prune.report.remedies import REMEDIES
from deploy_prune.search.methods import METHODS

MARKER: Final = re.compile(r"^<!-- generated: ([a-z-]+) -->$", re.MULTILINE)
_BOUNDS: Final = {
    "minimum": "at least {}", "exclusiveMinimum": "above {}", "maximum": "at most {}", "exclusiveMaximum": "below {}",
}  # fmt: skip
Schema = Mapping[str, Any]


def filled(text: str) -> str:
    """A page with its generated parts."""
    return MARKER.sub(lambda found: PARTS[found[1]](), text)


def keys(schema: Schema, definitions: Schema, above: str = "") -> Iterator[tuple[str, Schema]]:
    """("train.lr", its schema) and so on, a part's own entry before those of its keys."""
    for name, found in schema["properties"].items():
        part = definitions.get(found.get("$ref", "").rpartition("/")[2])
        yield f"{above}{name}", part or found
        if part is not None:
            yield from keys(part, definitions, f"{above}{name}.")


def recipe_keys() -> str:
    """Every key of a recipe: those of the recipe itself, then part by part."""
    schema = Recipe.model_json_schema()
    found = dict(keys(schema, schema["$defs"]))
    parts = [name for name, of in found.items() if "properties" in of]
    blocks = [
        "### Keys of the recipe itself",
        *(_key(k, of) for k, of in found.items() if k not in parts and "." not in k),
    ]
    for part in parts:
        blocks += [f"### {part}", found[part]["description"]]
        blocks += [_key(key, of) for key, of in found.items() if key.startswith(f"{part}.")]
    return "\n\n".join(blocks)


def boxes_keys() -> str:
    """The keys of ``data`` for a detector."""
    return _data_keys(DetectionRecipe)


def masks_keys() -> str:
    """The keys of ``data`` for a network that segments."""
    return _data_keys(SegmentationRecipe)


def _data_keys(recipe: type[Recipe]) -> str:
    """A list, as a page's entries of their own would be there twice: some keys are also a classifier's."""
    schema = recipe.model_json_schema()
    found = {key: of for key, of in keys(schema, schema["$defs"]) if key.startswith("data.")}
    return "\n".join(f"- `{key}`: {_kind(of)}. {of['description']}" for key, of in found.items())


def target_keys() -> str:
    """The keys of a target's file, those of its parts below them."""
    schema = file_schema()
    return "\n".join(_target_keys(schema, schema["$defs"]))


def _target_keys(schema: Schema, definitions: Schema, above: str = "") -> Iterator[str]:
    """A value with its source is one entry."""
    for name, of in schema["properties"].items():
        choices = of.get("anyOf", [of])
        part = next((definitions[one["$ref"].rpartition("/")[2]] for one in choices if "$ref" in one), None)
        below = part["properties"] if part else {}
        sourced = below.keys() == {"value", "source"}
        stands = below["value"] if sourced else {"type": "object"}
        inlined = {**of, "anyOf": [stands if "$ref" in one else one for one in choices]} if part else of
        yield f"- `{above}{name}`: {_kind(inlined)}{', as value and source' if sourced else ''}. {of['description']}"
        if part and not sourced:
            yield from _target_keys(part, definitions, f"{above}{name}.")


def options() -> str:
    """The options of every search method that has any; what all learned methods share comes once."""
    of_each = {method: kind.options.model_json_schema().get("properties", {}) for method, kind in METHODS.items()}
    learned = {method: found for method, found in of_each.items() if "anneal" in found}
    first = next(iter(learned.values()))
    shared = [name for name in first if all(found.get(name) == first[name] for found in learned.values())]
    blocks = ["### Options of all learned methods"]
    blocks += [_key(f"search.options.{name}", first[name]) for name in shared]
    for method, found in of_each.items():
        own = {name: of for name, of in found.items() if method not in learned or name not in shared}
        if own:
            blocks += [f"### Options of {method}", *(_key(f"{method}: {name}", of) for name, of in own.items())]
    return "\n\n".join(blocks)


def error_table() -> str:
    """Exit code, class, what happened and what to do."""
    rows = ["| code | error | what happened | what to do |", "|---|---|---|---|"]
    for kind in errors.DeployPruneError.__subclasses__():
        what, _, do = (" ".join(part.split()) for part in (kind.__doc__ or "").partition("\n\n"))
        rows.append(f"| {kind.exit_code} | `{kind.__name__}` | {what} | {do} |")
    return "\n".join(rows)


def remedies() -> str:
    """Every kind of reason for which a layer is left whole, as check words it, and what to change."""
    return "\n\n".join(f"### {one.title}\n\n{one.change}" for one in REMEDIES)


def commands() -> str:
    """Every command's own help, as the terminal shows it."""
    return "\n\n".join(
        f"## deploy-prune {name}\n\n```text\n{help_of(name, command)}\n```" for name, command in all_commands().items()
    )


def all_commands() -> dict[str, click.Command]:
    """Name (recipe, targets, targets new, ...) -> command."""
    found: dict[str, click.Command] = {}
    for name, command in sorted(cli.main.commands.items()):
        found[name] = command
        if isinstance(command, click.Group):
            found |= {f"{name} {below}": one for below, one in sorted(command.commands.items())}
    return found


def help_of(name: str, command: click.Command) -> str:
    """What ``deploy-prune NAME --help`` prints, 88 columns wide."""
    context = click.Context(
        command, info_name=f"deploy-prune {name}", terminal_width=88, help_option_names=["-h", "--help"]
    )
    return command.get_help(context)


def _key(name: str, of: Schema) -> str:
    return f"```{{confval}} {name}\n\n{_kind(of)}\n\n{of['description']}\n```"


def _kind(of: Schema) -> str:
    """A key's type and default."""
    default = "required" if "default" not in of else f"default `{json.dumps(of['default'])}`"
    return f"{type_of(of)}; {default}"


def type_of(of: Schema) -> str:
    """A schema's type in words: "integer, at least 1, or null"."""
    if "anyOf" in of:
        return ", or ".join(type_of(one) for one in of["anyOf"])
    if "enum" in of or "const" in of:
        return " or ".join(f"`{json.dumps(value)}`" for value in of.get("enum", [of.get("const")]))
    kind = of.get("type", "anything")
    if kind == "array":
        return f"list of {type_of(of['items'])}"
    names = {"object": "mapping", "boolean": "true or false", "string": "text"}
    bounds = [words.format(f"{of[name]:,}") for name, words in _BOUNDS.items() if name in of]
    return ", ".join([names.get(kind, kind), *bounds])


PARTS: Final[dict[str, Callable[[], str]]] = {
    "recipe-keys": recipe_keys,
    "boxes-keys": boxes_keys,
    "masks-keys": masks_keys,
    "target-keys": target_keys,
    "options": options,
    "errors": error_table,
    "commands": commands,
    "remedies": remedies,
}
"""Name in a marker -> what makes the part."""
