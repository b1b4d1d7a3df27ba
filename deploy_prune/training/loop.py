"""Training: the package's one loop, and what it is given. Device placement and precision come from accelerate."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.utils._pytree import tree_map

from deploy_prune.data.examples import Examples
from deploy_prune.data.loaders import InTurns, batches
from deploy_prune.errors import TrainingError
from deploy_prune.recipe.parts import TrainPart
from deploy_prune.tasks.task import Objective
from deploy_prune.training.accelerator import OwnAccelerator
from deploy_prune.training.batchnorm import RunningStatistics, reestimate
from deploy_prune.training.channels_last import channels_last, sample
from deploy_prune.training.checkpointing import checkpointed
from deploy_prune.training.compiled import compiled
from deploy_prune.training.kept import Kept, Stateful
from deploy_prune.training.ranks import ALONE, Ranks
from deploy_prune.types import Progress, silent

MOMENTUM = 0.9
PRECISIONS = ("no", "bf16")
SCORED, SCORED_NUMBERS = 256, 1 << 23  # examples that are scored at a time, and numbers of their inputs
DIVERGED = 1e15  # a loss from here on is one of a training that has gone astray, as one that is not finite
WARMUP_SHARE = 0.2  # of the steps, in which the learning rate rises


class Stepped(Protocol):
    """What takes a step after every step of the optimizers: a schedule, an average of weights."""

    def step(self) -> bool | None:
        """Take it; True if that was enough."""


@runtime_checkable
class Books(Protocol):
    """What keeps account of each step, which may have several batches, taken by several processes."""

    def figures(self) -> list[float]:
        """Of our batches of this step: means over them."""

    def close(self, figures: Sequence[float]) -> None:
        """The step's gradients are there; ``figures``: means over all its batches."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Session:
    """Where training runs, from which seed, and what is told of its progress.

    Attributes:
        accelerator: device and precision, from `make_accelerator`; default: a GPU if there is one.
        seed: of everything that is drawn.
        progress: called with the work's name, steps done and steps in all.
        kept: where a training that was stopped goes on, and keeps how far it has come; None: it begins anew.
        ranks: the processes that train together.
        checkpointing: feature maps are computed again instead of kept, see `checkpointed`.
        compiling: dense and slim networks are compiled for training, see `compiled`; the search's isn't.
    """

    accelerator: Accelerator = field(default_factory=lambda: make_accelerator("auto"))
    seed: int = 0
    progress: Progress = silent
    kept: Kept | None = None
    ranks: Ranks = ALONE
    checkpointing: bool = False
    compiling: bool = False


def set_seed(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch (every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


def make_accelerator(
    device: str,
    mixed_precision: str = "no",
    accumulate: int = 1,
    trackers: Sequence[str] = (),
    folder: Path | None = None,
) -> Accelerator:
    """Where training runs: ``device`` "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N"; "bf16" as precision.

    ``accumulate``: batches whose mean gradient makes one step. ``trackers``, and the folder for their files: see
    `tracking`. Whatever accelerators the user's own program has go on as they were.

    Raises:
        TrainingError: another device, a CUDA device that is not there, or a precision that needs scaled gradients.
    """
    if mixed_precision not in PRECISIONS or accumulate < 1:
        message = f"mixed_precision is one of {', '.join(PRECISIONS)}, not {mixed_precision!r}; accumulate at least 1."
        raise TrainingError(message)
    kind, _, index = device.partition(":")
    if kind not in {"auto", "cpu", "cuda"} or (index and kind != "cuda"):
        message = f"device: {device!r} is none of auto, cpu, cuda and cuda:N."
        raise TrainingError(message)
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        message = f"device: {device} is asked for, and torch finds {torch.cuda.device_count()} CUDA devices; use auto."
        raise TrainingError(message)
    if index:
        torch.cuda.set_device(int(index))
    return OwnAccelerator(
        cpu=device == "cpu", mixed_precision=mixed_precision, gradient_accumulation_steps=accumulate,
        log_with=list(trackers) or None, project_dir=folder,
    )  # fmt: skip


def device_of(network: nn.Module) -> torch.device:
    """Where the network's parameters are."""
    return next((p.device for p in network.parameters()), torch.device("cpu"))


@contextmanager
def placed(network: nn.Module, device: torch.device, *, training: bool) -> Iterator[nn.Module]:
    """The network on this device and in this mode; afterwards back where it was and as it was."""
    home = device_of(network)
    modes = {module: module.training for module in network.modules()}
    network.to(device).train(training)
    try:
        yield network
    finally:
        network.to(home)
        for module, mode in modes.items():
            module.training = mode


def fit(
    step_loss: Callable[[Any], Tensor],
    batches: Iterator[Any],
    optimizers: Sequence[Optimizer],
    *,
    session: Session,
    steps: int,
    work: str,
    schedulers: Sequence[Stepped] = (),
    trained: Sequence[Stateful] = (),
) -> list[float]:
    """Take ``steps`` steps on ``step_loss(batch)`` (a scalar) with every optimizer; the losses, one a step.

    Whatever is in ``schedulers`` takes a step after each, and may say that it is enough. What is trained must be on the
    accelerator's device already; batches (tensors, nested as they like) are moved. A step takes as many batches as the
    accelerator accumulates gradients over, and their mean loss. Several processes (``session.ranks``) take so many each
    of the same batches, which must be `InTurns`, and all take the same steps; only the first comes back.

    Where the session keeps how far a training has come, batches and schedulers have a state, too (`Stateful`), and
    ``trained`` is all else that changes: networks, and what the loss remembers. A training that was stopped goes on
    after the step that was kept last, as if it had not been.

    Raises:
        TrainingError: the loss is not finite, or beyond all measure; with the work, the step and the learning rate.
            Nothing is updated then.
    """
    kept, ranks = session.kept, session.ranks
    changing = cast(Sequence[Stateful], [*trained, *optimizers, *schedulers, batches])
    losses = kept.restore(changing) if kept else []
    if kept and losses:
        kept.tell(f"{work} goes on at step {len(losses) + 1} of {steps}")
    parameters = [x for optimizer in optimizers for group in optimizer.param_groups for x in group["params"]]
    book = next((part for part in trained if isinstance(part, Books)), None)
    running = RunningStatistics(trained if ranks.size > 1 else (), _batches_a_step(session))
    if ranks.size > 1:
        cast(InTurns, batches).take_turns(ranks.rank, ranks.size)
    for step in range(len(losses) + 1, steps + 1):
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        running.begin()
        own_loss = _backward(step_loss, batches, running, optimizers, session=session, step=step, work=work)
        loss, *figures = ranks.share(parameters, running.sums, [own_loss, *(book.figures() if book else ())])
        running.end()
        if book:
            book.close(figures)
        losses.append(loss)
        for optimizer in optimizers:
            optimizer.step()
        enough = [scheduler.step() for scheduler in schedulers]
        session.progress(work, step, steps, loss=loss)
        if True in enough:
            break
        if kept:
            kept.keep(changing, losses)
    if ranks.size > 1:
        ranks.leave()
        cast(InTurns, batches).take_turns(0, 1)
    return losses


def _batches_a_step(session: Session) -> int:
    """Of all processes together."""
    parts: int = session.accelerator.gradient_accumulation_steps
    return parts * session.ranks.size


def _backward(
    step_loss: Callable[[Any], Tensor], batches: Iterator[Any], running: RunningStatistics,
    optimizers: Sequence[Optimizer], *, session: Session, step: int, work: str,
) -> float:  # fmt: skip
    """Take our batches of a step: their mean gradient, which is accumulated, and their mean loss.

    Where a step has several batches, global generators begin anew for each: what is drawn for a batch (dropout, gates)
    is then the same, whoever takes it.
    """
    accelerator, num = session.accelerator, _batches_a_step(session)
    mean = 0.0
    for number in range(num):
        if not session.ranks.is_ours(number):
            cast(InTurns, batches).skip()
            continue
        batch = send_to_device(next(batches), accelerator.device)
        if num > 1:
            set_seed(int(np.random.SeedSequence((session.seed, step, number)).generate_state(1, np.uint64)[0]))
        with running.batch(number), accelerator.autocast():
            loss = step_loss(batch)
        mean += _finite(loss, step, work, optimizers) / accelerator.gradient_accumulation_steps
        accelerator.backward(loss)  # of the loss over the batches that are accumulated
    return mean


def train_network(
    network: nn.Module, examples: Examples, objective: Objective, part: TrainPart, *, session: Session, work: str
) -> list[float]:
    """Train in place with the objective's loss, SGD with Nesterov momentum and one cycle of the learning rate.

    Batch-norm statistics are taken anew in the end: in a short training, norms with a small momentum (torchvision's
    MobileNetV3 has 0.01) would still have their first ones.

    Returns the loss of every step. The network comes back on the device and in the mode it was in.

    Raises:
        TrainingError: the loss is not finite.
    """
    device = session.accelerator.device
    with (
        placed(network, device, training=True),
        channels_last(network, sample(examples, device), device),
        checkpointed(network, session.checkpointing),
        compiled(network, session.compiling) as forward,
    ):
        groups = decay_groups(network, part.weight_decay, part.lr)
        optimizer = SGD(groups, lr=part.lr, momentum=MOMENTUM, nesterov=True)
        stream = batches(examples, part.batch_size, session.seed)
        losses = fit(
            lambda batch: objective.batch_loss(forward, batch),
            stream,
            [optimizer],
            session=session,
            steps=part.steps,
            work=work,
            schedulers=one_cycle(optimizer, part.steps),
            trained=[network],
        )
        if losses:
            reestimate(network, stream)
    return losses


def decay_groups(network: nn.Module, weight_decay: float, lr: float, first: float = 1.0) -> list[dict[str, Any]]:
    """What is trained, for an optimizer: only weights of two or more axes decay, not biases and norms.

    He et al., arXiv 1812.01187, section 3.1. ``lr`` is the last layer's learning rate; the first one's is ``first``
    times it, and between them it grows by the same factor from layer to layer (Howard and Ruder, arXiv 1801.06146,
    section 3.2), layers in the order of their definition.
    """
    layers = [[p for p in m.parameters(recurse=False) if p.requires_grad] for m in network.modules()]
    layers = [layer for layer in layers if layer]
    seen: set[int] = set()
    groups: list[dict[str, Any]] = []
    for depth, layer in enumerate(layers):
        rate = lr * first ** (1 - depth / max(1, len(layers) - 1)) if first < 1 else lr
        for decays in (True, False):
            params = [p for p in layer if (p.ndim > 1) == decays and id(p) not in seen]
            seen |= set(map(id, params))
            if params:
                groups.append({"params": params, "lr": rate, "weight_decay": weight_decay if decays else 0.0})
    return groups if first < 1 else _joined(groups)


def _joined(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Groups of equal settings as one: optimizers take a group at a time."""
    joined: dict[tuple[float, float], list[Any]] = {}
    for group in groups:
        joined.setdefault((group["lr"], group["weight_decay"]), []).extend(group["params"])
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in joined.items()]


def one_cycle(optimizer: Optimizer, steps: int) -> list[LRScheduler]:
    """Each group's learning rate rises from a tenth to the whole in a fifth of the steps, then falls to nearly 0.

    After Smith and Topin, arXiv 1708.07120 (cosine), with a constant momentum.
    """
    if steps < 2:
        return []
    return [
        OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=steps + 1,
            pct_start=max(WARMUP_SHARE, 2 / (steps + 1)),  # one step at least
            cycle_momentum=False,
            div_factor=10,
        )
    ]


@torch.no_grad()
def outputs_and_targets(network: nn.Module, examples: Examples, device: torch.device) -> Iterator[tuple[Any, Any]]:
    """What the network gives for all examples, in order, a batch at a time, and their targets; both on the CPU."""
    size = batch_that_fits(examples)
    for start in range(0, len(examples), size):
        batch = examples.take(torch.arange(start, min(start + size, len(examples))))
        outputs = network(*(x.to(device) for x in batch.inputs))
        yield tree_map(lambda x: x.cpu() if isinstance(x, Tensor) else x, outputs), batch.targets


def batch_that_fits(examples: Examples) -> int:
    """Examples that are asked at a time: at most SCORED, and so many that their inputs have SCORED_NUMBERS numbers."""
    numbers = sum(x[:1].numel() for x in examples.take(torch.tensor([0])).inputs)
    return max(1, min(SCORED, SCORED_NUMBERS // max(1, numbers)))


def network_score(
    network: nn.Module, examples: Examples, objective: Objective, *, accelerator: Accelerator | None = None
) -> float:
    """The network's score on the examples, in evaluation mode; the mode is restored.

    Runs where the network is, or on the accelerator's device if one is given.
    """
    device = accelerator.device if accelerator else device_of(network)
    with placed(network, device, training=False):
        return objective.judge(outputs_and_targets(network, examples, device))


def _finite(loss: Tensor, step: int, work: str, optimizers: Sequence[Optimizer]) -> float:
    value = float(loss.detach())
    if not abs(value) < DIVERGED:
        rate = optimizers[0].param_groups[0]["lr"] if optimizers else 0.0
        message = f"{work}: the loss is {value} at step {step}, learning rate {rate:g}; lower the learning rate."
        raise TrainingError(message)
    return value
