"""Learning from a teacher as well as from targets: Hinton, Vinyals, Dean, arXiv 1503.02531."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deploy_prune.data.examples import Batch
from deploy_prune.retrain.features import Match, Watch, feature_loss
from deploy_prune.tasks.task import Objective
from deploy_prune.types import Forward, Loss


def taught(
    objective: Objective,
    teacher: nn.Module | None,
    share: float,
    temperature: float,
    *,
    features: float = 0.0,
    match: Match | None = None,
) -> Loss:
    """The objective with a teacher, which must be on the batches' device and is called as it is: a `types.Loss`.

    (1 - share) times the objective's loss + share times its distance from the teacher's outputs. With a weight for
    ``features`` and a ``match``, the forward is the slim network itself, and the loss has their distance, too: see
    `feature_loss`. Without a teacher, or with no share of it at all, it is the objective's own loss.
    """
    compared = match if features > 0 else None
    if teacher is None or (share == 0 and compared is None):
        return objective.batch_loss

    def mixed(outputs: object, told: object, batch: Batch) -> Tensor:
        hard = objective.loss(outputs, batch.targets)
        return (1 - share) * hard + share * objective.distance(outputs, told, temperature)

    def loss(forward: Forward, batch: Batch) -> Tensor:
        if compared is None:
            with torch.no_grad():
                told = teacher(*batch.inputs)
            return mixed(forward(*batch.inputs), told, batch)
        assert isinstance(forward, nn.Module)
        with torch.no_grad(), Watch(teacher, compared.kept) as read_there:
            told = teacher(*batch.inputs)
        with Watch(forward, compared.kept) as read_here:
            outputs = forward(*batch.inputs)
        return mixed(outputs, told, batch) + features * feature_loss(read_here.read, read_there.read, compared)

    return loss
