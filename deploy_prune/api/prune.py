"""Pruning from Python: any network, any differentiable loss, a budget of MACs, parameters, latency or size."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from deploy_prune import cost
from deploy_prune.api.settings import Settings, read_settings
from deploy_prune.budget.candidates import CandidateCosts, identity_by_graph
from deploy_prune.budget.choose import choose
from deploy_prune.budget.depth import Start, by_rank, by_trial, choose_depth, fixed_counts
from deploy_prune.budget.loop import Plan, enforce
from deploy_prune.device.targets import load_target
from deploy_prune.errors import BudgetError, DataError
from deploy_prune.export import FORMATS
from deploy_prune.export.artifact import require
from deploy_prune.export.inputs import as_float32, float32, require_inputs, several
from deploy_prune.families.raw_form import RawForm
from deploy_prune.families.table import raw_form
from deploy_prune.networks.copies import copied
from deploy_prune.networks.tensors import moved
from deploy_prune.networks.unchanged import unchanged
from deploy_prune.networks.weights import load_state
from deploy_prune.recipe.parts import parse_budget
from deploy_prune.retrain.features import match
from deploy_prune.retrain.repair import Repaired, repair
from deploy_prune.run.judge import by_loss
from deploy_prune.run.reach import reaches, require_reach
from deploy_prune.run.trained import as_if_trained
from deploy_prune.search.frame import SearchGoal, SearchJob
from deploy_prune.search.gated_network import gates_of
from deploy_prune.search.methods import METHODS, values
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.groups import find_groups
from deploy_prune.surgery.try_branches import prunable
from deploy_prune.surgery.verify import Verification, prove
from deploy_prune.system.guard import scratch
from deploy_prune.training.channels_last import channels_last
from deploy_prune.training.loop import Session, device_of
from deploy_prune.types import Budget, Forward, Keep, Loss, SearchResult, Structure, Target

COUNTED: Final = ("macs", "params")
"""Metrics that are the same on every device."""
JUDGED_BATCHES: Final = 8
"""Of so many the loss says how deep to cut."""
ANY_DEVICE: Final = "any device"
"""Stands for the target of budgets that need none."""


class PredictedWarning(UserWarning):
    """A budget's latency was predicted, for there is no device to measure it on."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Pruned:
    """One budget's slim network, and how it was made.

    Attributes:
        budget: the budget that it meets.
        network: the slim network, on the dense network's device and in its mode. Its weights are those that the search
            ended with (with ``depth``, those that were given, where a repair makes more of them): it is not retrained.
        form: the same network, with its family's loss and decoding where it has them.
        dense: the network that was given, no copy of it.
        structure: the channel groups, and in ``structure.whole`` what was not pruned and why.
        keep: group -> bool[C], which units stay.
        plan: how the counts were found: the loop's steps (``plan.candidates``), each with what was asked, predicted and
            observed, and the one that was taken (``plan.chosen``).
        target: the device of the budget; None: it needs none.
        proof: the comparison of the slim network with the masked dense one.
        found: scores, weights and trace of the search, the same for all budgets.
        dense_macs: MACs of the dense network for one example.
        macs: MACs of the slim network for one example.
        dense_params: parameters of the dense network.
        params: parameters of the slim network.
    """

    budget: Budget
    form: RawForm
    dense: RawForm
    structure: Structure
    keep: Keep
    plan: Plan
    target: Target | None
    proof: Verification
    found: SearchResult
    dense_macs: int
    macs: int
    dense_params: int
    params: int

    def __repr__(self) -> str:
        """The budget, and what came out."""
        counted = f"{self.macs / 1e6:.3g} of {self.dense_macs / 1e6:.3g} MMACs"
        told = "" if self.is_measured else " (predicted)"
        ms = "" if self.slim_ms is None else f"{self.slim_ms:.3g} of {self.dense_ms:.3g} ms{told}, "
        return f"<Pruned to {self.budget.text}: {ms}{counted}>"

    @property
    def network(self) -> nn.Module:
        """The slim network."""
        return self.form.network

    @property
    def slim_ms(self) -> float | None:
        """p50 of the slim network's artifact, in ms, in the same rounds as ``dense_ms``; None: not a latency budget."""
        return self.plan.chosen.observed if self.budget.metric == "latency" else None

    @property
    def dense_ms(self) -> float | None:
        """p50 of the dense network's artifact, in ms."""
        return self.plan.chosen.dense if self.budget.metric == "latency" else None

    def repair(self, inputs: Tensor | Sequence[Tensor]) -> Repaired:
        """Compute the slim network's weights anew, so that its layers give what the dense ones do: no training.

        By least squares, layer by layer (He et al., arXiv 1707.06168); batch norms are measured anew. The dense network
        is the one that was given, as it is now. It helps where no training follows, or little.

        Args:
            inputs: a few hundred real examples [B, ...], one tensor for each input of the network; no labels.

        Raises:
            DataError: there are fewer than two examples.
        """
        dense = copied(self.dense.network, share=True)
        return repair(self.network, dense, match(self.structure, self.keep), _examples(inputs))

    @property
    def is_measured(self) -> bool:
        """False: no device is attached for the budget's latency, and ``slim_ms`` and ``dense_ms`` are predicted."""
        return self.plan.chosen.measured


def prune(
    network: nn.Module | RawForm,
    inputs: Tensor | Sequence[Tensor],
    loss: Loss | None = None,
    batches: Iterable[Any] = (),
    *,
    budget: str | Sequence[str] = "50% macs",
    target: str | Path | Target | None = None,
    method: str = "gate",
    session: Session | None = None,
    **settings: Any,
) -> tuple[Pruned, ...]:
    """Prune any network for any differentiable loss: one slim network for each budget, in their order.

    One search serves all budgets. A budget of latency is met by measurement: candidates are cut, exported for the
    target and timed beside the dense network there, until one is within the tolerance. So is one of file size. The
    given network is afterwards as it was, to the bit and in all that its modules keep. Global random generators are
    seeded. A slim network has no wrapper (``torch.compile``, DataParallel).

    Args:
        network: any module that torch.export can trace, or a `RawForm`. Trained, unless the method draws weights.
        inputs: real examples [B, ...], one tensor for each input of the network, with B at least 2 in dimension 0.
            Latency is that of one example.
        loss: a function (forward, batch) -> scalar loss. It calls ``forward`` instead of the network. None: the own
            loss of the network's family, in its raw form; a batch is then (inputs, targets).
        batches: tensors, nested as the loss likes. Endless, or readable over and over again.
        budget: one or several: "50% macs", "30% params", "120 MMACs", "3 Mparams"; with a target also "12 ms",
            "60% latency" and "2.5 MB", and a percentage alone is of latency.
        target: a device: the name of a target, the path of a target's file, or a `Target`.
        method: a search method's name.
        session: device, precision, gradient accumulation, seed and progress. Default: a GPU if there is one, seed 0.
        settings: keys of a recipe's ``search``, ``prune`` and ``measure``; ``granule``: groups keep multiples of so
            many channels.

    Raises:
        RecipeError: a setting is unknown or has a bad value.
        BudgetError: a budget can't be read or met, or needs a target.
        SurgeryError: the network can't be traced or cut.
        DataError: there are too few examples to compare on, the batches run out, or there is no loss.
        DeployPruneError: there is no such target, or a candidate can't be written or measured for it.
        TrainingError: the loss is not finite.
        VerificationError: a slim network differs from the masked one, or the comparison proves nothing.
    """
    config = read_settings(method, settings)
    examples = _examples(inputs)
    device = _device(target, config, examples)
    budgets = [_readable(text, device) for text in ([budget] if isinstance(budget, str) else budget)]
    asked = _Asked(
        examples=examples, batches=_endless(batches), budgets=budgets, target=device or _any_device(config),
        config=config, session=session or Session(),
    )  # fmt: skip
    with unchanged(network.network if isinstance(network, RawForm) else network), scratch() as folder:
        form, loss = _form_and_loss(network, examples, loss)
        dense = moved(copied(form.network), torch.device("cpu"))
        costs = _costs(asked, dense, folder)
        _require_reach(asked, costs)
        found = _search(asked, costs, dense, loss)
        return tuple(_cut(asked, costs, (form, dense), found, budget, loss) for budget in budgets)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Asked:
    """What `prune` was asked for, read and checked."""

    examples: tuple[Tensor, ...]
    batches: Iterator[Any]
    budgets: Sequence[Budget]
    target: Target
    config: Settings
    session: Session


def _examples(inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    examples = tuple(x.cpu() for x in several(inputs))
    if not examples or any(x.dim() == 0 or len(x) < 2 for x in examples):
        message = "inputs: comparing networks needs at least two examples [B, ...] of every input."
        raise DataError(message)
    return examples


def _device(target: str | Path | Target | None, config: Settings, examples: tuple[Tensor, ...]) -> Target | None:
    """The target, in steps of so many channels as were asked for; its format is installed and takes such inputs."""
    if target is None:
        return None
    device = target if isinstance(target, Target) else load_target(str(target))
    require(device.format, FORMATS[device.format], device.precision)
    require_inputs(device.format, examples)
    return device if config.granule is None else replace(device, granularity=config.granule)


def _any_device(config: Settings) -> Target:
    """Stands for the target of budgets that need none."""
    return Target(
        name=ANY_DEVICE, title="", format="onnx", precision="fp32", runtime="onnxruntime", runner=None, threads=1,
        granularity=config.granule or 1, roofline=None,
    )  # fmt: skip


def _readable(text: str, device: Target | None) -> Budget:
    """The budget; a percentage alone is of latency where there is a device to measure it on.

    Raises:
        BudgetError: it can't be read, or needs a target.
    """
    budget = parse_budget(text, "macs" if device is None else "latency")
    if budget.metric in COUNTED:
        return budget
    if device is None:
        message = f'the budget {budget.text!r} is of {budget.metric}, which needs target=..., such as target="host"; '
        message += "without one write '50% macs', '50% params', '120 MMACs' or '3 Mparams'."
        raise BudgetError(message)
    if budget.metric == "latency" and device.runner is None:
        message = f"{device.name} isn't attached (runner: none): its latency is predicted, not measured."
        if device.error is not None:
            message += f" Known latencies were {device.error.low:.2g} to {device.error.high:.2g} times as long."
        warnings.warn(message, PredictedWarning, stacklevel=3)
    return budget


def _form_and_loss(
    network: nn.Module | RawForm, examples: tuple[Tensor, ...], loss: Loss | None
) -> tuple[RawForm, Loss]:
    """What is cut, and the loss that its channels are judged by.

    Raises:
        DataError: no loss is given, and the network has none of its own.
    """
    if isinstance(network, RawForm):
        form = network
    else:
        form = RawForm(network=network) if loss is not None else raw_form(network, examples)
    if loss is not None:
        return form, loss
    own = form.loss
    if own is None:
        message = "loss: this network has none of its own; give a function (forward, batch) -> scalar loss."
        raise DataError(message)

    def by_targets(forward: Forward, batch: Any) -> Tensor:
        inputs, targets = batch
        return own(forward(*several(inputs)), targets)

    return form, by_targets


def _costs(asked: _Asked, dense: nn.Module, folder: Path) -> CandidateCosts:
    """What cuts of the network cost: of artifacts with weights in float32, told apart as training does."""
    config, one = asked.config, tuple(x[:1] for x in asked.examples)
    structure = prunable(dense, find_groups(dense, asked.examples, config), asked.examples, gates_of, config)
    is_written = any(budget.metric not in COUNTED for budget in asked.budgets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = as_if_trained(as_float32(copied(dense))[0]) if is_written else dense
    return CandidateCosts(
        network=network, structure=structure, inputs=float32(one), scratch=folder, prune=config, measure=config,
        identity=identity_by_graph(dense, one, config.trace_timeout_s) if is_written else {},
        progress=asked.session.progress, calibration=float32(asked.examples),
    )  # fmt: skip


def _require_reach(asked: _Asked, costs: CandidateCosts) -> None:
    """Try every budget before any training.

    Raises:
        BudgetError: one is out of reach.
    """
    structure = costs.structure
    try:
        for budget in asked.budgets:
            if budget.metric in COUNTED:
                goal = _goal(asked, costs, budget)
                alike = {g.name: torch.ones(g.channels) for g in structure.groups}
                granule, least = costs.granule(asked.target), asked.config.min_channels
                shallowest = fixed_counts(structure, [branch.name for branch in structure.branches])
                choose(alike, structure, goal.cost, goal.limit, granule, least, shallowest)
            else:
                require_reach(reaches(costs, {asked.target: (budget,)}, asked.session.progress)[1])
    except BudgetError as error:
        widest = max(structure.whole, key=lambda whole: whole.channels, default=None)
        message = f"{str(error).removesuffix('.')}."
        if widest is not None:
            message += f" {widest.name} [{widest.channels} channels] is left whole: {widest.reason}."
        raise BudgetError(message) from error


def _goal(asked: _Asked, costs: CandidateCosts, budget: Budget) -> SearchGoal:
    """The budget as a limit on a cost."""
    model = costs.cost(asked.target, budget.metric)
    return SearchGoal(cost=model, limit=budget.absolute(model(costs.structure.dense_counts)))


def _search(asked: _Asked, costs: CandidateCosts, dense: nn.Module, loss: Loss) -> SearchResult:
    """Search with the strictest budget as the goal. The dense network gets the weights that the search ended with."""
    goals = [_goal(asked, costs, budget) for budget in asked.budgets]
    job = SearchJob(
        network=dense, structure=costs.structure, loss=loss, batches=asked.batches, config=asked.config,
        goal=min(goals, key=lambda goal: goal.limit / goal.cost(costs.structure.dense_counts)), session=asked.session,
    )  # fmt: skip
    with channels_last(dense, asked.examples, asked.session.accelerator.device):
        found = METHODS[asked.config.method](job)
    load_state(dense, found.state)
    return found


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
    asked: _Asked, costs: CandidateCosts, networks: tuple[RawForm, nn.Module], found: SearchResult, budget: Budget,
    loss: Loss,
) -> Pruned:  # fmt: skip
    """Choose, cut and prove. ``networks``: as given, and on the CPU with the weights that the search ended with."""
    (form, dense), structure, macs = networks, costs.structure, cost.macs(costs.structure)
    scores = values(asked.config.method, found.scores, costs.cost(asked.target, budget.metric))
    gone: Sequence[str] = ()
    began = dense
    if structure.branches:
        given, device = moved(copied(form.network), torch.device("cpu")), asked.session.accelerator.device
        held_out = [next(asked.batches) for _ in range(JUDGED_BATCHES)]
        starts: dict[Start, nn.Module] = {"search": dense, "dense": given}
        judges = {
            start: by_loss(one, given, structure, asked.examples, held_out, loss, device)
            for start, one in starts.items()
        }
        tell = asked.session.progress
        orders = {
            "search": by_rank(found.scores, structure), "trial": by_trial(structure, macs, judges["dense"], tell),
        }  # fmt: skip
        chosen = choose_depth(costs, asked.target, budget, found.scores, scores, orders, judges, tell)
        gone, began = chosen.gone, starts[chosen.start]
    plan = enforce(
        costs, asked.target, budget, scores, asked.session.progress, f"{asked.target.name} {budget.text}: budget",
        fixed_counts(structure, gone),
    )  # fmt: skip
    proof = prove(began, structure, plan.keep, asked.examples, gates_of(structure))
    slim = moved(cut(began, structure, plan.keep), device_of(form.network))
    return Pruned(
        budget=budget, form=replace(form, network=slim), dense=form, structure=structure, keep=plan.keep, plan=plan,
        proof=proof, target=None if asked.target.name == ANY_DEVICE else asked.target, found=found,
        dense_macs=round(macs(structure.dense_counts)), macs=round(macs(plan.chosen.counts)),
        dense_params=_num_params(form.network), params=_num_params(slim),
    )  # fmt: skip


def _num_params(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
