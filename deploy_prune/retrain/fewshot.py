"""Adapting a network to a new task with a few examples of each class, with or without a teacher."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import AdamW

from deploy_prune.data.examples import Batch, ClassExamples, Examples
from deploy_prune.data.loaders import Batches, batches
from deploy_prune.data.transforms import Mix, drawn_mix, mixed
from deploy_prune.errors import RecipeError
from deploy_prune.recipe.parts import RetrainPart
from deploy_prune.retrain.distill import taught
from deploy_prune.retrain.features import Match
from deploy_prune.retrain.repair import Repaired, repair, some_inputs
from deploy_prune.retrain.stopping import Average, BestSoFar, hold_out
from deploy_prune.tasks.task import Objective
from deploy_prune.training.batchnorm import reestimate
from deploy_prune.training.channels_last import channels_last, sample
from deploy_prune.training.checkpointing import checkpointed
from deploy_prune.training.compiled import compiled
from deploy_prune.training.loop import (
    Session,
    Stepped,
    decay_groups,
    fit,
    one_cycle,
    placed,
)

BETAS: Final = (0.9, 0.99)  # the second moment's memory (100 steps) must not outlast the training
RATES: Final = {"inherit": 0.001, "fresh": 0.005}
"""Learning rates if the recipe gives none. From inherited weights 0.0005 to 0.002 came out alike, 0.005 lower."""
FEATURES: Final = {"inherit": 10.0, "fresh": 0.0}
"""Weights of the features if the recipe gives none. New weights learn features of their own faster: a ResNet-20 of half
the MACs on ten classes of CIFAR-100, ten images each, one draw: 44% without and 38% with the teacher's."""
REPAIR_BELOW: Final = 100
"""Steps from which on a repaired beginning is no better after a search that trains the weights, if the recipe doesn't
say: see `gate` in benchmarks/results/repair_resnet20.json. Chosen by training images that were held out."""
PASSES, FEWEST, MOST = 20, 400, 4000
"""Steps if the recipe gives none: so many passes over the examples, within these bounds."""


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """What came of it: the loss of every step, how many examples were held out to stop by, whose weights stayed.

    ``repaired``: what was computed before the first step; None: nothing.
    """

    losses: tuple[float, ...]
    repaired: Repaired | None
    num_held_out: int
    chosen_step: int
    seconds: float


def adapt(
    network: nn.Module,
    examples: Examples,
    objective: Objective,
    part: RetrainPart,
    *,
    teacher: nn.Module | None,
    session: Session,
    match: Match | None = None,
    work: str = "retrain",
) -> Adapted:
    """Train in place on ``examples``, also towards the teacher's outputs and (``match``) features.

    A network that was cut from the teacher (``match``) is repaired first (see `repair`), where `is_repaired` says so.
    AdamW (Loshchilov and Hutter, arXiv 1711.05101) with one cycle of the learning rate: in the few steps that few
    examples need, it comes much further than SGD. The batch is at most the whole set. Where examples are held out
    (``part.hold_out``), the weights that did best on them stay; without, all steps are taken and the last weights stay.
    With ``batchnorm: reestimate`` statistics are taken anew in the end from the (augmented) examples, with the weights
    as they are then: the old ones would tell of another task and of wider layers. Both networks come back on the device
    and in the mode that they were in; the teacher's forward is in evaluation mode.

    Raises:
        TrainingError: the loss is not finite.
    """
    started, device = time.perf_counter(), session.accelerator.device
    examples, held = hold_out(examples, part.hold_out, session.seed)
    steps = num_steps(part, len(examples))
    stream = batches(examples, part.batch_size, session.seed)
    with ExitStack() as stack:
        stack.enter_context(placed(network, device, training=True))
        if teacher is not None:
            stack.enter_context(placed(teacher, device, training=False))
        repaired = _repaired(network, teacher, match, part, examples, session)
        loss = taught(objective, teacher, part.distill, part.temperature, features=feature_weight(part), match=match)
        for asked in [network] if teacher is None or loss == objective.batch_loss else [network, teacher]:
            stack.enter_context(channels_last(asked, sample(examples, device), device))
        stack.enter_context(checkpointed(network, session.checkpointing))
        forward = stack.enter_context(compiled(network, session.compiling))
        if part.batchnorm == "freeze":
            freeze_statistics(network)
        optimizer = AdamW(decay_groups(network, part.weight_decay, peak_rate(part), part.first_layer_lr), betas=BETAS)
        average = Average(network, part.ema) if part.ema is not None else None
        candidate = average.network if average else network
        best = BestSoFar(candidate, held, objective, steps, session.ranks) if held is not None else None
        schedulers: list[Stepped] = [*one_cycle(optimizer, steps), *(one for one in (average, best) if one)]
        losses = fit(
            lambda batch: loss(forward, batch), mixed_batches(stream, part, examples, session.seed), [optimizer],
            session=session, steps=steps, work=work, schedulers=schedulers, trained=[network],
        )  # fmt: skip
        if best is not None and best.state:
            network.load_state_dict(best.state)
        elif average is not None:
            network.load_state_dict(average.network.state_dict())
        if part.batchnorm == "reestimate" and (losses or repaired is None):  # a repair has measured them
            reestimate(network, stream)
    return Adapted(
        losses=tuple(losses), repaired=repaired, num_held_out=0 if held is None else len(held),
        chosen_step=best.chosen if best is not None and best.state else len(losses),
        seconds=time.perf_counter() - started,
    )  # fmt: skip


def num_steps(part: RetrainPart, num_examples: int) -> int:
    """As the recipe says, or by the number of examples."""
    if part.steps is not None:
        return part.steps
    return min(MOST, max(FEWEST, PASSES * num_examples // min(part.batch_size, num_examples)))


def is_repaired(part: RetrainPart, steps: int) -> bool:
    """As the recipe says, or where so few steps follow that it pays; new weights are not, if it doesn't say."""
    return part.repair if part.repair is not None else part.init == "inherit" and steps < REPAIR_BELOW


def _repaired(
    network: nn.Module, teacher: nn.Module | None, match: Match | None, part: RetrainPart, examples: Examples,
    session: Session,
) -> Repaired | None:  # fmt: skip
    if teacher is None or match is None or not is_repaired(part, num_steps(part, len(examples))):
        return None
    return repair(network, teacher, match, some_inputs(batches(examples, part.batch_size, session.seed)))


def for_new_classes(part: RetrainPart) -> RetrainPart:
    """The part for a network with new class layers: these take the higher learning rate, if the recipe gives none."""
    return part if part.lr is not None else part.model_copy(update={"lr": RATES["fresh"]})


def peak_rate(part: RetrainPart) -> float:
    """The last layer's, as the recipe says, or by where the weights come from."""
    return part.lr if part.lr is not None else RATES[part.init]


def feature_weight(part: RetrainPart) -> float:
    """As the recipe says, or by where the weights come from."""
    return part.features if part.features is not None else FEATURES[part.init]


def freeze_statistics(network: nn.Module) -> None:
    """Batch norms use the statistics that they have, also while they are trained."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def mixed_batches(stream: Batches, part: RetrainPart, examples: Examples, seed: int) -> Batches | Mixed:
    """The stream, its examples mixed with each other as the recipe says; targets are then shares, float [B, classes].

    Raises:
        RecipeError: they are to be mixed, and are no images with a class each.
    """
    if part.mix == "none":
        return stream
    if not isinstance(examples, ClassExamples):
        message = f"retrain.mix: {part.mix} mixes images that have a class each; this task's examples have none."
        raise RecipeError(message)
    shape = examples.take(torch.tensor([0])).inputs[0].shape[1:]
    return Mixed(stream, part.mix, int(examples.labels.max()) + 1, seed, (stream.drawn.size, *shape))


class Mixed(Iterator[Batch]):
    """A stream whose examples are mixed with each other."""

    def __init__(self, stream: Batches, kind: Mix, num_classes: int, seed: int, shape: tuple[int, ...]) -> None:
        self.stream, self.kind, self.num_classes, self.shape = stream, kind, num_classes, shape
        self.generator = torch.Generator().manual_seed(seed)

    def __next__(self) -> Batch:
        """The stream's next batch, mixed."""
        batch = next(self.stream)
        x, shares = mixed(batch.inputs[0], batch.targets, self.num_classes, self.kind, self.generator)
        return Batch((x,), shares)

    def take_turns(self, turn: int, turns: int) -> None:
        """As `InTurns`."""
        self.stream.take_turns(turn, turns)

    def skip(self) -> None:
        """As `InTurns`."""
        self.stream.skip()
        drawn_mix(self.shape, self.kind, self.generator)

    def state_dict(self) -> dict[str, Any]:
        """Which batch is next, and how it is mixed."""
        return {"stream": self.stream.state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with that batch."""
        self.stream.load_state_dict(state["stream"])
        self.generator.set_state(state["generator"])
