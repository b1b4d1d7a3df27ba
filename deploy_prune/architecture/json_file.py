"""architecture.json: how to build the dense network and which channels each group keeps. No weights, no code.

Readable, stable under re-saving, and strict when read: it may come from anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Final, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from deploy_prune.architecture import strict
from deploy_prune.architecture.strict import Shape
from deploy_prune.errors import ArchitectureError, ModelError, perhaps
from deploy_prune.families import raw_form
from deploy_prune.networks import build
from deploy_prune.networks.weights import load_state
from deploy_prune.recipe.parts import LIBRARIES, ModelPart, PrunePart
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.graph_network import GraphNetwork
from deploy_prune.surgery.groups import with_blueprint
from deploy_prune.surgery.remembered import groups_of
from deploy_prune.surgery.try_branches import as_groups
from deploy_prune.system.strict_json import shown
from deploy_prune.types import Input, Keep, Structure

FORMAT: Final = "deploy-prune/architecture"
VERSION: Final = 1
MAX_INPUT: Final = 2**26
"""Elements of an example input: 256 MB."""
MAX_INPUTS: Final = 16
_TYPES: Final = {"float32": torch.float32, "int64": torch.int64, "int32": torch.int32, "bool": torch.bool}
SPARE: Final = 4
"""A builder may make some tensors more than once; so many times what the file names is too much."""
_FLOATS: Final = {torch.float16, torch.bfloat16, torch.float32, torch.float64}

Form = Literal["module", "graph"]
"""The network's own modules, smaller; or its exported graph, where its code has sizes written in it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Architecture:
    """A slim network's structure.

    ``shapes``: tensor name -> (dense shape, slim shape), in the network's order; None: it went with a branch.
    ``num_classes``: 0 where its builder takes none. ``inputs``: of the example that the groups were found with.
    """

    model: ModelPart
    num_classes: int
    inputs: tuple[Input, ...]
    form: Form
    keep: Keep
    shapes: Mapping[str, tuple[Shape, Shape | None]]

    @property
    def input_shape(self) -> Shape:
        """The first input's."""
        return self.inputs[0].shape

    @property
    def example(self) -> tuple[Tensor, ...]:
        """Zeros of the inputs' shapes and types."""
        return tuple(torch.zeros(x.shape, dtype=_TYPES[x.type]) for x in self.inputs)


def describe(
    model: ModelPart, num_classes: int, example: Sequence[Tensor], keep: Keep, dense: nn.Module, slim: nn.Module
) -> Architecture:
    """The architecture of a cut network. ``example``: what the groups were found with, each [B, ...]."""
    form: Form = "graph" if isinstance(slim, GraphNetwork) else "module"
    before, after = dense.state_dict(), slim.state_dict()
    return Architecture(
        model=model.model_copy(update={"weights": None, "weights_key": None, "head": "keep"}),
        num_classes=num_classes,
        inputs=_inputs_of(example),
        form=form,
        keep=keep,
        shapes={n: (tuple(t.shape), tuple(after[n].shape) if n in after else None) for n, t in before.items()},
    )


def _inputs_of(example: Sequence[Tensor]) -> tuple[Input, ...]:
    names = {dtype: name for name, dtype in _TYPES.items()}
    return tuple(Input(shape=tuple(x.shape), type=names.get(x.dtype, "float32")) for x in example)


def build_slim(
    architecture: Architecture,
    dense: nn.Module,
    prune: PrunePart | None = None,
    example: Tensor | Sequence[Tensor] | None = None,
) -> nn.Module:
    """Cut a dense network (weights and all) to an architecture.

    ``example``: an input to trace with, or several; default: zeros of the architecture's inputs.

    Raises:
        ArchitectureError: the network's definition isn't the one the file was made from (the first difference).
    """
    structure = structure_of(architecture, dense, prune, example)
    slim = cut(dense, structure, architecture.keep)
    for name, tensor in slim.state_dict().items():
        told = architecture.shapes[name][1] if name in architecture.shapes else None
        if tuple(tensor.shape) != told:
            message = f"The architecture says that {name} is {told}; cutting gave {tuple(tensor.shape)}."
            raise ArchitectureError(message)
    return slim


def structure_of(
    architecture: Architecture,
    dense: nn.Module,
    prune: PrunePart | None = None,
    example: Tensor | Sequence[Tensor] | None = None,
) -> Structure:
    """The dense network's groups and layers, in the form that the architecture was cut in. Arguments as ``build``.

    Raises:
        ArchitectureError: the network's definition isn't the one the file was made from (the first difference).
    """
    _same_definition(architecture, dense)
    prune, example = prune or PrunePart(), architecture.example if example is None else example
    examples = (example,) if isinstance(example, Tensor) else tuple(example)
    if architecture.form == "module":
        structure = groups_of(dense, examples, prune)
    else:
        graph = with_blueprint(dense, examples, prune)
        structure = as_groups(graph, graph, architecture.keep)
    _same_groups(architecture, structure)
    return structure


def dense_network(architecture: Architecture, trust: bool = False) -> nn.Module:
    """The dense network that the file names, with fresh weights from torch's global generator.

    A library's network is first built without memory and compared, so that a hostile file can't ask for much of it.

    Raises:
        ArchitectureError: the file needs ``trust``, or the network's definition isn't the one the file was made from.
        ModelError: the network can't be built.
    """
    require_trust(architecture.model, trust)
    part, num_classes = architecture.model, architecture.num_classes
    if _users_own(part):
        return _raw(part, num_classes, architecture.example)
    with _bounded(architecture):
        try:
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                trial = _raw(part, num_classes, architecture.example)
        except ModelError as error:  # some builders compute with their tensors
            if isinstance(error.__cause__, ArchitectureError):
                raise error.__cause__ from error
        else:
            _same_definition(architecture, trial)
        return _raw(part, num_classes, architecture.example)


def _raw(part: ModelPart, num_classes: int, example: Sequence[Tensor]) -> nn.Module:
    """The network in its raw form: that is what was cut."""
    return raw_form(build.build_network(part, num_classes), example).network


def retarget(
    architecture: Architecture, num_classes: int, example: Sequence[Tensor], trust: bool = False
) -> tuple[Architecture, nn.Module]:
    """The same structure for another task, and its dense network with fresh weights from torch's global generator.

    ``example``: the other task's inputs, each [B, ...]. Tensors whose shape depends on the number of classes change,
    and nothing else: the channels that stay are the architecture's.

    Raises:
        ArchitectureError: as ``dense_network``.
        ModelError: the network can't be built with so many classes.
    """
    dense = dense_network(architecture, trust)
    if num_classes != architecture.num_classes:
        dense = _raw(architecture.model, num_classes, example)
    shapes = dict(architecture.shapes)
    for name, tensor in dense.state_dict().items():
        before, slim = shapes[name]
        after = tuple(tensor.shape)
        cut_to = slim and tuple(s if b == a else a for b, s, a in zip(before, slim, after, strict=True))
        shapes[name] = (after, cut_to)
    told = replace(architecture, num_classes=num_classes, inputs=_inputs_of(example), shapes=shapes)
    return told, dense


@contextmanager
def _bounded(architecture: Architecture) -> Iterator[None]:
    """Stop a builder that makes far more parameters than the file names."""
    tensors = SPARE * len(architecture.shapes) + 1000
    elements = SPARE * sum(prod(dense) for dense, _ in architecture.shapes.values()) + 10**6
    made = [0, 0]

    def note(module: nn.Module, name: str, parameter: Any) -> None:
        made[0] += 1
        made[1] += parameter.numel() if isinstance(parameter, Tensor) else 0
        if made[0] > tensors or made[1] > elements:
            message = f"{architecture.model.source} with the file's model.args is far larger than its layers say."
            raise ArchitectureError(message)

    hook = nn.modules.module.register_module_parameter_registration_hook(note)
    try:
        yield
    finally:
        hook.remove()


def _users_own(part: ModelPart) -> bool:
    prefix, colon, _ = part.source.partition(":")
    return bool(colon) and prefix not in LIBRARIES


def require_trust(part: ModelPart, trust: bool) -> None:
    """Fail if the file names code of the user's own that isn't trusted.

    Raises:
        ArchitectureError: the source is module:callable and ``trust`` is off.
    """
    if _users_own(part) and not trust:
        message = (
            f"The architecture is built by the code {part.source!r}; if you trust that code, load it with trust=True "
        )
        message += "(on the command line: --trust)."
        raise ArchitectureError(message)


def load_weights(slim: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Put the weights of ``path`` into a network that was built from its architecture; it takes their precision.

    Raises:
        ArchitectureError: a tensor is missing, unknown, of another shape, or of another kind of number.
    """
    wanted = slim.state_dict(keep_vars=True)
    for name in [*wanted, *weights]:
        have, want = weights.get(name), wanted.get(name)
        if have is None or want is None or have.shape != want.shape:
            shapes = [None if t is None else list(t.shape) for t in (have, want)]
            message = f"{path}: weights.safetensors has {shapes[0]} for {name}; the architecture has {shapes[1]}."
            raise ArchitectureError(message)
        if have.dtype != want.dtype and not {have.dtype, want.dtype} <= _FLOATS:
            message = f"{path}: weights.safetensors has {have.dtype} for {name}; the architecture has {want.dtype}."
            raise ArchitectureError(message)
    floats = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
    if len(floats) == 1:
        slim.to(floats.pop())  # what isn't saved, too
    for name, tensor in wanted.items():
        tensor.data = tensor.data.to(weights[name].dtype)
    load_state(slim, weights)


def _same_definition(architecture: Architecture, dense: nn.Module) -> None:
    found = {name: tuple(t.shape) for name, t in dense.state_dict().items()}
    for name, (shape, _) in architecture.shapes.items():
        if name not in found:
            message = f"{architecture.model.source} has no {name!r}; the architecture was made from another version."
            message += perhaps(name, found)
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
        "inputs": [{"shape": list(x.shape), "type": x.type} for x in architecture.inputs],
        "form": architecture.form,
    }
    lines = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in head.items()]
    lines.append('  "groups": ' + _table(groups))
    lines.append('  "layers": ' + _table({n: [a, b] for n, (a, b) in architecture.shapes.items()}))
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
    text = strict.read_text(path)
    try:
        return loads(text)
    except ArchitectureError as error:
        message = f"{path}: {error}"
        raise ArchitectureError(message) from error


def loads(text: str) -> Architecture:
    """The architecture from a file's text. Raises ArchitectureError as ``load`` does."""
    raw = strict.parse(text)
    strict.keys(raw, {"format", "version", "model", "inputs", "form", "groups", "layers"}, "the file")
    if raw["format"] != FORMAT or type(raw["version"]) is not int or raw["version"] != VERSION:
        told = f"'{shown(raw['format'])}' version {shown(raw['version'])}"
        message = f"it is {told}; this program reads {FORMAT!r} version {VERSION}."
        raise ArchitectureError(message)
    strict.keys(raw["model"], {"source", "args", "num_classes"}, "model")
    return Architecture(
        model=_model(raw["model"]["source"], raw["model"]["args"]),
        num_classes=strict.count(raw["model"]["num_classes"], "model.num_classes", smallest=0),
        inputs=_inputs(raw["inputs"]),
        form=_form(raw["form"]),
        keep=strict.masks(raw["groups"]),
        shapes=strict.layers(raw["layers"]),
    )


def _model(source: Any, args: Any) -> ModelPart:
    if not isinstance(source, str):
        message = f"model.source must be text, not {shown(source)}."
        raise ArchitectureError(message)
    try:
        return ModelPart(source=source, args=strict.arguments(args, "model.args"))
    except ValidationError as error:
        message = f"model.source: {error.errors()[0]['msg'].removeprefix('Value error, ')}"
        raise ArchitectureError(shown(message, 300)) from error


def _inputs(raw: Any) -> tuple[Input, ...]:
    if not isinstance(raw, list) or not 0 < len(raw) <= MAX_INPUTS:
        message = f"inputs must be a list of one to {MAX_INPUTS}."
        raise ArchitectureError(message)
    found = []
    for number, each in enumerate(raw):
        strict.keys(each, {"shape", "type"}, f"inputs[{number}]")
        shape = strict.shape(each["shape"], f"inputs[{number}].shape")
        if not shape or prod(shape) > MAX_INPUT:
            message = f"inputs[{number}].shape must be [batch, ...] with at most {MAX_INPUT} elements, not {[*shape]}."
            raise ArchitectureError(message)
        if not isinstance(each["type"], str) or each["type"] not in _TYPES:
            message = f"inputs[{number}].type must be one of {', '.join(_TYPES)}, not {shown(each['type'])}."
            raise ArchitectureError(message)
        found.append(Input(shape=shape, type=each["type"]))
    return tuple(found)


def _form(raw: Any) -> Form:
    if raw not in ("module", "graph"):
        message = f"form must be 'module' or 'graph', not '{shown(raw)}'."
        raise ArchitectureError(message)
    form: Form = raw
    return form
