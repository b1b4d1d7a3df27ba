"""Leave branches out of a graph, with all that is computed for them alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from torch import fx

from deploy_prune.networks.products import name_of
from deploy_prune.surgery.branches import Branch
from deploy_prune.surgery.graph_network import DENSE_NAME

_TWICE: Final = frozenset({"relu", "relu6", "hardtanh"})
"""Operators that change nothing the second time."""


def leave_out(graph: fx.GraphModule, branches: Sequence[Branch]) -> None:
    """Take branches out of a graph, in place: their additions, and what they hold, tensors and modules too."""
    nodes = {node.meta.get(DENSE_NAME, node.name): node for node in graph.graph.nodes}
    gone: set[str] = set()
    for branch in branches:
        if branch.addition in gone:
            continue
        addition = nodes[branch.addition]
        stays = addition.args[branch.stays]
        assert isinstance(stays, fx.Node)
        addition.replace_all_uses_with(stays)
        gone |= branch.inside | {branch.addition}
    for name, node in reversed(nodes.items()):
        if name in gone:
            graph.graph.erase_node(node)
    _drop_repeated(graph.graph)
    graph.graph.eliminate_dead_code()
    _forget(graph, {name for branch in branches for name in branch.tensors})


def _drop_repeated(graph: fx.Graph) -> None:
    """An operator right after itself, as ReLU is where the block between two is gone."""
    for node in list(graph.nodes):
        before = node.args[0] if node.args else None
        if (
            node.op == "call_function"
            and name_of(node) in _TWICE
            and isinstance(before, fx.Node)
            and name_of(before) == name_of(node)
            and before.args[1:] == node.args[1:]
            and before.kwargs == node.kwargs
        ):
            node.replace_all_uses_with(before)
            graph.erase_node(node)


def _forget(graph: fx.GraphModule, tensors: Collection[str]) -> None:
    """Delete these tensors, and modules that have no others left."""
    owners = sorted({name.rpartition(".")[0] for name in tensors}, key=lambda path: -path.count("."))
    for name in tensors:
        path, _, local = name.rpartition(".")
        owner = graph.get_submodule(path)
        owner._parameters.pop(local, None)
        owner._buffers.pop(local, None)
    used = [str(node.target) for node in graph.graph.nodes if node.op in ("get_attr", "call_module")]
    for path in owners:
        owner = graph.get_submodule(path)
        held = next(owner.parameters(), None) is not None or any(f"{u}.".startswith(f"{path}.") for u in used)
        if path and not held:
            graph.delete_submodule(path)
