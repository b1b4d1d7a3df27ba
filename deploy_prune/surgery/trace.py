"""Export a network to its ATen graph, within a time limit, leaving the network as it was."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.nn.modules.batchnorm import _NormBase

from deploy_prune.errors import SurgeryError
from deploy_prune.networks.copies import require_plain
from deploy_prune.networks.tracing import tracing, why_not_traced
from deploy_prune.networks.unchanged import forgotten
from deploy_prune.surgery.limits import require_enough, time_limit


@contextmanager
def evaluating(network: nn.Module, training: bool = False) -> Iterator[None]:
    """Eval mode inside; every module's own mode afterwards.

    ``training``: modules that hold others are in training mode, so that heads that only training has run; norms aren't.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    for module, _ in modes if training else ():
        module.training = any(True for _ in module.children()) and not isinstance(module, _NormBase)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def trace(
    network: nn.Module, inputs: Sequence[Tensor], timeout_s: float, shapes: Any = None, training: bool = False,
    before: Sequence[Tensor] | None = None,
) -> ExportedProgram:  # fmt: skip
    """The network's ATen graph in eval mode, for inputs of these shapes. The network is left as it was.

    ``shapes``: which sizes are free, as torch.export's ``dynamic_shapes``; default: none.
    ``training``: see ``evaluating``.
    ``before``: inputs of another size, to run it on first: what a network keeps of its last run may fix a free size if
    it is the same one.

    Raises:
        LimitError: not within ``timeout_s``, or there is too little memory.
        SurgeryError: torch.export can't trace it; with its own first line, and the module, file and line where it is.
    """
    require_plain(network)
    _load()
    try:
        with (
            tracing(network),
            evaluating(network, training),
            _shapes_alone(),
            time_limit(timeout_s, "Tracing the network"),
        ):
            if before is not None:
                with torch.no_grad():
                    network(*before)
            forgotten(network)
            program = torch.export.export(network, tuple(inputs), strict=False, dynamic_shapes=shapes)
            _inline_regions(program.graph_module)
            return program
    except SurgeryError:
        raise
    except Exception as error:  # whatever torch or the network's own code raises
        require_enough(error, "Tracing the network")
        raise SurgeryError(why_not_traced(network, inputs, error)) from error


@cache
def _load() -> None:
    """Have torch.export load all it needs, once: a time limit that ends in the middle of an import leaves it broken."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.export(nn.Linear(1, 1), (torch.zeros(1, 1),), strict=False)


@contextmanager
def _shapes_alone() -> Iterator[None]:
    """Inside, torch does without two things that need a tensor's numbers, or much time, and change no graph.

    Its Transformer looks at a mask to see if it is causal, only to choose between the mask and a faster way to the same
    numbers: it is the mask. Recurrent layers are one operator in the graph, whose shape torch finds by running all
    its steps: it is that of the input and the state.
    """
    transformer: Any = torch.nn.modules.transformer
    steps: Any = torch._decomp.decompositions
    before = transformer._detect_is_causal_mask, steps.one_layer_lstm, steps.one_layer_rnn
    transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: is_causal is True
    steps.one_layer_lstm = steps.one_layer_rnn = _one_layer
    try:
        yield
    finally:
        transformer._detect_is_causal_mask, steps.one_layer_lstm, steps.one_layer_rnn = before


def _one_layer(x_TBI: Tensor, hidden: Any, *_: Any, **__: Any) -> tuple[Tensor, Any]:
    """An output [T, B, H] and a state (of an LSTM: two) of the right shapes."""
    state_BH = hidden if isinstance(hidden, Tensor) else hidden[0]
    return x_TBI.new_empty((*x_TBI.shape[:-1], state_BH.shape[-1])), hidden


_REGIONS: Final = {
    torch.ops.higher_order.wrap_with_set_grad_enabled: 1,
    torch.ops.higher_order.wrap_with_autocast: 4,
}
"""Operators that call a graph under no_grad or autocast, and the graph's place among their arguments."""


def _inline_regions(module: fx.GraphModule) -> None:
    """Put the calls of no_grad and autocast regions into the graph itself; what leaves no_grad is detached.

    (Autocast changes nothing here: the graph has the casts that were made.)
    """
    while regions := [n for n in module.graph.nodes if n.target in _REGIONS]:
        for node in regions:
            _inline(module, node, _REGIONS[node.target])
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()


def _inline(module: fx.GraphModule, node: fx.Node, place: int) -> None:
    inner = module.get_submodule(str(node.args[place].target))  # type: ignore[union-attr]
    assert isinstance(inner, fx.GraphModule)
    detached = place == 1 and node.args[0] is False
    operands = iter(node.args[place + 1 :])
    made: dict[fx.Node, Any] = {}
    results: list[Any] = []
    with module.graph.inserting_before(node):
        for each in inner.graph.nodes:
            if each.op == "placeholder":
                made[each] = next(operands)
            elif each.op == "get_attr":
                name = f"{node.name}_{each.target}".replace(".", "_")
                setattr(module, name, fx.graph_module._get_attr(inner, each.target))
                made[each] = module.graph.get_attr(name)
            elif each.op != "output":
                made[each] = module.graph.node_copy(each, lambda n: made[n])
            else:
                results = [made[n] if isinstance(n, fx.Node) else n for n in each.args[0]]
        if detached:
            results = [_detach(module.graph, r) for r in results]
    for user in list(node.users):
        user.replace_all_uses_with(results[user.args[1]])  # type: ignore[index]
        module.graph.erase_node(user)
    module.graph.erase_node(node)


def _detach(graph: fx.Graph, node: fx.Node) -> fx.Node:
    made = graph.call_function(torch.ops.aten.detach.default, (node,))
    made.meta = dict(node.meta)
    return made
