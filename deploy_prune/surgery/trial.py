"""One trial cut: is it equal to masking, and would anyone have noticed if it were not?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import inf, isfinite, nan
from typing import Any, Final

import torch
from torch import Tensor, nn

from deploy_prune.networks.compare import not_finite, relative_difference, tensors_of
from deploy_prune.networks.tracing import failed_module, told
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.limits import require_enough
from deploy_prune.surgery.trace import evaluating
from deploy_prune.surgery.verify import GatesOn, gates, without_strongest
from deploy_prune.surgery.visible_copy import WithoutDropout
from deploy_prune.types import Keep, Structure

GatesOf = Callable[[Structure], GatesOn]
"""How to turn on the gates of a structure."""
CLEARLY: Final = 100.0
"""A group is seen if one of its channels moves the output so many times as far as cut and masked differ, or rounding
goes: a cut that took other channels would then have differed by more."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a trial showed.

    ``difference``: max|a - b| / max|a|, masked and cut; NaN where the masked output isn't finite, so that nothing is
    shown. ``blind``: the cut groups whose channels hardly move the output, so that it says nothing of them.
    """

    difference: float
    blind: frozenset[str]


class BrokenError(Exception):
    """The masked or the cut network doesn't run. ``module``: the one whose code failed; "" if that isn't known."""

    def __init__(self, message: str, module: str = "") -> None:
        super().__init__(message)
        self.module = module


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """A cut to be tried: what stays (group name -> bool[C]) of some of a structure's groups."""

    structure: Structure
    keep: Keep
    gates_of: GatesOf

    def run(
        self, network: nn.Module, inputs: Sequence[Tensor], *, thorough: bool = False, training: bool = False
    ) -> Outcome:
        """Compare on inputs [B, ...]. Which groups are seen is read off one backward pass.

        Args:
            network: the dense network, with whatever values; it is not changed.
            inputs: one tensor per network input.
            thorough: drop a channel of each group that the backward pass doesn't show, before it is called blind.
            training: also run what only training has; dropout drops nothing.

        Raises:
            BrokenError: one of the two raised an error; with the error.
            LimitError: it was for want of memory.
        """
        opened = {name: gate.requires_grad_() for name, gate in gates(self.structure, self.keep, inputs[0]).items()}
        with evaluating(network, training), WithoutDropout() if training else nullcontext():
            found = self._cut(network, inputs, training)
            masked = self._masked(network, inputs, opened)
            if not_finite(masked) is not None:
                return Outcome(difference=nan, blind=frozenset(self.keep))
            difference = relative_difference(masked, found)
            least = CLEARLY * max(difference, _resolution(network))
            slopes = _slopes(masked, {name: opened[name] for name in self.keep})
            blind = {name for name in self.keep if not slopes.get(name, 0.0) >= least}
            if thorough:
                blind = {name for name in blind if not self._effect(name, network, inputs, opened, masked) >= least}
        return Outcome(difference=difference, blind=frozenset(blind))

    def require_runs(self, network: nn.Module, inputs: Sequence[Tensor]) -> None:
        """Cut and run it, without comparing.

        Raises:
            BrokenError: the cut network doesn't run; with the error.
        """
        with evaluating(network):
            self._cut(network, inputs, training=False)

    def _cut(self, network: nn.Module, inputs: Sequence[Tensor], training: bool) -> Any:
        slim = network
        try:
            with torch.no_grad():
                slim = cut(network, self.structure, self.keep)
                with evaluating(slim, training):
                    return _repeatable(slim, inputs)
        except Exception as error:  # whatever the network's own code raises
            raise _broken(slim, error, "the network's code has sizes written in it") from error

    def _masked(self, network: nn.Module, inputs: Sequence[Tensor], opened: Mapping[str, Tensor]) -> Any:
        try:
            with torch.enable_grad():
                return _repeatable(self.gates_of(self.structure)(network, opened), inputs)
        except Exception as error:  # whatever the network's own code raises
            raise _broken(network, error, "its gates can't be turned on") from error

    def _effect(
        self, name: str, network: nn.Module, inputs: Sequence[Tensor], opened: Mapping[str, Tensor], masked: Any
    ) -> float:
        """How far the output moves, relative, without one kept channel of a group; 0 where that isn't finite."""
        group = next(g for g in self.structure.groups if g.name == name)
        fewer = {**opened, name: without_strongest(network, group, opened[name].detach())}
        with torch.no_grad():
            moved = relative_difference(masked, _repeatable(self.gates_of(self.structure)(network, fewer), inputs))
        return moved if moved < inf else 0.0


def _broken(network: nn.Module, error: Exception, why: str) -> BrokenError:
    require_enough(error, "Trying a cut")
    return BrokenError(f"{why} ({told(network, error).rstrip('.')})", failed_module(network, error))


def _repeatable(forward: Callable[..., Any], inputs: Sequence[Tensor]) -> Any:
    """The output, the same each time also where the network draws random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return forward(*inputs)


def _resolution(network: nn.Module) -> float:
    """The relative rounding of the network's least exact parameters."""
    types = {p.dtype for p in network.parameters() if p.is_floating_point()}
    return max((torch.finfo(dtype).eps for dtype in types), default=torch.finfo(torch.float32).eps)


def _slopes(output: Any, opened: Mapping[str, Tensor]) -> dict[str, float]:
    """Group name -> how far its strongest kept channel moves the outputs, relative to their norms, to first order.

    Of a random projection of the outputs, so one backward pass tells it of all channels: its size is as the norm's.
    """
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros((), dtype=torch.float64)
    for y in tensors_of(output):
        signs = torch.randint(2, y.shape, generator=generator).mul(2).sub(1).to(y.device)
        if y.requires_grad and (norm := float(y.detach().double().norm())) > 0:
            total = total + ((y * signs).sum() / norm).cpu()
    if not total.requires_grad:
        return {}
    try:
        slopes = torch.autograd.grad(total, list(opened.values()), allow_unused=True)
    except RuntimeError as error:  # an operator of the network's own has no derivative
        require_enough(error, "Trying a cut")
        return {}
    pairs = zip(opened.items(), slopes, strict=True)
    largest = {n: 0.0 if s is None else float((s * gate.detach()).abs().max()) for (n, gate), s in pairs}
    return {name: value if isfinite(value) else 0.0 for name, value in largest.items()}
