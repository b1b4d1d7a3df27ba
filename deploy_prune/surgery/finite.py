"""Networks whose output isn't finite are refused, with the first layer where it went wrong."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from deploy_prune.errors import VerificationError
from deploy_prune.networks.compare import is_finite, not_finite
from deploy_prune.types import Forward


def require_finite(output: Any, which: str, network: nn.Module, forward: Forward, inputs: Sequence[Tensor]) -> None:
    """Stop where an output isn't finite: no comparison with it proves anything.

    Args:
        output: what ``forward`` returned, nested as it likes.
        which: what to call the network: "masked", "cut"; "" is the network as given.
        network: whose layers are looked at, to name the first that goes wrong.
        forward: the network as it was called, gates and all.
        inputs: what it was called with.

    Raises:
        VerificationError: NaN or infinite values; with the output, and where they come from.
    """
    place = not_finite(output)
    if place is not None:
        name = f"The {which} network" if which else "The network"
        message = f"{name}'s output{place} has values that are not finite, so nothing can be proven: "
        raise VerificationError(message + _cause(network, forward, inputs))


def _cause(network: nn.Module, forward: Forward, inputs: Sequence[Tensor]) -> str:
    """A sentence on where NaN or infinite values come from: inputs, weights, or the first layer that makes them."""
    for number, x in enumerate(inputs):
        if not is_finite(x):
            return f"input {number} has such values itself. Check how the data is read and normalised."
    weights = ((name, is_finite(p)) for name, p in network.named_parameters())
    buffers = ((name, not bool(b.isnan().any())) for name, b in network.named_buffers())  # masks may be infinite
    for name, is_good in chain(weights, buffers):
        if not is_good:
            return f"its {name} has such values itself. Check the weights."
    layer = _first_layer(network, forward, inputs)
    where = (
        f"the first layer that makes them is {layer}" if layer else "none of its layers makes them, its own code does"
    )
    return f"{where}. Check its weights and the scale of the inputs."


def _first_layer(network: nn.Module, forward: Forward, inputs: Sequence[Tensor]) -> str | None:
    """The module whose output is the first that isn't finite, as "name (its class)"."""
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not found and not_finite(output) is not None:
                found.append(f"{name} ({type(module).__name__})")

        return hook

    with ExitStack() as stack, torch.no_grad():
        for name, module in network.named_modules():
            if name:
                stack.callback(module.register_forward_hook(look(name)).remove)
        forward(*inputs)
    return found[0] if found else None
