"""How much a network's outputs change with fewer bits: what an artifact's error is compared with.

The network is run with what every convolution and matrix product reads rounded. To 8 bits: weights to 255 steps that
are symmetric about 0, per output channel, activations to 256 steps between their smallest and largest value, as static
quantisation does (Jacob et al., arXiv 1712.05877). To half precision: both to IEEE 754's binary16. No runtime computes
just this; all of them come near to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from deploy_prune.export.inputs import Given, several
from deploy_prune.networks.copies import copied

_ATEN: Final = torch.ops.aten
_READERS: Final[Mapping[Any, tuple[int, int, int]]] = {
    _ATEN.convolution.default: (0, 1, 0),
    _ATEN.addmm.default: (1, 2, 1),
    _ATEN.mm.default: (0, 1, 1),
    _ATEN.bmm.default: (0, 1, 2),
    _ATEN.linear.default: (0, 1, 0),
}
"""Operator -> which argument is the activation, which the weight, and the weight's axis of output channels."""
_SUMS: Final = frozenset({_ATEN.add.Tensor, _ATEN.add_.Tensor})


class Rounded(TorchDispatchMode):
    """Inside, convolutions, matrix products and sums of two tensors read rounded values.

    ``activation`` rounds a tensor, ``weight`` one whose axis of output channels is given. ``results``: what
    convolutions and products give is rounded too, as runtimes store it between layers.
    """

    def __init__(
        self,
        activation: Callable[[Tensor], Tensor],
        weight: Callable[[Tensor, int], Tensor],
        results: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.activation, self.weight, self.results = activation, weight, results

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run the operator on rounded arguments."""
        given = list(args)
        if func in _READERS:
            activation, weight, axis = _READERS[func]
            given[activation] = self.activation(given[activation])
            rounded_weight = _per_output(self.weight, given[8]) if _is_transposed(func, given) else self.weight
            given[weight] = rounded_weight(given[weight], axis)
        elif func in _SUMS and all(isinstance(x, Tensor) and x.dim() > 1 and x.is_floating_point() for x in given[:2]):
            target = given[0] if func is _ATEN.add_.Tensor else self.activation(given[0])
            given[:2] = [target, self.activation(given[1])]
        result = func(*given, **(kwargs or {}))
        return self.activation(result) if self.results and func in _READERS else result


def _is_transposed(func: Callable[..., Any], given: Sequence[Any]) -> bool:
    return func is _ATEN.convolution.default and bool(given[6])


def _per_output(weight: Callable[[Tensor, int], Tensor], groups: int) -> Callable[[Tensor, int], Tensor]:
    """``weight`` for a transposed convolution's [inputs, outputs / groups, ...]: no axis is that of its outputs."""

    def of_groups(w: Tensor, _: int) -> Tensor:
        by_group = w.unflatten(0, (groups, -1)).transpose(1, 2)  # groups, outputs / groups, inputs / groups, ...
        done: Tensor = weight(by_group.flatten(0, 1), 0).unflatten(0, by_group.shape[:2])
        return done.transpose(1, 2).flatten(0, 1)

    return of_groups


def eight_bits(results: bool = False) -> Rounded:
    """As static quantisation to int8 rounds; ``results`` as for ``Rounded``."""
    return Rounded(rounded, rounded_per_channel, results)


def half() -> Rounded:
    """As a runtime that stores its tensors in half precision rounds."""
    return Rounded(lambda x: x.half().float(), lambda weight, axis: weight.half().float())


def single(
    outputs_of: Callable[[nn.Module, Given], tuple[Tensor, ...]], network: nn.Module, inputs: Given
) -> tuple[Tensor, ...]:
    """The network's outputs in float64, beside which those in float32 show what float32 loses.

    A network whose code fixes float32 somewhere can't be run so: then the outputs in float32 with what its layers read
    moved by up to half a unit in the last place, which is about as far off.
    """
    try:
        doubles = tuple(x.double() if x.is_floating_point() else x for x in several(inputs))
        return outputs_of(copied(network).double(), doubles)
    except (RuntimeError, TypeError):
        generator = torch.Generator().manual_seed(0)

        def moved(x: Tensor, *_: int) -> Tensor:
            unit = torch.rand(x.shape, generator=generator).to(x.device).mul(2).sub(1)
            return x * (1 + unit * torch.finfo(torch.float32).eps / 2)

        with Rounded(moved, moved):
            return outputs_of(network, inputs)


def rounded(x: Tensor) -> Tensor:
    """To 256 steps from the smallest to the largest value, 0 among them."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    step = ((high - low) / 255).clamp(min=1e-12)
    zero = (-low / step).round()
    return ((x / step + zero).round().clamp(0, 255) - zero) * step


def rounded_per_channel(weight: Tensor, axis: int) -> Tensor:
    """To 255 steps, symmetric about 0, whose size is each output channel's own."""
    others = [i for i in range(weight.dim()) if i != axis]
    step = (weight.abs().amax(others, keepdim=True) / 127).clamp(min=1e-12)
    return (weight / step).round().clamp(-127, 127) * step


def snr_db(expected: Tensor, found: Tensor) -> float:
    """How far the outputs' changes from input to input stand above the differences, in dB.

    10 log10(sum (a - mean_N a)**2 / sum (a - b)**2) for a = ``expected`` and b = ``found``, [N, ...]: what is the same
    for every input, such as a last layer's bias, is no signal, but an error in it counts. Infinite where a = b.
    """
    a, b = expected.double(), found.double()
    signal, noise = (a - a.mean(0)).square().sum(), (a - b).square().sum()
    return float(10 * torch.log10(signal / noise))


def agreement(expected: Tensor, found: Tensor) -> float:
    """The share of inputs with the same largest output, over [N, K, ...]."""
    return float((expected.argmax(1) == found.argmax(1)).float().mean())
