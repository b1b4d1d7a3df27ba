"""Adapting a network to a new task with a few examples of each class, with or without a teacher."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from deploy_prune.data import Augment, Batch, Examples, batches
from deploy_prune.recipe import RetrainPart
from deploy_prune.retrain.batchnorm import reestimate
from deploy_prune.retrain.distill import distillation
from deploy_prune.training import classification, fit, one_cycle, placed
from deploy_prune.types import Progress, silent

BATCHNORM_EXAMPLES = 2000  # examples, augmented anew each time, that batch-norm statistics are averaged over


def adapt(
    network: nn.Module,
    examples: Examples,
    part: RetrainPart,
    *,
    teacher: nn.Module | None,
    accelerator: Accelerator,
    seed: int,
    augment: Augment,
    progress: Progress = silent,
    work: str = "retrain",
) -> list[float]:
    """Train in place on ``examples`` (K shots a class), also towards the teacher's logits; the loss of each step.

    The batch is at most the whole set. Batch-norm statistics are taken from the (augmented) examples before training,
    as the old ones belong to another task or to wider layers, and again after it, as few steps leave them behind.
    Both networks come back on the device and in the mode they were in; the teacher's forward is in evaluation mode.

    Raises:
        TrainingError: the loss is not finite.
    """
    stream = batches(examples, part.batch_size, seed, augment)
    num_batches = -(-BATCHNORM_EXAMPLES // min(part.batch_size, len(examples)))
    with ExitStack() as stack:
        stack.enter_context(placed(network, accelerator.device, training=True))
        if teacher is not None:
            stack.enter_context(placed(teacher, accelerator.device, training=False))
        if part.reestimate_batchnorm:
            reestimate(network, stream, num_batches)
        optimizer, schedulers = one_cycle(network, part.lr, part.weight_decay, part.steps)
        losses = fit(
            lambda batch: _loss(network, teacher, batch, part),
            stream,
            [optimizer],
            accelerator=accelerator,
            steps=part.steps,
            work=work,
            progress=progress,
            schedulers=schedulers,
        )
        if part.reestimate_batchnorm:
            reestimate(network, stream, num_batches)
    return losses


def _loss(network: nn.Module, teacher: nn.Module | None, batch: Batch, part: RetrainPart) -> Tensor:
    if teacher is None or part.distill == 0:
        return classification(network, batch)
    x, y = batch
    with torch.no_grad():
        target = teacher(x)
    return distillation(network(x), target, y, part.distill, part.temperature)
