"""The trainable gate (TGF), AAAI 2020, arXiv 1904.10921.

Kim, Park, Jung, Choe: "Plug-in, Trainable Gate for Streamlining Arbitrary Neural Networks".

    TG_M(w; g) = b(w) + s_M(w) g(w),   b(w) = 1[w > 0],   s_M(w) = (M w - floor(M w)) / M

The sawtooth s_M has slope 1 almost everywhere and height 1/M: the value is b(w) + O(1/M), the derivative g(w) + O(1/M).
Here M is infinite: the value is the step, the derivative is g, exactly. Weights and gates are trained together, the
weights from where they are, the gates from open.

Departs from the paper in how the target enters. There, lambda * (tau - rho)^2 with a lambda to tune. Here an open gate
costs a price, in units of the task's own gradient, times its marginal cost in the dense network; the price follows the
gap between the expected cost and a falling limit, by an integral and a proportional part, and is never negative. (Along
the cost's true gradient, a group that closes makes its neighbours cheap: every second group empties. Under a price of
either sign, gates that do nothing open and close together.) The gates have an optimizer of their own (Adam), and the
weights' learning rate falls to 0 along a cosine; a group's strongest gate never closes; a unit ranks by the mean of w
over the last part of the search, for the w of a gate that matters swings about 0.

Legend: N units of all groups, C units of one group, G groups.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from deploy_prune.recipe import Part, SearchPart
from deploy_prune.search.budget import threshold_values
from deploy_prune.search.gated import gated
from deploy_prune.search.method import SearchGoal, read_options
from deploy_prune.training import Session, fit, set_seed
from deploy_prune.types import Scores, SearchResult, Structure, Task

Shape = Literal["constant", "sigmoid"]


class GateOptions(Part):
    """Options of `gate`.

    ``derivative``: g, either 1 or the sigmoid's derivative. ``start``: w of every gate at first (open: above 0), as a
    share of the way that the learning rate can take it in all steps.
    ``anneal``: share of the steps in which the limit falls from dense to the goal. ``gain`` and ``damping``: how fast
    the price of the cost answers to the gap, per step and at once; in shares of the task's gradient per unit of
    relative cost. ``average``: share of the steps, at the end, over which w is averaged into the score.
    ``momentum`` and ``weight_decay``: of the weights' SGD.
    """

    derivative: Shape = "constant"
    start: Annotated[float, Field(gt=0, le=1)] = 0.1
    anneal: Annotated[float, Field(gt=0, le=1)] = 0.65
    gain: Annotated[float, Field(gt=0, le=1000)] = 0.1
    damping: Annotated[float, Field(ge=0, le=1000)] = 2.0
    average: Annotated[float, Field(gt=0, le=1)] = 0.35
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 1e-4


class _TrainableGate(torch.autograd.Function):
    """Forward b(w) = 1[w > 0]; backward g(w)."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, shape: Shape) -> Tensor:
        ctx.save_for_backward(w)
        ctx.shape = shape
        return (w > 0).to(w.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (w,) = ctx.saved_tensors
        return gradient * derivative(w, ctx.shape), None


def derivative(w: Tensor, shape: Shape) -> Tensor:
    """g(w), elementwise: 1, or sigmoid(w) (1 - sigmoid(w)); arXiv 1904.10921, section "Differentiability"."""
    if shape == "constant":
        return torch.ones_like(w)
    open_share = torch.sigmoid(w)
    return open_share * (1 - open_share)


def trainable_gate(w: Tensor, shape: Shape) -> Tensor:
    """b(w) = 1[w > 0], any shape, with derivative g(w): the limit of TG_M(w; g) for M -> infinity."""
    result: Tensor = _TrainableGate.apply(w, shape)  # type: ignore[no-untyped-call]
    return result


def gate(
    network: nn.Module,
    structure: Structure,
    task: Task,
    batches: Iterator[Any],
    budget: SearchGoal,
    config: SearchPart,
    session: Session,
) -> SearchResult:
    """Train weights and gates together while the limit on the expected cost falls to the budget's.

    Returns `threshold_values` of the averaged w, the trained weights, and the trace, a row a step: ``loss`` (the
    task's), ``cost`` and ``limit`` (relative to dense), ``lambda`` (the price) and ``kept`` (open gates).

    Raises:
        RecipeError: an option is unknown or has a bad value.
        TrainingError: the loss is not finite.
    """
    options = read_options(GateOptions, config)
    set_seed(session.seed)
    trained = copy.deepcopy(network).to(session.accelerator.device).train()
    search = _Search(trained, structure, task, budget, options, config)
    weights = [weight for weight in trained.parameters() if weight.requires_grad]
    by_weight = torch.optim.SGD(
        weights,
        lr=config.lr,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        nesterov=options.momentum > 0,
    )
    by_gate = torch.optim.Adam([search.w_N], lr=config.lr_gates, eps=1e-12)
    fit(
        search.loss,
        batches,
        [by_weight, by_gate],
        accelerator=session.accelerator,
        steps=config.steps,
        work="search",
        progress=session.progress,
        schedulers=[CosineAnnealingLR(by_weight, T_max=max(1, config.steps))],
    )
    state = {name: tensor.detach().cpu().clone() for name, tensor in trained.state_dict().items()}
    return SearchResult(scores=threshold_values(search.ranks(), budget.cost), state=state, trace=tuple(search.trace))


class _Search:
    """One search under way: the gates, the price of the cost, and the trace so far."""

    def __init__(
        self,
        network: nn.Module,
        structure: Structure,
        task: Task,
        goal: SearchGoal,
        options: GateOptions,
        config: SearchPart,
    ) -> None:
        self.gating = gated(network, structure, config.batch_size)
        self.sizes = {group.name: group.channels for group in structure.groups}
        self.task, self.goal, self.options, self.steps = task, goal, options, config.steps
        device = self.gating.index_A.device
        sizes_G = torch.tensor(list(self.sizes.values()), device=device)
        self.group_N = torch.arange(len(sizes_G), device=device).repeat_interleave(sizes_G)
        start = options.start * max(1, config.steps) * config.lr_gates
        self.w_N = nn.Parameter(torch.full((len(self.group_N),), start, device=device))
        self.sum_N, self.num_summed = torch.zeros_like(self.w_N, requires_grad=False), 0
        self.dense = goal.cost(structure.dense_counts)
        self.slope_N = self._slope()
        self.price, self.unit = 0.0, 0.0
        self.trace: list[dict[str, float]] = []

    def loss(self, batch: Any) -> Tensor:
        """The task's loss with the gates on, plus what the open gates cost at the present price."""
        self._average()
        gates_N = self._gates()
        task_loss = self.task(self.gating.forward(self._by_group(self._watched(gates_N))), batch)
        cost = self._cost(gates_N)
        gap = cost - self._limit()
        self.price = max(0.0, self.price + self.options.gain * gap)
        self._note(task_loss, cost, gates_N)
        price = self.unit * (self.price + self.options.damping * max(0.0, gap))
        return task_loss + price * (self.slope_N * gates_N).sum()

    def ranks(self) -> Scores:
        """The mean of w over the last steps, per group [C]; w itself if there was no step."""
        if not self.num_summed:
            self._average()
        return {name: mean_C.cpu() for name, mean_C in self._by_group(self.sum_N / self.num_summed).items()}

    def _gates(self) -> Tensor:
        """b(w), but the strongest gate of every group is open, whatever its w; its derivative stays g(w)."""
        gates_N = trainable_gate(self.w_N, self.options.derivative)
        with torch.no_grad():
            strongest_G = torch.full((len(self.sizes),), -torch.inf, device=self.w_N.device)
            strongest_G.scatter_reduce_(0, self.group_N, self.w_N, "amax")
            forced_N = (self.w_N >= strongest_G[self.group_N]).to(gates_N.dtype) * (1 - gates_N)
        return gates_N + forced_N

    @torch.no_grad()
    def _cost(self, gates_N: Tensor) -> float:
        """The expected cost of these gates over the dense network's."""
        counts = {name: gates_C.sum() for name, gates_C in self._by_group(gates_N).items()}
        return float(self.goal.cost.expected(counts)) / self.dense

    def _slope(self) -> Tensor:
        """Each gate's share of the dense cost: its marginal cost there, over that cost, float32[N]."""
        counts = {name: torch.tensor(float(size), requires_grad=True) for name, size in self.sizes.items()}
        slope_G = torch.stack(torch.autograd.grad(self.goal.cost.expected(counts), list(counts.values())))
        return slope_G.to(self.group_N.device)[self.group_N] / self.dense

    def _limit(self) -> float:
        """1 at the start, falling linearly to the goal's share of the dense cost."""
        done = min(1.0, (len(self.trace) + 1) / (self.options.anneal * self.steps))
        return 1 - done * (1 - min(1.0, self.goal.limit / self.dense))

    def _watched(self, gates_N: Tensor) -> Tensor:
        """The same gates, whose gradient from the task sets the unit of the price: its running L1 norm."""
        watched_N = gates_N.view_as(gates_N)

        def note(gradient_N: Tensor) -> None:
            norm = float(gradient_N.abs().sum())
            self.unit = 0.9 * self.unit + 0.1 * norm if self.unit else norm

        watched_N.register_hook(note)
        return watched_N

    def _by_group(self, values_N: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.sizes, torch.split(values_N, list(self.sizes.values())), strict=True))

    def _average(self) -> None:
        if len(self.trace) >= (1 - self.options.average) * self.steps:
            self.sum_N += self.w_N.detach()
            self.num_summed += 1

    def _note(self, task_loss: Tensor, cost: float, gates_N: Tensor) -> None:
        row = {"step": len(self.trace) + 1, "loss": float(task_loss.detach()), "cost": cost}
        kept = float(gates_N.detach().sum())
        self.trace.append(row | {"limit": self._limit(), "lambda": self.price, "kept": kept})
