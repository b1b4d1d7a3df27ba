"""architecture.json: how to build the dense network and which channels each group keeps. No weights, no code.

Readable, stable under re-saving, and strict when read: it may come from anywhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from deploy_prune.errors import ArchitectureError
from deploy_prune.recipe import ModelPart, PrunePart
from deploy_prune.surgery.blueprint import GraphNetwork
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.graph import find_groups, with_blueprint
from deploy_prune.types import Keep, Structure

FORMAT: Final = "deploy-prune/architecture"
VERSION: Final = 1
MAX_BYTES: Final = 8 * 2**20
"""A larger file is refused unread; ResNet-50's has about 50 kB."""
MAX_CHANNELS: Final = 2**20
_RANGES: Final = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")

Shape = tuple[int, ...]
Form = Literal["module", "graph"]
"""The network's own modules, smaller; or its exported graph, where its code has sizes written in it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Architecture:
    """A slim network's structure. ``shapes``: tensor name -> (dense shape, slim shape), in the network's order."""

    model: ModelPart
    num_classes: int
    input_shape: Shape
    form: Form
    keep: Keep
    shapes: Mapping[str, tuple[Shape, Shape]]


def describe(
    model: ModelPart, num_classes: int, input_shape: Sequence[int], keep: Keep, dense: nn.Module, slim: nn.Module
) -> Architecture:
    """The architecture of a cut network. ``input_shape``: [B, ...] of the example that the groups were found with."""
    form: Form = "graph" if isinstance(slim, GraphNetwork) else "module"
    before, after = dense.state_dict(), slim.state_dict()
    return Architecture(
        model=model.model_copy(update={"weights": None}),
        num_classes=num_classes,
        input_shape=tuple(input_shape),
        form=form,
        keep=keep,
        shapes={name: (tuple(t.shape), tuple(after.get(name, t).shape)) for name, t in before.items()},
    )


def build(
    architecture: Architecture, dense: nn.Module, prune: PrunePart | None = None, example: Tensor | None = None
) -> nn.Module:
    """Cut a dense network (weights and all) to an architecture.

    ``example``: an input to trace with; default: zeros of the architecture's input shape.

    Raises:
        ArchitectureError: the network's definition isn't the one the file was made from (the first difference).
    """
    _same_definition(architecture, dense)
    find = find_groups if architecture.form == "module" else with_blueprint
    example = torch.zeros(architecture.input_shape) if example is None else example
    structure = find(dense, (example,), prune or PrunePart())
    _same_groups(architecture, structure)
    slim = cut(dense, structure, architecture.keep)
    for name, tensor in slim.state_dict().items():
        if tuple(tensor.shape) != architecture.shapes[name][1]:
            told = list(architecture.shapes[name][1])
            message = f"The architecture says that {name} is {told}; cutting gave {list(tensor.shape)}."
            raise ArchitectureError(message)
    return slim


def require_trust(architecture: Architecture, trust: bool) -> None:
    """A file that names the user's own code is not followed unasked.

    Raises:
        ArchitectureError: the source is module:callable and ``trust`` is off.
    """
    source = architecture.model.source
    if ":" in source and source.partition(":")[0] not in {"torchvision", "timm"} and not trust:
        message = f"The architecture is built by the code {source!r}; if you trust that code, load it with trust=True."
        raise ArchitectureError(message)


def load_weights(slim: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Put the weights of ``path`` into a network that was built from its architecture.

    Raises:
        ArchitectureError: a tensor is missing, unknown, or of another shape.
    """
    wanted = slim.state_dict()
    for name in [*wanted, *weights]:
        have, want = weights.get(name), wanted.get(name)
        if have is None or want is None or have.shape != want.shape:
            shapes = [None if t is None else list(t.shape) for t in (have, want)]
            message = f"{path}: weights.safetensors has {shapes[0]} for {name}; the architecture has {shapes[1]}."
            raise ArchitectureError(message)
    slim.load_state_dict(dict(weights))


def _same_definition(architecture: Architecture, dense: nn.Module) -> None:
    found = {name: tuple(t.shape) for name, t in dense.state_dict().items()}
    for name, (shape, _) in architecture.shapes.items():
        if name not in found:
            message = f"{architecture.model.source} has no {name!r}; the architecture was made from another version."
            raise ArchitectureError(message)
        if found[name] != shape:
            message = (
                f"{name} is {list(found[name])} in {architecture.model.source}, but {list(shape)} in the architecture: "
                "it was made from another version, or with other arguments."
            )
            raise ArchitectureError(message)
    if extra := [name for name in found if name not in architecture.shapes]:
        message = f"The network {architecture.model.source} has {extra[0]!r}, which the architecture doesn't know."
        raise ArchitectureError(message)


def _same_groups(architecture: Architecture, structure: Structure) -> None:
    found = {g.name: g.channels for g in structure.groups}
    for name, mask in architecture.keep.items():
        if found.get(name) != len(mask):
            message = (
                f"The architecture's group {name!r} has {len(mask)} units; the network's {found.get(name, 'none')}: "
                "the file was made from another version of the network."
            )
            raise ArchitectureError(message)


def dumps(architecture: Architecture) -> str:
    """The file's text: sorted as the network is, one group or tensor a line."""
    groups = {
        name: {"channels": len(mask), "kept": int(mask.sum()), "keep": ranges(mask)}
        for name, mask in architecture.keep.items()
    }
    head = {
        "format": FORMAT,
        "version": VERSION,
        "model": {
            "source": architecture.model.source,
            "args": architecture.model.args,
            "num_classes": architecture.num_classes,
        },
        "input": {"shape": list(architecture.input_shape)},
        "form": architecture.form,
    }
    lines = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in head.items()]
    lines.append('  "groups": ' + _table(groups))
    lines.append('  "layers": ' + _table({n: [list(a), list(b)] for n, (a, b) in architecture.shapes.items()}))
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _table(rows: Mapping[str, Any]) -> str:
    inner = ",\n".join(f"    {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    return "{\n" + inner + "\n  }" if rows else "{}"


def ranges(mask: Tensor) -> str:
    """bool[C] as text: "0-3,7,9-12"."""
    kept = mask.nonzero().flatten().tolist()
    runs: list[list[int]] = []
    for i in kept:
        if runs and runs[-1][1] == i - 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ",".join(f"{a}-{b}" if b > a else str(a) for a, b in runs)


def load(path: Path) -> Architecture:
    """Read architecture.json.

    Raises:
        ArchitectureError: it is missing, too large, not JSON, has duplicate or unknown keys, or values out of range.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            message = f"{path} is larger than {MAX_BYTES} bytes; that is no architecture."
            raise ArchitectureError(message)
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = f"{path} can't be read: {error}."
        raise ArchitectureError(message) from error
    try:
        return loads(text)
    except ArchitectureError as error:
        message = f"{path}: {error}"
        raise ArchitectureError(message) from error


def loads(text: str) -> Architecture:
    """The architecture from a file's text. Raises ArchitectureError as ``load`` does."""
    try:
        raw = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (json.JSONDecodeError, RecursionError) as error:
        message = f"it is not JSON: {error}."
        raise ArchitectureError(message) from error
    _keys(raw, {"format", "version", "model", "input", "form", "groups", "layers"}, "the file")
    if raw["format"] != FORMAT or raw["version"] != VERSION:
        message = (
            f"it is {raw['format']!r} version {raw['version']!r}; this program reads {FORMAT!r} version {VERSION}."
        )
        raise ArchitectureError(message)
    _keys(raw["model"], {"source", "args", "num_classes"}, "model")
    _keys(raw["input"], {"shape"}, "input")
    source, args = raw["model"]["source"], raw["model"]["args"]
    if not isinstance(source, str) or not isinstance(args, dict):
        message = "model.source must be text and model.args a mapping."
        raise ArchitectureError(message)
    return Architecture(
        model=_model(source, args),
        num_classes=_count(raw["model"]["num_classes"], "model.num_classes"),
        input_shape=_shape(raw["input"]["shape"], "input.shape"),
        form=_form(raw["form"]),
        keep={name: _mask(name, row) for name, row in _mapping(raw["groups"], "groups").items()},
        shapes={name: _shapes(name, row) for name, row in _mapping(raw["layers"], "layers").items()},
    )


def _model(source: str, args: dict[str, Any]) -> ModelPart:
    try:
        return ModelPart(source=source, args=args)
    except ValidationError as error:
        message = f"model.source: {error.errors()[0]['msg'].removeprefix('Value error, ')}"
        raise ArchitectureError(message[:300]) from error


def _form(raw: Any) -> Form:
    if raw not in ("module", "graph"):
        message = f"form must be 'module' or 'graph', not {str(raw)[:40]!r}."
        raise ArchitectureError(message)
    form: Form = raw
    return form


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [k for k, _ in pairs]
    if len(set(keys)) != len(keys):
        message = f"the key {next(k for k in keys if keys.count(k) > 1)!r} appears twice."
        raise ArchitectureError(message)
    return dict(pairs)


def _no_constant(name: str) -> None:
    message = f"{name} is no number that an architecture can have."
    raise ArchitectureError(message)


def _mapping(raw: Any, where: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        message = f"{where} must be a mapping."
        raise ArchitectureError(message)
    return raw


def _keys(raw: Any, expected: set[str], where: str) -> None:
    if set(_mapping(raw, where)) != expected:
        odd = sorted(set(raw) ^ expected)
        message = f"{where} must have exactly the keys {', '.join(sorted(expected))}; look at {odd[0]!r}."
        raise ArchitectureError(message)


def _count(raw: Any, where: str) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool) or not 0 < raw <= MAX_CHANNELS:
        message = f"{where} must be a whole number from 1 to {MAX_CHANNELS}, not {str(raw)[:40]}."
        raise ArchitectureError(message)
    return raw


def _shape(raw: Any, where: str) -> Shape:
    if not isinstance(raw, list) or len(raw) > 8:
        message = f"{where} must be a list of at most 8 sizes."
        raise ArchitectureError(message)
    return tuple(_count(size, where) for size in raw)


def _shapes(name: str, raw: Any) -> tuple[Shape, Shape]:
    if not isinstance(raw, list) or len(raw) != 2:
        message = f"layers.{name} must be [dense shape, slim shape]."
        raise ArchitectureError(message)
    return _shape(raw[0], f"layers.{name}"), _shape(raw[1], f"layers.{name}")


def _mask(name: str, raw: Any) -> Tensor:
    _keys(raw, {"channels", "kept", "keep"}, f"groups.{name}")
    channels, kept, text = _count(raw["channels"], f"groups.{name}.channels"), raw["kept"], raw["keep"]
    mask = torch.zeros(channels, dtype=torch.bool)
    if not isinstance(text, str) or not _RANGES.fullmatch(text):
        message = f"groups.{name}.keep must be ranges such as '0-3,7', not {str(text)[:40]!r}."
        raise ArchitectureError(message)
    before = -1
    for part in text.split(","):
        first, _, last = part.partition("-")
        a, b = int(first[:12]), int((last or first)[:12])
        if not before < a <= b < channels:
            message = f"groups.{name}.keep: {part[:40]!r} is out of order or beyond the {channels} units."
            raise ArchitectureError(message)
        mask[a : b + 1] = True
        before = b
    if int(mask.sum()) != kept:
        message = f"groups.{name}: kept says {str(kept)[:20]}, but keep names {int(mask.sum())} units."
        raise ArchitectureError(message)
    return mask
