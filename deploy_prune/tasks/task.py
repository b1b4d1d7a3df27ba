"""The seam between the stages of a run and what the network is for.

B batch. Outputs are what a network's raw form gives: a tensor, or a tuple of tensors, each [B, ...].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image
from torch import Tensor

from deploy_prune.data.examples import Batch
from deploy_prune.data.splits import TransferData
from deploy_prune.families.raw_form import RawForm
from deploy_prune.tasks.distance import relative
from deploy_prune.types import Forward

Outputs = Any
Targets = Any


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a network is judged by. ``unit``: "%" is shown times 100 (values are 0 to 1). ``higher``: is better."""

    name: str
    unit: str = "%"
    higher: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """A picture, and what is drawn in it: (colour as "#1f77b4", words) each, as in ("#e41a1c", "cat 0.87")."""

    picture: Image
    found: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """What a network is for. A task of your own is one of these, or a function of no arguments that makes one.

    Attributes:
        score: what a network is judged by.
        load: (the recipe's ``data``, seed) -> examples to train on and to judge by.
        loss: (outputs, targets) -> scalar. Taken where the network's family has no loss of its own.
        judge: pairs of (what the network gives, targets), a batch each -> the score. What the network gives are its
            outputs or, where its family decodes them, its predictions. An artifact's go through the same decoding.
        distance: (a student's outputs, its teacher's, temperature) -> scalar; the teacher's need no gradient. Default:
            squared, over the teacher's variance in each channel.
        draw: (all examples, which of ``target_test`` int64 [N], what the network gives for them) -> N pictures with
            that drawn in, for the report; for None with the targets. What the network gives is as for ``judge``.
            Default: there are no pictures.
    """

    score: Score
    load: Callable[[Any, int], TransferData]
    loss: Callable[[Outputs, Targets], Tensor]
    judge: Callable[[Iterable[tuple[Any, Targets]]], float]
    distance: Callable[[Outputs, Outputs, float], Tensor] = relative
    draw: Callable[[TransferData, Tensor, Any], Sequence[Drawn]] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Objective:
    """What one network is trained for and judged by: its task, with its family's own loss, distance and decoding."""

    task: Task
    form: RawForm

    def loss(self, outputs: Outputs, targets: Targets) -> Tensor:
        """A scalar."""
        own = self.form.loss
        return self.task.loss(outputs, targets) if own is None else own(outputs, targets)

    def batch_loss(self, forward: Forward, batch: Batch) -> Tensor:
        """The loss of a batch: a `types.Loss`."""
        return self.loss(forward(*batch.inputs), batch.targets)

    def distance(self, student: Outputs, teacher: Outputs, temperature: float) -> Tensor:
        """How far a student's outputs are from its teacher's: a scalar."""
        own = self.form.distance
        return (self.task.distance if own is None else own)(student, teacher, temperature)

    def judge(self, pairs: Iterable[tuple[Outputs, Targets]]) -> float:
        """The score of a network's outputs, or of an artifact's, beside their targets; a batch each."""
        return self.task.judge(self._decoded(pairs))

    def decoded(self, outputs: Outputs) -> Any:
        """What is judged and drawn: predictions where the family decodes outputs, else these."""
        decode = self.form.decode
        return outputs if decode is None else decode(outputs)

    def _decoded(self, pairs: Iterable[tuple[Outputs, Targets]]) -> Iterator[tuple[Any, Targets]]:
        for outputs, targets in pairs:
            yield self.decoded(outputs), targets
