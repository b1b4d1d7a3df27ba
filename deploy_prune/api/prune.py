"""Pruning from Python: any network, any differentiable loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

from deploy_prune import cost
from deploy_prune.budget.choose import choose
from deploy_prune.cost import CostModel
from deploy_prune.errors import BudgetError, DataError, RecipeError, perhaps
from deploy_prune.networks.copies import copied
from deploy_prune.networks.tensors import moved
from deploy_prune.networks.unchanged import unchanged
from deploy_prune.networks.weights import load_state
from deploy_prune.recipe.parts import PrunePart, SearchPart, parse_budget
from deploy_prune.search.frame import SearchGoal, SearchJob
from deploy_prune.search.gated_network import gates_of
from deploy_prune.search.methods import METHODS, check_options, values
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.groups import find_groups
from deploy_prune.surgery.try_groups import keep_cuttable
from deploy_prune.surgery.verify import Verification, prove
from deploy_prune.training.loop import Session, channels_last, device_of, make_accelerator
from deploy_prune.types import Budget, Keep, Loss, SearchResult, Structure


class Settings(SearchPart, PrunePart):
    """What `prune` takes by name, with the defaults of a recipe's parts ``search`` and ``prune``.

    ``granule``: every group keeps a multiple of so many channels. ``batch_size`` only says how large the batches are.
    """

    granule: Annotated[int, Field(ge=1)] = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Pruned:
    """One budget's slim network, and how it was made.

    Attributes:
        budget: the budget that it meets.
        network: the slim network, on the dense network's device and in its mode. Its weights are those that the search
            ended with: it is not retrained.
        structure: the channel groups, and in ``structure.whole`` what was not pruned and why.
        keep: group -> bool[C], which units stay.
        proof: the comparison of the slim network with the masked dense one.
        found: scores, weights and trace of the search, the same for all budgets.
        dense_macs: MACs of the dense network for one example.
        macs: MACs of the slim network for one example.
        dense_params: parameters of the dense network.
        params: parameters of the slim network.
    """

    budget: Budget
    network: nn.Module
    structure: Structure
    keep: Keep
    proof: Verification
    found: SearchResult
    dense_macs: int
    macs: int
    dense_params: int
    params: int


def prune(
    network: nn.Module,
    inputs: Tensor | Sequence[Tensor],
    task: Loss,
    batches: Iterable[Any],
    *,
    budget: str | Sequence[str] = "50% macs",
    method: str = "gate",
    session: Session | None = None,
    **settings: Any,
) -> tuple[Pruned, ...]:
    """Prune any network for any differentiable loss: one slim network for each budget, in their order.

    One search serves all budgets. The given network is afterwards as it was, to the bit and in all that its modules
    keep. Global random generators are seeded. A slim network has no wrapper (``torch.compile``, DataParallel).

    Args:
        network: any module that torch.export can trace. Trained, unless the method draws weights itself.
        inputs: real examples [B, ...], one tensor for each input of the network, with B at least 2 in dimension 0.
        task: a function (forward, batch) -> scalar loss. It calls ``forward`` instead of the network.
        batches: tensors, nested as the task likes. Endless, or readable over and over again.
        budget: one or several, of MACs or parameters: "50% macs", "30% params", "120 MMACs" or "3 Mparams".
        method: a search method's name.
        session: device, precision, gradient accumulation, seed and progress. Default: a GPU if there is one, seed 0.
        settings: keys of a recipe's ``search`` and ``prune``; ``granule``: groups keep multiples of so many channels.

    Raises:
        RecipeError: a setting is unknown or has a bad value.
        BudgetError: a budget can't be read or met, or needs a device.
        SurgeryError: the network can't be traced or cut.
        DataError: there are too few examples to compare on, or the batches run out.
        TrainingError: the loss is not finite.
        VerificationError: a slim network differs from the masked one, or the comparison proves nothing.
    """
    config = _settings(method, settings)
    budgets = [_readable(text) for text in ([budget] if isinstance(budget, str) else budget)]
    examples = tuple(x.cpu() for x in ([inputs] if isinstance(inputs, Tensor) else inputs))
    if not examples or any(x.dim() == 0 or len(x) < 2 for x in examples):
        message = "inputs: comparing networks needs at least two examples [B, ...] of every input."
        raise DataError(message)
    with unchanged(network):
        return _pruned(network, examples, task, batches, budgets, config, session)


def _pruned(
    network: nn.Module,
    examples: tuple[Tensor, ...],
    task: Loss,
    batches: Iterable[Any],
    budgets: Sequence[Budget],
    config: Settings,
    session: Session | None,
) -> tuple[Pruned, ...]:
    dense = moved(copied(network), torch.device("cpu"))
    structure = keep_cuttable(dense, find_groups(dense, examples, config), examples, gates_of, config)
    goals = [_goal(structure, dense, b, config) for b in budgets]
    smallest = min(goals, key=lambda goal: goal.limit / goal.cost(structure.dense_counts))
    job = SearchJob(
        network=dense, structure=structure, loss=task, batches=_endless(batches), goal=smallest, config=config,
        session=session or Session(accelerator=make_accelerator("auto"), seed=0),
    )  # fmt: skip
    with channels_last(dense, examples, job.session.accelerator.device):
        found = METHODS[config.method](job)
    load_state(dense, found.state)
    made = [_cut(dense, structure, examples, found, goal, config) for goal in goals]
    for slim in made:
        moved(slim[0], device_of(network))
    return tuple(
        Pruned(
            budget=b, network=slim, structure=structure, keep=keep, proof=proof, found=found,
            **_sizes(network, slim, structure, keep),
        )
        for b, (slim, keep, proof) in zip(budgets, made, strict=True)
    )  # fmt: skip


def _settings(method: str, settings: dict[str, Any]) -> Settings:
    try:
        config = Settings(method=method, **settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        hint = perhaps(name, Settings.model_fields) if first["type"] == "extra_forbidden" else ""
        message = f"prune: {name}: {first['msg'].removeprefix('Value error, ')} (given {first['input']!r}).{hint}"
        raise RecipeError(message) from None
    check_options(config)
    return config


def _readable(text: str) -> Budget:
    budget = parse_budget(text, "macs")
    if budget.metric not in {"macs", "params"}:
        message = f"the budget {budget.text!r} is of {budget.metric}, which needs a device and a recipe; "
        message += "from Python write '50% macs', '50% params', '120 MMACs' or '3 Mparams'."
        raise BudgetError(message)
    return budget


def _goal(structure: Structure, network: nn.Module, budget: Budget, config: Settings) -> SearchGoal:
    """The budget as a limit on a cost, tried before any training.

    Raises:
        BudgetError: it is out of reach.
    """
    model = _cost(structure, network, budget)
    goal = SearchGoal(cost=model, limit=budget.absolute(model(structure.dense_counts)))
    try:
        _choose({g.name: torch.ones(g.channels) for g in structure.groups}, structure, goal, config)
    except BudgetError as error:
        widest = max(structure.whole, key=lambda whole: whole.channels, default=None)
        message = str(error)
        if widest is not None:
            message += f" {widest.name} [{widest.channels} channels] is left whole: {widest.reason}."
        raise BudgetError(message) from error
    return goal


def _cost(structure: Structure, network: nn.Module, budget: Budget) -> CostModel:
    return cost.macs(structure) if budget.metric == "macs" else cost.params(structure, network)


def _choose(scores: dict[str, Tensor], structure: Structure, goal: SearchGoal, config: Settings) -> Keep:
    return choose(scores, structure, goal.cost, goal.limit, config.granule, config.min_channels)


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches, from the beginning again when they end.

    Raises:
        DataError: there are none, or they can be read only once and have ended.
    """
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            message = "batches: there are none (left); give a list, a DataLoader or an endless generator."
            raise DataError(message)


def _cut(
    dense: nn.Module,
    structure: Structure,
    inputs: Sequence[Tensor],
    found: SearchResult,
    goal: SearchGoal,
    config: Settings,
) -> tuple[nn.Module, Keep, Verification]:
    keep = _choose(values(config.method, found.scores, goal.cost), structure, goal, config)
    proof = prove(dense, structure, keep, inputs, gates_of(structure))
    return cut(dense, structure, keep), keep, proof


def _sizes(network: nn.Module, slim: nn.Module, structure: Structure, keep: Keep) -> dict[str, int]:
    macs, counts = cost.macs(structure), {name: int(mask.sum()) for name, mask in keep.items()}
    return {
        "dense_macs": round(macs(structure.dense_counts)), "macs": round(macs(counts)),
        "dense_params": _num_params(network), "params": _num_params(slim),
    }  # fmt: skip


def _num_params(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
