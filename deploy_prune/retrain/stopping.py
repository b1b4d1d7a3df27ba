"""When to stop, and which weights to keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, Final

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from deploy_prune.data.examples import Examples
from deploy_prune.errors import DataError
from deploy_prune.tasks.task import Objective
from deploy_prune.training.loop import batch_that_fits, device_of, placed
from deploy_prune.training.ranks import ALONE, Ranks

SIZES: Final = "data.image_size"
"""The recipe's key that holds out source examples, where it lists several."""
CHECKS: Final = 20
"""How often the held-out examples are asked, in all steps."""
PATIENCE: Final = 5
"""After so many checks in a row without an improvement, in the second half of the steps, it is enough."""


def hold_out(
    examples: Examples, share: float, seed: int, asked_by: str = "retrain.hold_out"
) -> tuple[Examples, Examples | None]:
    """(to train on, to judge by), the same for the same seed: ``share`` of each stratum, rounded down; None of share 0.

    ``asked_by``: the recipe's key that asks for it.

    Raises:
        DataError: of a stratum (a class) none would be held out.
    """
    if share == 0:
        return examples, None
    counts = torch.bincount(examples.strata)
    require_held(counts.tolist(), share, asked_by)
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    strata = examples.strata[order]
    held = torch.cat([order[strata == c][: int(share * int(n))] for c, n in enumerate(counts.tolist())])
    is_held = torch.zeros(len(examples), dtype=torch.bool)
    is_held[held] = True
    return examples.subset((~is_held).nonzero().flatten()), examples.subset(is_held.nonzero().flatten())


def require_held(counts: Sequence[int], share: float, asked_by: str = "retrain.hold_out") -> None:
    """Refuse a share that is less than one example of a class. ``counts``: examples of each class (0: not there).

    Raises:
        DataError: with the number of examples that it takes.
    """
    fewest = min(count for count in counts if count)
    if share and int(share * fewest) == 0:
        message = (
            f"{asked_by}: a share of {share:g} of the {fewest} examples of class {list(counts).index(fewest)} is "
            f"less than one, and is to be held out; give every class at least {ceil(1 / share)} examples"
            + (
                ", or give one size."
                if asked_by == SIZES
                else " (data.shots), or hold out a larger share, or none (0)."
            )
        )
        raise DataError(message)


class Average:
    """An exponential moving average of a network's parameters; ``decay`` grows to its value in the first steps.

    Tarvainen and Valpola, arXiv 1703.01780: min(decay, 1 - 1 / (step + 1)), so that the first weights don't linger.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.source, self.decay, self.steps = network, decay, 0
        self.averaged = AveragedModel(network)

    def step(self) -> None:
        """Take the weights in as they are now."""
        self.steps += 1
        decay = min(self.decay, 1 - 1 / (self.steps + 1))
        self.averaged.multi_avg_fn = get_ema_multi_avg_fn(decay)
        self.averaged.update_parameters(self.source)
        for ours, theirs in zip(self.averaged.module.buffers(), self.source.buffers(), strict=True):
            ours.copy_(theirs)

    def state_dict(self) -> dict[str, Any]:
        """The average so far."""
        return {"steps": self.steps, "averaged": self.averaged.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.steps = state["steps"]
        self.averaged.load_state_dict(state["averaged"])

    @property
    def network(self) -> nn.Module:
        """The network with averaged weights, and its source's buffers."""
        module: nn.Module = self.averaged.module
        return module


class BestSoFar:
    """Remembers the weights with the lowest loss on held-out examples: Prechelt, "Early stopping - but when?", 1998.

    In the first half of the steps it never is enough: one cycle's learning rate is then so high that the loss goes up
    on its way down.
    """

    def __init__(
        self, network: nn.Module, held: Examples, objective: Objective, steps: int, ranks: Ranks = ALONE
    ) -> None:
        self.network, self.held, self.objective, self.ranks = network, held, objective, ranks
        self.every, self.half = max(1, steps // CHECKS), steps / 2
        self.loss, self.steps, self.chosen, self.checks_since = float("inf"), 0, 0, 0
        self.state: dict[str, Tensor] = {}

    def step(self) -> bool:
        """After a step of the optimizer: whether it is enough."""
        self.steps += 1
        if self.steps % self.every:
            return False
        loss = self.ranks.told(self._held_out_loss)
        if loss < self.loss:
            self.loss, self.chosen, self.checks_since = loss, self.steps, 0
            self.state = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}
        elif self.steps > self.half:
            self.checks_since += 1
        return self.checks_since >= PATIENCE

    def state_dict(self) -> dict[str, Any]:
        """What is remembered."""
        return {name: getattr(self, name) for name in ("loss", "steps", "chosen", "checks_since", "state")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        vars(self).update(state)

    @torch.no_grad()
    def _held_out_loss(self) -> float:
        total, device, size = 0.0, device_of(self.network), batch_that_fits(self.held)
        with placed(self.network, device, training=False):
            for start in range(0, len(self.held), size):
                batch = self.held.take(torch.arange(start, min(start + size, len(self.held))))
                there = send_to_device(batch, device)
                total += float(self.objective.batch_loss(self.network, there)) * len(batch.inputs[0])
        return total / len(self.held)
