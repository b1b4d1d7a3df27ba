"""The network as its own exported graph, for networks whose Python code has sizes written in it.

A ``Blueprint`` is the dense graph with a free batch size, and the labels of every value in it. Cutting it slices the
tensors as in any module, and recomputes the sizes in the graph's calls from the labels (rewrite.py). Batch norms stay
modules; dropout follows ``train()``: the slim graph trains as the network does.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.fx.graph_module import reduce_graph_module
from torch.utils._pytree import treespec_dumps, treespec_loads

from deploy_prune.errors import SurgeryError
from deploy_prune.networks.copies import copied
from deploy_prune.surgery.branches import Branch
from deploy_prune.surgery.trace import trace
from deploy_prune.types import Keep

_BATCH_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_NORM: Final = 5
_BATCH: Final = 5
"""The size to trace with."""
_SPECS: Final = ("_in_spec", "_out_spec")
"""How inputs and outputs are nested; torch warns when it unpickles them."""
DENSE_NAME: Final = "deploy_prune.dense_name"
"""In a node's meta data: the name that its value has in the blueprint."""
_MODES: Final = {
    torch.ops.aten.batch_norm.default: _NORM,
    torch.ops.aten.instance_norm.default: _NORM,
    torch.ops.aten.dropout.default: 2,
    torch.ops.aten.feature_dropout.default: 2,
}
"""Operators with a flag for training, and its place among their arguments."""


class GraphNetwork(fx.GraphModule):
    """A network that runs its exported graph; ``train()`` and ``eval()`` reach the operators in it."""

    def train(self, mode: bool = True) -> GraphNetwork:
        """Set the mode of all modules and of dropout and batch norm in the graph."""
        super().train(mode)
        changed = False
        for node in self.graph.nodes:
            place = _MODES.get(node.target)
            if place is None or node.op != "call_function" or (place == _NORM and node.args[3] is None):
                continue  # a norm without running statistics takes the input's own in both modes
            if node.args[place] is not mode:
                node.args = (*node.args[:place], mode, *node.args[place + 1 :])
                changed = True
        if changed:
            self.recompile()
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphNetwork:
        with _quietly():
            copied: Any = super().__deepcopy__(memo)
        assert isinstance(copied, GraphNetwork)
        for path, module in self.named_modules():  # which the copy of a graph forgets
            if module._non_persistent_buffers_set:
                copied.get_submodule(path)._non_persistent_buffers_set |= module._non_persistent_buffers_set
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        """For torch.save of the whole network: the generated code, as torch has it, traced anew by its plain tracer."""
        with _quietly():
            _, (body, imports) = super().__reduce__()
        specs = {name: treespec_dumps(body.pop(name)) for name in _SPECS if name in body}
        unsaved = {path: module._non_persistent_buffers_set for path, module in self.named_modules()}
        return _unpickled, ({**body, "_tracer_cls": None}, specs, imports, unsaved)

    def save_only(self, names: Collection[str]) -> None:
        """Leave all other tensors (constants of the graph) out of the state dict."""
        for path, module in self.named_modules():
            for local in module._buffers:
                if (f"{path}.{local}" if path else local) not in names:
                    module._non_persistent_buffers_set.add(local)


def _unpickled(body: dict[str, Any], specs: dict[str, str], imports: str, unsaved: dict[str, set[str]]) -> GraphNetwork:
    with _quietly():
        shapes = {name: treespec_loads(text) for name, text in specs.items()}
        traced: Any = reduce_graph_module({**body, **shapes}, imports)
        loaded = GraphNetwork(traced, traced.graph)
    for path, names in unsaved.items():
        loaded.get_submodule(path)._non_persistent_buffers_set |= names
    loaded.training = traced.training
    return loaded


@contextmanager
def _quietly() -> Iterator[None]:
    """Without torch's warnings of what torch itself does with its own graphs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


@dataclass(frozen=True, kw_only=True, eq=False)
class Blueprint:
    """A dense graph, what its values' labels are, and its branches.

    ``units``: group name -> int64[C], the class of each unit. ``lies_on``: layer name -> names of branches.
    """

    graph: fx.GraphModule
    values: Mapping[str, Any]
    classes: Tensor
    units: Mapping[str, Tensor]
    branches: tuple[Branch, ...]
    lies_on: Mapping[str, tuple[str, ...]]

    def kept_labels(self, keep: Keep) -> Tensor:
        """bool[labels]: whether a label's unit stays."""
        stays = torch.ones(int(self.classes.max()) + 1 if len(self.classes) else 0, dtype=torch.bool)
        for name, mask in keep.items():
            if name in self.units:
                stays[self.units[name]] = mask.cpu()
        return stays[self.classes]

    def gone(self, keep: Keep) -> tuple[Branch, ...]:
        """The branches that these masks leave out."""
        return tuple(b for b in self.branches if b.name in keep and not bool(keep[b.name].any()))


def trace_batched(network: nn.Module, inputs: Sequence[Tensor], timeout_s: float) -> ExportedProgram:
    """The graph with a free batch size (dimension 0 of every input).

    Raises:
        SurgeryError: the network can't be traced so.
    """
    free = tuple({0: Dim.DYNAMIC} for _ in inputs)
    one = [x[:1] for x in inputs]
    return trace(network, [torch.cat([x] * _BATCH) for x in one], timeout_s, free, before=one)


def unlifted(program: ExportedProgram) -> tuple[fx.GraphModule, dict[str, str]]:
    """The program as a module whose tensors are attributes, and: its call's name -> the program's name for it."""
    with _quietly():
        module = program.module(check_guards=False)
    theirs = [n for n in program.graph.nodes if n.op == "call_function"]
    ours = [n for n in module.graph.nodes if n.op == "call_function"]
    if [n.target for n in ours] != [n.target for n in theirs]:
        message = "The exported graph can't be turned into a module: torch changed its calls."
        raise SurgeryError(message)
    names = {a.name: b.name for a, b in zip(ours, theirs, strict=True)}
    places = [n for n in program.graph.nodes if n.op == "placeholder"]
    specs = program.graph_signature.input_specs
    by_target = {spec.target: node.name for node, spec in zip(places, specs, strict=True) if spec.target}
    names |= {n.name: by_target[n.target] for n in module.graph.nodes if n.op == "get_attr" and n.target in by_target}
    users = [n.name for n, s in zip(places, specs, strict=True) if s.kind.name == "USER_INPUT"]
    given = [n.name for n in module.graph.nodes if n.op == "placeholder"]
    return module, names | dict(zip(given, users, strict=True))


def with_weights(blueprint: Blueprint, network: nn.Module, *, share: bool = False) -> GraphNetwork:
    """The dense graph with a network's tensors (its flags, its gradients, its batch-norm modules), to be recompiled.

    ``share``: the tensors lie in the network's own memory, for whoever replaces them anyhow.
    """
    parameters = dict(network.named_parameters(remove_duplicate=False))
    buffers = dict(network.named_buffers(remove_duplicate=False))
    graph = _copy(blueprint.graph, {**parameters, **buffers}.keys())
    made: dict[int, nn.Parameter] = {}
    for name, old in parameters.items():
        if id(old) not in made:
            data = old.detach() if share else old.detach().clone()
            made[id(old)] = nn.Parameter(data, requires_grad=old.requires_grad)
            made[id(old)].grad = None if old.grad is None else old.grad.clone()
        _assign(graph, name, made[id(old)])
    for name, buffer in buffers.items():
        _assign(graph, name, buffer.detach().clone())
    _restore_batch_norms(graph, network)
    graph.save_only(network.state_dict().keys())
    return graph


def _copy(graph: fx.GraphModule, without: Collection[str]) -> GraphNetwork:
    """A copy of a dense graph in which the tensors of these names are still the graph's own."""
    tensors = {**dict(graph.named_parameters(remove_duplicate=False)), **dict(graph.named_buffers())}
    root = nn.Module()
    known = {id(tensor): tensor for name, tensor in tensors.items() if name in without} | {id(graph): root}
    with _quietly():
        root.__dict__ = copy.deepcopy(graph.__dict__, known)
        return GraphNetwork(root, root.__dict__["_graph"])


def _assign(graph: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, local = name.rpartition(".")
    try:
        owner = graph.get_submodule(path)
    except AttributeError:
        return
    if local in owner._parameters:
        owner._parameters[local] = tensor  # type: ignore[assignment]
    elif local in owner._buffers:
        owner._buffers[local] = tensor


def _restore_batch_norms(graph: fx.GraphModule, network: nn.Module) -> None:
    """Calls of plain batch-norm modules become calls of such modules again, which keep their own running statistics."""
    modules = dict(network.named_modules())
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node.target is not torch.ops.aten.batch_norm.default:
            continue
        path = str(node.args[3].target).rpartition(".")[0] if isinstance(node.args[3], fx.Node) else ""
        original = modules.get(path)
        if type(original) not in _BATCH_NORMS or original is None:
            continue
        held = copied(original)
        for local, parameter in original._parameters.items():
            if parameter is not None:
                held._parameters[local] = graph.get_submodule(path)._parameters[local]
        graph.set_submodule(path, held)
        with graph.graph.inserting_before(node):
            call = graph.graph.call_module(path, (node.args[0],))
        call.meta = {**node.meta, DENSE_NAME: node.name}
        node.replace_all_uses_with(call)
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
