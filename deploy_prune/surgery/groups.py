"""Find the channel groups of any network: label its ATen graph (labels.py, rules.py) and read the classes off."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from deploy_prune.errors import RecipeError, SurgeryError
from deploy_prune.networks.products import name_of, plain_size, shape_of
from deploy_prune.networks.tracing import module_path
from deploy_prune.recipe.parts import PrunePart
from deploy_prune.surgery.applied import Applied, layers, note
from deploy_prune.surgery.branches import SUFFIX, branches_of, lies_on
from deploy_prune.surgery.graph_network import Blueprint, trace_batched, unlifted
from deploy_prune.surgery.labels import Labels, Value
from deploy_prune.surgery.limits import LimitError, require_enough
from deploy_prune.surgery.rules.call import Call
from deploy_prune.surgery.rules.table import rule_for, unknown
from deploy_prune.surgery.trace import trace
from deploy_prune.system.memory import large_blocks_given_back
from deploy_prune.types import Axis, ChannelGroup, Structure, Whole


def find_groups(network: nn.Module, inputs: Sequence[Tensor], prune: PrunePart) -> Structure:
    """The network's channel groups, layers, and what is left whole and why. The network is not changed.

    Args:
        network: any module that torch.export can trace.
        inputs: example inputs, [B, ...] each; only shapes matter.
        prune: which groups may be pruned, and the time limit of tracing.

    Raises:
        SurgeryError: the network can't be traced.
    """
    program = trace(network, inputs, prune.trace_timeout_s)
    labelled = _propagate(program)
    if _unused(program):
        _add_training(labelled, network, inputs, prune)
    return _Reader(labelled=labelled, names=_module_names(network), stored=_stored(network), prune=prune).structure()


def with_blueprint(network: nn.Module, inputs: Sequence[Tensor], prune: PrunePart) -> Structure:
    """As ``find_groups``, for cutting the exported graph instead of the network's own modules.

    Its branches are in the blueprint; they are no groups yet.

    Raises:
        SurgeryError: the network can't be traced with a free batch size.
    """
    program = trace_batched(network, inputs, prune.trace_timeout_s)
    labelled = _propagate(program)
    reader = _Reader(labelled=labelled, names=_module_names(network), stored=_stored(network), prune=prune)
    structure = reader.structure()
    graph, names = unlifted(program)
    units: dict[str, list[int]] = {}
    for root, name in reader.group_of_class.items():
        units.setdefault(name, []).append(root)
    read = {(axis.tensor, axis.axis) for group in structure.groups for axis in group.consumers}
    found = branches_of(program, labelled.applied, _of_examples(program, _batch(program)), read)
    ours = {theirs: ours for ours, theirs in names.items()}
    blueprint = Blueprint(
        graph=graph,
        values={ours: labelled.values[theirs] for ours, theirs in names.items() if theirs in labelled.values},
        classes=reader.classes,
        units={name: torch.tensor(roots) for name, roots in units.items()},
        branches=tuple(branch.renamed(ours) for branch in found),
        lies_on=lies_on(structure.layers, labelled.applied, found),
    )
    return replace(structure, blueprint=blueprint, own_modules=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Labelled:
    """A graph after propagation: each tensor's own labels per axis, what is multiplied, and what became of labels."""

    labels: Labels
    applied: Sequence[Applied]
    values: Mapping[str, Any]


def _unused(program: ExportedProgram) -> bool:
    """Whether the network has parameters that its forward doesn't read: perhaps a head that only training has."""
    places = [n for n in program.graph.nodes if n.op == "placeholder"]
    specs = program.graph_signature.input_specs
    return any(s.kind.name == "PARAMETER" and not n.users for n, s in zip(places, specs, strict=True))


def _add_training(labelled: _Labelled, network: nn.Module, inputs: Sequence[Tensor], prune: PrunePart) -> None:
    """Label what only training runs, too (auxiliary heads), so that a cut network can be trained on.

    What can't be traced in training mode can't be looked at: then the cut network runs in eval mode for certain.
    """
    try:
        program = trace(network, inputs, prune.trace_timeout_s, training=True)
    except LimitError:
        raise
    except SurgeryError:
        return
    _label(program, labelled.labels, [])


def _propagate(program: ExportedProgram) -> _Labelled:
    labels, applied = Labels(), list[Applied]()
    return _Labelled(labels=labels, applied=applied, values=_label(program, labels, applied))


@large_blocks_given_back()
def _label(program: ExportedProgram, labels: Labels, applied: list[Applied]) -> dict[str, Any]:
    """Run a graph over labels; returns what became of every node, by its name."""
    values: dict[fx.Node, Any] = {}
    specs = iter(program.graph_signature.input_specs)
    batch = _batch(program)
    given = _of_examples(program, batch)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            values[node] = _placeholder(program, next(specs), node, labels)
        elif node.op == "call_function":
            values[node] = _call(node, values, labels)
            applied += note(node, values, module_path(node), batch if node in given else 0)
        elif node.op == "output":
            for value in _flat([values.get(n, n) if isinstance(n, fx.Node) else n for n in _flat(node.args)]):
                if isinstance(value, Value):
                    for field in value.fields:
                        labels.freeze(field, "it reaches the network's output")
    return {node.name: value for node, value in values.items()}


def _batch(program: ExportedProgram) -> int:
    """Examples in the network's first input [B, ...]."""
    users = set(program.graph_signature.user_inputs)
    given = [n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder" and n.name in users]
    return next((max(1, _shape(x)[0]) for x in given if isinstance(x, Tensor) and x.dim()), 1)


def _of_examples(program: ExportedProgram, batch: int) -> set[fx.Node]:
    """The nodes that depend on the network's inputs, or on what is made anew for as many examples (zeros, expand)."""
    users = set(program.graph_signature.user_inputs)
    found: set[fx.Node] = set()
    for node in program.graph.nodes:
        made = node.op == "call_function" and (not node.all_input_nodes or name_of(node) in {"expand", "repeat"})
        if node.name in users or not found.isdisjoint(node.all_input_nodes) or (made and shape_of(node)[:1] == [batch]):
            found.add(node)
    return found


def _placeholder(program: ExportedProgram, spec: Any, node: fx.Node, labels: Labels) -> Value:
    """An input (no labels), or a parameter or buffer (labels along every axis longer than 1)."""
    meta = node.meta.get("val")
    if spec.kind.name == "USER_INPUT" or spec.target is None or not isinstance(meta, Tensor):
        return Value(shape=_shape(meta) if isinstance(meta, Tensor) else ())
    tensor = program.state_dict.get(spec.target, program.constants.get(spec.target))
    assert isinstance(tensor, Tensor)
    shape = tuple(tensor.shape)
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return Value(shape=shape, tensor=spec.target, data=tensor)
    ids = labels.own.get(spec.target)
    if ids is None:
        ids = labels.own[spec.target] = tuple(labels.new(size) if size > 1 else None for size in shape)
    rank = len(shape)
    fields = [i.view([-1 if e == d else 1 for e in range(rank)]) for d, i in enumerate(ids) if i is not None]
    return Value(shape=shape, fields=tuple(fields), tensor=spec.target)


def _call(node: fx.Node, values: dict[fx.Node, Any], labels: Labels) -> Any:
    arguments: Any = fx.map_arg((node.args, dict(node.kwargs)), lambda n: values[n])
    args, kwargs = arguments
    if node.target is operator.getitem:
        return args[0][args[1]] if isinstance(args[0], tuple | list) else args[0]
    meta = node.meta.get("val")
    shapes = tuple(_shape(m) for m in _flat([meta]) if isinstance(m, Tensor))
    if not shapes or not hasattr(node.target, "_schema"):
        return _hint(meta) if not shapes else tuple(Value(shape=s) for s in shapes)
    schema = node.target._schema
    name = schema.name.split("::")[-1]
    call = Call(
        labels=labels,
        op=node.target,
        name=name if name.startswith("__") else name.rstrip("_"),
        module=module_path(node),
        given={
            a.name: args[i] if i < len(args) else kwargs.get(a.name, a.default_value if a.has_default_value() else None)
            for i, a in enumerate(schema.arguments)
        },
        shapes=shapes,
        several=isinstance(meta, tuple | list),
    )
    if all(v.unlabelled() for v in call.values()):
        return _unlabelled(call)
    try:
        return rule_for(node.target, call.name)(call)
    except (RuntimeError, TypeError, ValueError, LookupError, AssertionError) as error:
        require_enough(error, "Finding the channel groups")
        return unknown(call, f"{call.name} is used in a form that its rule doesn't know ({type(error).__name__})")


def _unlabelled(call: Call) -> Any:
    """A call that no label reaches: integer constants are computed on."""
    outputs: tuple[Value, ...] = tuple(Value(shape=s) for s in call.shapes)
    known = call.values()
    if known and not call.several and all(v.data is not None for v in known):
        given = {k: v.data if isinstance(v, Value) else v for k, v in call.given.items()}
        if not any(isinstance(v, list) and any(isinstance(x, Value) for x in v) for v in given.values()):
            schema = call.op._schema.arguments
            data = call.op(*[given[a.name] for a in schema if not a.kwarg_only],
                           **{a.name: given[a.name] for a in schema if a.kwarg_only})  # fmt: skip
            return Value(shape=call.shapes[0], data=data if not data.is_floating_point() else None)
    return outputs if call.several else outputs[0]


def _shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape, with the example's size for a free dimension."""
    return tuple(_hint(s) for s in tensor.shape)


def _hint(size: Any) -> Any:
    """A free size's value in the example, a guess for one that depends on the numbers; anything else as it is."""
    return plain_size(size) if isinstance(size, torch.SymInt) else size


def _flat(nested: Any) -> list[Any]:
    if isinstance(nested, list | tuple):
        return [x for part in nested for x in _flat(part)]
    if isinstance(nested, dict):
        return _flat(list(nested.values()))
    return [nested]


def _module_names(network: nn.Module) -> dict[str, str]:
    """Tensor name -> name of the module that owns it; every alias of a shared tensor included."""
    return {name: name.rpartition(".")[0] or name for name in network.state_dict(keep_vars=True)}


def _stored(network: nn.Module) -> frozenset[str]:
    """The names of all parameters."""
    return frozenset(name for name, _ in network.named_parameters(remove_duplicate=False))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Reader:
    """Reads groups and layers off the classes of labels."""

    labelled: _Labelled
    names: Mapping[str, str]
    stored: frozenset[str]
    prune: PrunePart
    group_of_class: dict[int, str] = field(default_factory=dict)

    @cached_property
    def classes(self) -> Tensor:
        """int64[labels]."""
        return self.labelled.labels.resolve_rectangles()

    def structure(self) -> Structure:
        labels = self.labelled.labels
        classes = self.classes
        frozen = labels.frozen(classes)
        bundles = self._bundles(classes, labels.read())
        groups: list[ChannelGroup] = []
        whole: list[Whole] = []
        for members in bundles.values():
            name = self._name(members, {g.name for g in groups} | {w.name for w in whole})
            reason = self._reason(name, members, frozen)
            if reason is not None:
                whole.append(Whole(name=name, channels=len(members.units), reason=reason))
                continue
            group = _group(name, members, labels, classes)
            groups.append(group)
            self.group_of_class.update({c: group.name for c in members.units})
        _require_matches(self.prune, [*(g.name for g in groups), *(w.name for w in whole)])
        mixing = tuple(dict.fromkeys(labels.mixing))
        return Structure(
            groups=tuple(groups),
            layers=layers(self.labelled.applied, classes, self.group_of_class),
            whole=_merged(whole),
            mixing=mixing,
        )

    def _bundles(self, classes: Tensor, read: Tensor) -> dict[Any, _Bundle]:
        """Classes that touch the same axes, equally often, as one bundle.

        What nothing reads is no channel, nor is what only a table of constants makes (coordinates of positions).
        """
        touched: dict[int, dict[tuple[str, int], int]] = defaultdict(dict)
        consumer: set[tuple[str, int]] = set()
        for tensor, axes in self.labelled.labels.own.items():
            for axis, ids in enumerate(axes):
                if ids is None:
                    continue
                if bool(read[ids].any()):
                    consumer.add((tensor, axis))
                roots, times = classes[ids].unique(return_counts=True)
                for root, count in zip(roots.tolist(), times.tolist(), strict=True):
                    touched[root][tensor, axis] = count
        frozen = self.labelled.labels.frozen(classes)
        made = {root for a in self.labelled.applied for root in classes[a.made()].tolist()}
        bundles: dict[Any, _Bundle] = {}
        for root, axes_of in sorted(touched.items()):
            makers = {tensor for tensor, _ in set(axes_of) - consumer}
            read_by_weights = set(axes_of) & consumer and makers & self.stored
            if read_by_weights or (makers and root in made and root in frozen):
                key = (tuple(sorted(axes_of.items())), frozen.get(root))
                bundles.setdefault(key, _Bundle(axes=axes_of, consumers=consumer)).units.append(root)
        return bundles

    def _name(self, members: _Bundle, taken: set[str]) -> str:
        """The module that makes the channels: the first member axis, in the network's order, that isn't a consumer."""
        order = {tensor: i for i, tensor in enumerate(self.labelled.labels.own)}
        producers = sorted((order[t], t) for t, a in members.axes if (t, a) not in members.consumers)
        base = self.names.get(producers[0][1], producers[0][1])
        name, number = base, 2
        while name in taken:
            name, number = f"{base}#{number}", number + 1
        return name

    def _reason(self, name: str, members: _Bundle, frozen: Mapping[int, str]) -> str | None:
        if members.units[0] in frozen:
            return frozen[members.units[0]]
        if len(members.units) < 2:
            return "it has a single unit"
        if self.prune.only and not any(fnmatchcase(name, p) for p in self.prune.only):
            return "prune.only leaves it out"
        if any(fnmatchcase(name, p) for p in self.prune.skip):
            return "prune.skip names it"
        return None


def _require_matches(prune: PrunePart, names: Sequence[str]) -> None:
    """Raises RecipeError if a pattern of the recipe names no group: what it was meant for would go unnoticed."""
    for key, patterns in (("only", prune.only), ("skip", prune.skip)):
        for pattern in patterns or ():
            if not pattern.endswith(SUFFIX) and not any(fnmatchcase(name, pattern) for name in names):
                near = get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
                message = f"prune.{key}: {pattern!r} matches no group of channels; the nearest names are "
                message += f"{', '.join(near)}. All of them: deploy-prune check."
                raise RecipeError(message)


class _Bundle:
    """Classes (units) that touch the same axes."""

    def __init__(self, axes: Mapping[tuple[str, int], int], consumers: set[tuple[str, int]]) -> None:
        self.axes = axes
        self.consumers = consumers
        self.units: list[int] = []


def _group(name: str, members: _Bundle, labels: Labels, classes: Tensor) -> ChannelGroup:
    own = labels.own
    unit_of_class = torch.full((int(classes.max()) + 1,), -1)
    unit_of_class[torch.tensor(members.units)] = torch.arange(len(members.units))
    axes = []
    order = {tensor: i for i, tensor in enumerate(own)}
    for tensor, axis in sorted(members.axes, key=lambda m: (order[m[0]], m[1])):
        ids = own[tensor][axis]
        assert ids is not None
        axes.append(Axis(tensor=tensor, axis=axis, unit_of=unit_of_class[classes[ids]]))
    producers = [a for a in axes if (a.tensor, a.axis) not in members.consumers]
    period = members.axes[producers[0].tensor, producers[0].axis]
    consumers = tuple(a for a in axes if (a.tensor, a.axis) in members.consumers)
    return ChannelGroup(
        name=name, channels=len(members.units), period=period, consumers=consumers, members=tuple(axes),
        statistics=labels.statistics_of(unit_of_class[classes]),
    )  # fmt: skip


def _merged(whole: Sequence[Whole]) -> tuple[Whole, ...]:
    """One line per name and reason."""
    total: dict[tuple[str, str], int] = defaultdict(int)
    for w in whole:
        total[w.name.partition("#")[0], w.reason] += w.channels
    return tuple(Whole(name=n, channels=c, reason=r) for (n, r), c in total.items())
