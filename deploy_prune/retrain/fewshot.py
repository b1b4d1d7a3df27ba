"""Adapting a network to a new task with a few examples of each class, with or without a teacher."""

from __future__ import annotations

from contextlib import ExitStack

from torch import nn
from torch.optim import AdamW

from deploy_prune.data import Augment, Examples, batches
from deploy_prune.recipe import RetrainPart
from deploy_prune.retrain.batchnorm import reestimate
from deploy_prune.retrain.distill import taught
from deploy_prune.training import Session, decay_groups, fit, one_cycle, placed

BATCHNORM_EXAMPLES = 1000  # examples, augmented anew each time, that batch-norm statistics are averaged over
BETAS = (0.9, 0.99)  # the second moment's memory (100 steps) must not outlast the training


def adapt(
    network: nn.Module,
    examples: Examples,
    part: RetrainPart,
    *,
    teacher: nn.Module | None,
    session: Session,
    augment: Augment,
    work: str = "retrain",
) -> list[float]:
    """Train in place on ``examples`` (K shots a class), also towards the teacher's logits; the loss of each step.

    AdamW (Loshchilov and Hutter, arXiv 1711.05101) with one cycle of the learning rate: in the few steps that few
    examples need, it comes much further than SGD. The batch is at most the whole set. In the end batch-norm statistics
    are taken anew from the (augmented) examples, with the weights as they are then; the old ones would tell of another
    task and of wider layers, and while training the batch's own are used. Both networks come back on the device and in
    the mode they were in; the teacher's forward is in evaluation mode.

    Raises:
        TrainingError: the loss is not finite.
    """
    stream = batches(examples, part.batch_size, session.seed, augment)
    with ExitStack() as stack:
        stack.enter_context(placed(network, session.accelerator.device, training=True))
        if teacher is not None:
            stack.enter_context(placed(teacher, session.accelerator.device, training=False))
        optimizer = AdamW(decay_groups(network, part.weight_decay), lr=part.lr, betas=BETAS)
        task = taught(teacher, part.distill, part.temperature)
        losses = fit(
            lambda batch: task(network, batch),
            stream,
            [optimizer],
            accelerator=session.accelerator,
            steps=part.steps,
            work=work,
            progress=session.progress,
            schedulers=one_cycle(optimizer, part.lr, part.steps),
        )
        if part.reestimate_batchnorm:
            reestimate(network, stream, -(-BATCHNORM_EXAMPLES // min(part.batch_size, len(examples))))
    return losses
