"""The loop to a budget: choose counts, cut, measure, correct the prediction, until the measurement meets the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from deploy_prune.budget.candidates import CandidateCosts
from deploy_prune.budget.choose import choose
from deploy_prune.budget.depth import fixed_counts
from deploy_prune.errors import BudgetError
from deploy_prune.types import Budget, Counts, Keep, Metric, Progress, Scores, Target

UNITS: Final = {"latency": "ms", "macs": "MACs", "params": "parameters", "size": "bytes"}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What one candidate was asked to be, predicted to be and found to be, all in the metric's unit.

    ``measured``: False where no device is attached, and ``observed`` is only what was predicted.
    """

    limit: float
    predicted: float
    observed: float
    asked: float
    dense: float
    counts: Counts
    measured: bool = True

    @property
    def ratio(self) -> float:
        """Observed over asked; 1 is the budget met exactly."""
        return self.observed / self.asked


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Which units a budget keeps on a target, and how that was found."""

    metric: Metric
    keep: Keep
    candidates: tuple[Candidate, ...]
    chosen: Candidate

    def as_json(self, tolerance: float) -> dict[str, Any]:
        """loop.json: a row a step, in the metric's unit; ``observed`` is null where nothing was measured."""
        steps = [
            {
                "step": i, "limit": k.limit, "predicted": k.predicted, "observed": k.observed if k.measured else None,
                "dense": k.dense, "asked": k.asked, "counts": k.counts, "chosen": k is self.chosen,
            }
            for i, k in enumerate(self.candidates, 1)
        ]  # fmt: skip
        return {"metric": self.metric, "asked": self.chosen.asked, "tolerance": tolerance, "steps": steps}


def enforce(
    costs: CandidateCosts, target: Target, budget: Budget, scores: Scores, progress: Progress, work: str,
    fixed: Counts | None = None,
) -> Plan:  # fmt: skip
    """Find what to keep so that the observed cost of the real artifact meets the budget.

    Without an attached device latency is the model's own and one candidate is enough. The nearest candidate within
    ``tolerance_above`` the budget is taken; one within half of ``measure.tolerance`` ends the loop, if it may be taken.
    ``fixed``: as in `choose`.

    Raises:
        BudgetError: no candidate is within the budget.
    """
    model, granule = costs.cost(target, budget.metric), costs.granule(target)
    tolerance, tries = costs.measure.tolerance, 1 + costs.measure.max_corrections
    fixed = fixed_counts(costs.structure, ()) if fixed is None else fixed
    dense, least = costs.dense(target, budget.metric), model({**costs.smallest(target), **fixed})
    limit, candidates, keeps = max(budget.absolute(dense), least), list[Candidate](), list[Keep]()
    above = tolerance_above(budget, tolerance)
    for step in range(1, tries + 1):
        keep = choose(scores, costs.structure, model, limit, granule, costs.prune.min_channels, fixed)
        counts = {name: int(mask.sum()) for name, mask in keep.items()}
        if any(candidate.counts == counts for candidate in candidates):
            break
        candidates.append(observe(costs, target, budget, counts, limit=limit, predicted=model(counts)))
        keeps.append(keep)
        done = _near(candidates[-1], tolerance, above) or _settled(budget, candidates[-1], target)
        progress(work, step, step if done else tries, asked=candidates[-1].asked, observed=candidates[-1].observed)
        if done:
            break
        limit = max(_next_limit(candidates) if above else _next_limit_below(candidates, 1 - tolerance / 4), least)
    within = [i for i, candidate in enumerate(candidates) if candidate.ratio <= 1 + above]
    if not within:
        raise BudgetError(_out_of_reach(budget, target, candidates))
    best = min(within, key=lambda i: abs(candidates[i].ratio - 1))
    return Plan(metric=budget.metric, keep=keeps[best], candidates=tuple(candidates), chosen=candidates[best])


def tolerance_above(budget: Budget, tolerance: float) -> float:
    """How far above the budget is still within it: nothing, where the cost is counted and not measured."""
    return tolerance if budget.metric == "latency" else 0.0


def observe(
    costs: CandidateCosts, target: Target, budget: Budget, counts: Counts, *, limit: float, predicted: float
) -> Candidate:
    """The candidate itself: measured latency, counted parameters or MACs, the file's size."""
    model = costs.cost(target, budget.metric)
    dense, observed = costs.dense(target, budget.metric), model(counts)
    if budget.metric == "latency" and target.runner is not None:
        timed = costs.timed(target, counts)
        dense, observed = timed.dense_ms, timed.slim_ms
    elif budget.metric == "size":
        observed = costs.size_bytes(target, counts)
    elif budget.metric == "params":
        observed = costs.num_params(counts)
    return Candidate(
        limit=limit, predicted=predicted, observed=observed, asked=budget.absolute(dense), dense=dense, counts=counts,
        measured=budget.metric != "latency" or target.runner is not None,
    )  # fmt: skip


def _near(candidate: Candidate, tolerance: float, above: float) -> bool:
    """Within half the tolerance of the budget, and no further above it than a candidate may be."""
    return abs(candidate.ratio - 1) <= tolerance / 2 and candidate.ratio <= 1 + above


def _settled(budget: Budget, candidate: Candidate, target: Target) -> bool:
    """Nothing would change: the cost is exact, and within the budget."""
    exact = budget.metric in {"macs", "params"} or (budget.metric == "latency" and target.runner is None)
    return exact and candidate.ratio <= 1


def _next_limit(candidates: Sequence[Candidate]) -> float:
    """The model's limit at which the observation should be 1: between the nearest on either side, else scaled.

    As long as all are on one side, each next step is a longer one: the model is wrong about more than its scale.
    """
    below = max((k for k in candidates if k.ratio <= 1), key=lambda k: (k.ratio, k.predicted), default=None)
    above = min((k for k in candidates if k.ratio > 1), key=lambda k: (k.ratio, k.predicted), default=None)
    if below and above and above.predicted > below.predicted:
        share = (1 - below.ratio) / (above.ratio - below.ratio)
        return below.predicted + share * (above.predicted - below.predicted)
    steps = 1 if below and above else len(candidates)
    return candidates[-1].predicted / candidates[-1].ratio ** steps


def _next_limit_below(candidates: Sequence[Candidate], aim: float) -> float:
    """The model's limit at which the observation should be ``aim`` (below 1), where it must not be above the budget.

    What is counted has no noise, and a file's overhead hardly changes with its widths. So the line through two of them
    tells both scale and overhead: those on either side of the budget, else the two that are nearest to it. A line that
    leads nowhere (it doesn't rise, or aims below 0) gives way to the scale alone.
    """
    by_ratio = sorted(candidates, key=lambda k: (k.ratio, k.predicted))
    over = [k for k in by_ratio if k.ratio > 1]
    under = [k for k in by_ratio if k.ratio <= 1]
    near = [*under[-1:], *over[:1]] if under and over else over[:2] or under[-2:]
    low, high = near[0], near[-1]
    if high.predicted > low.predicted and high.ratio > low.ratio:
        limit = low.predicted + (aim - low.ratio) / (high.ratio - low.ratio) * (high.predicted - low.predicted)
        if limit > 0:
            return limit
    least = min(candidates, key=lambda k: k.predicted)
    return least.predicted * aim / least.ratio


def _out_of_reach(budget: Budget, target: Target, candidates: Sequence[Candidate]) -> str:
    least = min(candidates, key=lambda k: k.observed)
    unit = UNITS[budget.metric]
    return (
        f"The budget {budget.text!r} ({least.asked:.4g} {unit}) can't be met on {target.name}: the nearest candidate "
        f"takes {least.observed:.4g} {unit}. Ask for more, or prune more groups (prune.only, prune.skip)."
    )
