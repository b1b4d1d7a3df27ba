"""Learning gates by gradient descent: what the differentiable methods have in common.

A method relaxes one logit a unit into gates, with a backward rule of its own. Here the gates meet the task, and the
budget: an open gate costs a price, in units of the task's own gradient, times its marginal cost in the dense network;
the price follows the gap between the expected cost and a falling limit, by an integral and a proportional part, and is
never negative. So no weight of the penalty has to be tuned by hand. (Along the cost's true gradient, a group that
closes makes its neighbours cheap: every second group empties. Under a price of either sign, gates that do nothing open
and close together.) A group's strongest gate never closes. A unit ranks by the mean of its logit over the last part of
the search, for the logit of a gate that matters swings about 0.

Legend: N units of all groups, C units of one group, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

from deploy_prune.networks.copies import copied
from deploy_prune.networks.tensors import moved
from deploy_prune.recipe.parts import Part, SearchPart
from deploy_prune.search.frame import SearchJob
from deploy_prune.search.gated_network import gated
from deploy_prune.training.loop import fit, set_seed
from deploy_prune.types import Progress, Scores, SearchResult

Weights = Literal["joint", "frozen", "resample"]
REACH = 30.0
"""How far all steps together can take a logit, unless the learning rate is given: gates, sampled ones too, close in a
short search as in a long one. Chosen on CIFAR-10 with ResNet-20: with half of it gumbel's gates don't get shut."""


class RelaxedOptions(Part):
    """Options of every differentiable method."""

    weights: Weights = Field(
        default="joint",
        description="The weights while gates are learned. joint: trained too. frozen: left as they are. resample: "
        "drawn anew for each step by the layers' own initialisers.",
    )
    anneal: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.65, description="Share of the steps in which the limit on the cost falls from dense to the budget."
    )
    gain: Annotated[float, Field(gt=0, le=1000)] = Field(
        default=0.1,
        description="How fast the price of the cost follows the gap to the limit, per step. In shares of the task's "
        "gradient per unit of relative cost.",
    )
    damping: Annotated[float, Field(ge=0, le=1000)] = Field(
        default=2.0, description="How strongly the price answers to the gap at once, in the same unit."
    )
    average: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.35,
        description="Share of the steps, at the end, in which the gates' learning rate falls to 0. Scores are the mean "
        "logits of these steps.",
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.9, description="Momentum of the weights' SGD, whose learning rate falls to 0 along a cosine."
    )
    weight_decay: Annotated[float, Field(ge=0, le=1)] = Field(default=1e-4, description="Weight decay of that SGD.")


@dataclass(frozen=True, kw_only=True)
class Relaxation:
    """One method's relaxation, elementwise, of logits [N] of the network's dtype.

    ``sample``: the gates of one step, in [0, 1], differentiable by the method's rule. ``expected``: their expectation,
    which the cost is taken of; None where sampling is deterministic. ``start``: every logit at first. ``rescale``: one
    scalar per weight that gates sit on is learned, too, with this learning rate; None for none.
    """

    sample: Callable[[Tensor], Tensor]
    expected: Callable[[Tensor], Tensor] | None = None
    start: float
    rescale: float | None = None


def learn_gates(job: SearchJob, options: RelaxedOptions, relaxation: Relaxation) -> SearchResult:
    """Train gates (and weights, if joint) while the limit on the expected cost falls to the budget's.

    Returns the averaged logits, which rank the units; the state dict: of the trained copy, learned scales multiplied
    into the weights, or as it was where weights are resampled; and the trace, a row a step: ``loss`` (the task's),
    ``cost`` and ``limit`` (relative to dense), ``lambda`` (the price) and ``kept`` (expected number of open gates).

    Raises:
        TrainingError: the loss is not finite.
    """
    session, config = job.session, job.config
    set_seed(session.seed)
    trained = moved(copied(job.network), session.accelerator.device).train()
    if options.weights != "joint":
        trained.requires_grad_(requires_grad=False)
    search = GateSearch(trained, job, options, relaxation)
    optimizers, schedulers = weight_optimizers(trained, options, config)
    gates = Adam([search.logit_N], lr=gate_rate(config), eps=1e-12)
    optimizers, schedulers = [*optimizers, gates], [*schedulers, settling(gates, options.average, config.steps)]
    if relaxation.rescale is not None:
        optimizers.append(SGD(search.scales.values(), lr=relaxation.rescale, momentum=0.9))
    fit(
        search.loss, job.batches, optimizers, session=replace(session, progress=search.told(session.progress)),
        steps=config.steps, work="search", schedulers=schedulers, trained=[trained, search],
    )  # fmt: skip
    source = job.network if options.weights == "resample" else search.rescaled()
    state = {name: tensor.detach().cpu().clone() for name, tensor in source.state_dict().items()}
    return SearchResult(scores=search.ranks(), state=state, trace=tuple(search.trace))


class GateSearch:
    """One search under way: the logits, the price of the cost, and the trace so far."""

    def __init__(self, network: nn.Module, job: SearchJob, options: RelaxedOptions, relaxation: Relaxation) -> None:
        self.network, self.job, self.options, self.relaxation = network, job, options, relaxation
        self.gating = gated(network, job.structure, job.config.batch_size)
        self.sizes = {group.name: group.channels for group in job.structure.groups}
        device = self.gating.index_A.device
        sizes_G = torch.tensor(list(self.sizes.values()), device=device)
        self.group_N = torch.arange(len(sizes_G), device=device).repeat_interleave(sizes_G)
        self.stays_G = torch.tensor([not group.is_branch for group in job.structure.groups], device=device)
        self.logit_N = nn.Parameter(torch.full((len(self.group_N),), float(relaxation.start), device=device))
        self.sum_N, self.num_summed = torch.zeros_like(self.logit_N, requires_grad=False), 0
        names = sorted({axis.tensor for group in job.structure.groups for axis in group.consumers})
        self.scales = {n: nn.Parameter(torch.ones((), device=device)) for n in names if relaxation.rescale is not None}
        self.dense = job.goal.cost(job.structure.dense_counts)
        self.slope_N = self._slope()
        self.price, self.unit = 0.0, 0.0
        self.parts: int = job.session.accelerator.gradient_accumulation_steps
        self.trace: list[dict[str, float]] = []
        self.row: dict[str, float] = {}  # of the step under way
        self.losses, self.norms = 0.0, 0.0  # of its batches: sums
        self.shares: list[float] = []

    def loss(self, batch: Any) -> Tensor:
        """The task's loss with the gates on, plus what the open gates cost at the present price."""
        if self.options.weights == "resample":
            redraw(self.network)
        gates_N, expected_N = self._gates()
        if not self.row:
            self._open(expected_N)
        forward = self.gating.forward(self._by_group(self._watched(gates_N)), self.scales)
        task_loss = self.job.loss(forward, batch)
        self.losses += float(task_loss.detach())
        gap = self.row["cost"] - self.row["limit"]
        price = self.unit * (self.price + self.options.damping * max(0.0, gap))
        return task_loss + price * (self.slope_N * expected_N).sum()

    def figures(self) -> list[float]:
        """The task's loss, and the L1 norm of its gradient."""
        return [self.losses / self.parts, self.norms / self.parts]

    def close(self, figures: Sequence[float]) -> None:
        """Note the step, and what its batches tell of the price's unit: the running norm of the task's gradient."""
        loss, norm = figures
        self.unit = 0.9 * self.unit + 0.1 * norm if self.unit else norm
        self.trace.append({"step": self.row["step"], "loss": loss, **self.row})
        self.row, self.losses, self.norms = {}, 0.0, 0.0

    def told(self, progress: Progress) -> Progress:
        """The progress, told of the expected cost, its limit and what is kept, in all and of each group, too."""

        def tell(work: str, done: int, total: int, **figures: float) -> None:
            last = {name: self.trace[-1][name] for name in ("cost", "limit", "kept")}
            shares = {f"kept/{name}": share for name, share in zip(self.sizes, self.shares, strict=True)}
            progress(work, done, total, **figures, **last, **shares)

        return tell

    def ranks(self) -> Scores:
        """The mean of the logits over the last steps, per group [C]; the logits themselves if there was no step."""
        if not self.num_summed:
            self._average()
        return {name: mean_C.cpu() for name, mean_C in self._by_group(self.sum_N / self.num_summed).items()}

    def state_dict(self) -> dict[str, Any]:
        """All that the search remembers from step to step."""
        return {
            "tensors": {"logit_N": self.logit_N.detach(), "sum_N": self.sum_N},
            "scales": {name: scale.detach() for name, scale in self.scales.items()},
            "numbers": {name: getattr(self, name) for name in ("num_summed", "price", "unit", "trace")},
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        for name, tensor in state["tensors"].items():
            getattr(self, name).copy_(tensor)
        for name, scale in self.scales.items():
            scale.copy_(state["scales"][name])
        vars(self).update(state["numbers"])

    @torch.no_grad()
    def rescaled(self) -> nn.Module:
        """The network, each weight multiplied by its learned scale."""
        tensors = self.network.state_dict(keep_vars=True)
        for name, scale in self.scales.items():
            tensors[name].mul_(scale)
        return self.network

    def _gates(self) -> tuple[Tensor, Tensor]:
        """(this step's gates, their expectation), [N]: a group's strongest is open, its derivative as it is.

        But a branch may be shut.
        """
        gates_N = self.relaxation.sample(self.logit_N)
        expected_N = gates_N if self.relaxation.expected is None else self.relaxation.expected(self.logit_N)
        with torch.no_grad():
            strongest_G = torch.full((len(self.sizes),), -torch.inf, device=self.logit_N.device)
            strongest_G.scatter_reduce_(0, self.group_N, self.logit_N, "amax")
            is_open_N = (self.logit_N >= strongest_G[self.group_N]) & self.stays_G[self.group_N]
            closed_N, missing_N = is_open_N * (1 - gates_N), is_open_N * (1 - expected_N)
        return gates_N + closed_N, expected_N + missing_N

    @torch.no_grad()
    def _cost(self, expected_N: Tensor) -> float:
        """The expected cost of these gates over the dense network's."""
        counts = {name: gates_C.sum() for name, gates_C in self._by_group(expected_N).items()}
        return float(self.job.goal.cost.expected(counts)) / self.dense

    def _slope(self) -> Tensor:
        """Each gate's share of the dense cost: its marginal cost there, over that cost, float32[N]."""
        counts = {name: torch.tensor(float(size), requires_grad=True) for name, size in self.sizes.items()}
        slope_G = torch.stack(torch.autograd.grad(self.job.goal.cost.expected(counts), list(counts.values())))
        return slope_G.to(self.group_N.device)[self.group_N] / self.dense

    def _limit(self) -> float:
        """1 at the start, falling linearly to the goal's share of the dense cost."""
        done = min(1.0, (len(self.trace) + 1) / (self.options.anneal * self.job.config.steps))
        return 1 - done * (1 - min(1.0, self.job.goal.limit / self.dense))

    def _watched(self, gates_N: Tensor) -> Tensor:
        """The same gates, whose gradient from the task sets the unit of the price: its L1 norm is noted."""
        watched_N = gates_N.view_as(gates_N)

        def note(gradient_N: Tensor) -> None:
            self.norms += self.parts * float(gradient_N.abs().sum())

        watched_N.register_hook(note)
        return watched_N

    def _by_group(self, values_N: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.sizes, torch.split(values_N, list(self.sizes.values())), strict=True))

    def _average(self) -> None:
        if len(self.trace) >= (1 - self.options.average) * self.job.config.steps:
            self.sum_N += self.logit_N.detach()
            self.num_summed += 1

    def _open(self, expected_N: Tensor) -> None:
        """What is the same for all batches of a step: the cost, its limit and the price."""
        self._average()
        row = {"step": len(self.trace) + 1, "cost": self._cost(expected_N), "limit": self._limit()}
        self.price = max(0.0, self.price + self.options.gain * (row["cost"] - row["limit"]))
        kept_G = torch.zeros(len(self.sizes), device=expected_N.device).index_add(0, self.group_N, expected_N.detach())
        self.shares = (kept_G / torch.bincount(self.group_N)).tolist()
        self.row = row | {"lambda": self.price, "kept": float(kept_G.sum())}


def weight_optimizers(
    network: nn.Module, options: RelaxedOptions, config: SearchPart
) -> tuple[list[Optimizer], list[LRScheduler]]:
    """SGD for the weights that are trained, and its falling learning rate; nothing if there are none."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    if not weights:
        return [], []
    optimizer = SGD(
        weights, lr=config.lr, momentum=options.momentum, weight_decay=options.weight_decay,
        nesterov=options.momentum > 0,
    )  # fmt: skip
    if config.max_step is not None:
        optimizer.register_step_pre_hook(partial(_limit, config.max_step))
    return [optimizer], [CosineAnnealingLR(optimizer, T_max=max(1, config.steps))]


@torch.no_grad()
def _limit(most: float, optimizer: Optimizer, *_: Any) -> None:
    """Scale the gradient down, so that lr |g| <= most |w| over all weights.

    SGD's step goes with the loss's unit: a squared error of values around 100 moves weights 10,000 times as far as one
    of values around 1, and at a classifier's learning rate such a network is destroyed.
    """
    (group,) = optimizer.param_groups
    weights = [w for w in group["params"] if w.grad is not None]
    if not weights:
        return
    step = group["lr"] * torch.stack([w.grad.norm() for w in weights]).norm()
    limit = most * torch.stack([w.norm() for w in weights]).norm()
    if step > limit:
        for w in weights:
            w.grad.mul_(limit / step)


def gate_rate(config: SearchPart) -> float:
    """The learning rate of the gates: the given one, or `REACH` over the number of steps."""
    return config.lr_gates or REACH / max(1, config.steps)


def settling(optimizer: Optimizer, share: float, steps: int) -> LRScheduler:
    """The learning rate stays, then falls linearly to 0 in this share of the steps, the last ones."""
    return LambdaLR(optimizer, lambda step: min(1.0, max(0.0, (steps - step) / max(1.0, share * steps))))


@torch.no_grad()
def redraw(network: nn.Module) -> None:
    """Draw every layer's weights anew, each from its own initialiser (its ``reset_parameters``), in place.

    Parameters that their layer can't draw (tokens, position embeddings) stay.
    """
    for module in network.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
