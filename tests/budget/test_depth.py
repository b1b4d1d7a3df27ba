"""How deep to cut: by the search's ranks, and by what networks of other depths are worth."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from deploy_prune import cost
from deploy_prune.budget.choose import choose, smallest_counts
from deploy_prune.budget.depth import by_rank, by_trial, choose_depth, fixed_counts, inside, own_depth
from deploy_prune.cost import CostModel
from deploy_prune.device.targets import load_target
from deploy_prune.errors import BudgetError
from deploy_prune.recipe.parts import PrunePart, parse_budget
from deploy_prune.types import ChannelGroup, Counts, Keep, Layer, Structure, Width, silent

BLOCKS, CHANNELS = 5, 32


def residual() -> Structure:
    """Five blocks of two convolutions, from a stream of 32 channels over 32 inner ones and back."""
    stream = ChannelGroup(name="stream", channels=CHANNELS, period=1, consumers=(), members=())
    inner = [replace(stream, name=f"inner{i}") for i in range(BLOCKS)]
    branches = [replace(stream, name=f"block{i}", channels=1, vanishes=(f"{i}",)) for i in range(BLOCKS)]
    sides = {"stream": Width(fixed=0, per_unit={"stream": 1}), "rgb": Width(fixed=3, per_unit={})}
    sides |= {group.name: Width(fixed=0, per_unit={group.name: 1}) for group in inner}

    def layer(name: str, inputs: str, outputs: str, branches: tuple[str, ...] = ()) -> Layer:
        return Layer(
            name=name, kind="conv", tensor=f"{name}.weight", taps=9, positions=64, input_positions=64,
            inputs=sides[inputs], outputs=sides[outputs], vectors=0, branches=branches,
        )  # fmt: skip

    blocks = [
        layer(f"{name}{i}", *ends, (f"block{i}",))
        for i in range(BLOCKS)
        for name, ends in (("in", ("stream", f"inner{i}")), ("out", (f"inner{i}", "stream")))
    ]
    return Structure(groups=(stream, *inner, *branches), layers=(layer("stem", "rgb", "stream"), *blocks), whole=())


STRUCTURE = residual()
MACS = cost.macs(STRUCTURE)
LATENCY = replace(MACS, metric="latency", layers=tuple(replace(c, fixed=4e5) for c in MACS.layers))
"""A device on which half of the time is the layers' own."""
DENSE = STRUCTURE.dense_counts
HOST = load_target("host")


def ranks(branch: dict[str, float] | None = None, seed: int = 0) -> dict[str, torch.Tensor]:
    lot = torch.Generator().manual_seed(seed)
    drawn = {g.name: torch.rand(g.channels, generator=lot) for g in STRUCTURE.groups}
    return drawn | {name: torch.tensor([rank]) for name, rank in (branch or {}).items()}


def by_search(scores: dict[str, torch.Tensor]) -> dict[str, list[str]]:
    return {"search": by_rank(scores, STRUCTURE)}


def gone(keep: Keep) -> float:
    """How many branches are gone, as a loss."""
    return float(sum(not keep[branch.name].any() for branch in STRUCTURE.branches))


@dataclass
class Costs:
    """`CandidateCosts` that cost what a model says."""

    model: CostModel = LATENCY
    structure: Structure = STRUCTURE
    prune: PrunePart = PrunePart()

    def cost(self, target, metric):
        return self.model

    def dense(self, target, metric):
        return self.model(self.structure.dense_counts)

    def granule(self, target):
        return 8

    def smallest(self, target) -> Counts:
        return smallest_counts(self.structure, 8)


def test_the_groups_inside_a_branch_go_with_it():
    assert inside(STRUCTURE, ["block1"]) == {"inner1"}
    assert inside(STRUCTURE, []) == set()
    assert fixed_counts(STRUCTURE, ["block1"]) == {
        **{f"block{i}": int(i != 1) for i in range(BLOCKS)},
        "inner1": CHANNELS,
    }


def test_branches_go_in_the_order_of_their_ranks():
    given = {f"block{i}": [0.3, 0.1, 0.5, 0.2, 0.4][i] for i in range(BLOCKS)}
    assert by_rank(ranks(given), STRUCTURE) == ["block1", "block3", "block0", "block4", "block2"]


@pytest.mark.parametrize("share", [0.8, 0.5, 0.2])
@pytest.mark.parametrize("seed", range(3))
def test_a_budgets_own_depth_is_where_one_threshold_meets_it(share, seed):
    found, limit = ranks(seed=seed), share * LATENCY(DENSE)
    threshold = min(
        t
        for t in torch.cat(list(found.values())).tolist()
        if LATENCY(
            {
                g.name: max(int((found[g.name] >= t).sum()), 0 if g.is_branch else 1)  # a plain search
                for g in STRUCTURE.groups
            }
        )
        <= limit
    )
    below = sum(float(found[branch.name][0]) < threshold for branch in STRUCTURE.branches)
    assert own_depth(found, STRUCTURE, LATENCY, limit) == below


def test_where_nothing_is_within_the_limit_all_branches_go():
    assert own_depth(ranks(), STRUCTURE, LATENCY, 0.0) == BLOCKS


@pytest.mark.parametrize("best", range(BLOCKS + 1))
def test_the_depth_of_the_lowest_loss_is_found(best):
    given = {f"block{i}": 0.1 * i for i in range(BLOCKS)}
    tried = []

    def judge(keep):
        gone = [name for name in given if not keep[name].any()]
        assert gone == sorted(given)[: len(gone)], "the lowest ranks go first"
        counts = {name: int(mask.sum()) for name, mask in keep.items()}
        assert LATENCY(counts) <= 0.75 * LATENCY(DENSE)
        tried.append(len(gone))
        return abs(len(gone) - best) + 1.0

    scores = ranks(given)
    found = choose_depth(
        Costs(), HOST, parse_budget("75%", "latency"), scores, scores, by_search(scores), {"search": judge}, silent
    )
    assert found.gone == tuple(sorted(given)[: len(found.gone)])
    losses = {len(one.gone): one.losses["search"] for one in found.tried}
    assert losses[len(found.gone)] == min(losses.values()) == abs(len(found.gone) - best) + 1.0
    assert len(found.gone) == max(best, min(losses)), "no depth that the budget can't pay for"
    assert len(tried) == len(set(tried)) == len(losses), "each depth once"


def test_of_two_orders_the_better_one_is_taken():
    worth = {f"block{i}": [5.0, 1.0, 4.0, 2.0, 3.0][i] for i in range(BLOCKS)}

    def judge(keep):
        return sum(loss for name, loss in worth.items() if not keep[name].any())

    scores = ranks({f"block{i}": 0.1 * i for i in range(BLOCKS)})
    trial = by_trial(STRUCTURE, MACS, judge, silent)
    assert trial == sorted(worth, key=lambda name: worth[name])
    orders = {**by_search(scores), "trial": trial}
    found = choose_depth(
        Costs(), HOST, parse_budget("50%", "latency"), scores, scores, orders, {"dense": judge}, silent
    )
    assert found.gone == tuple(trial[: len(found.gone)])
    assert {one.order for one in found.tried} == {"search", "trial"}


def test_a_trial_sees_what_branches_do_for_each_other():
    """Without block0, block1 is missed much: whoever looks at each alone leaves both out first."""
    tried = []

    def judge(keep):
        away = {name for name in (f"block{i}" for i in range(BLOCKS)) if not keep[name].any()}
        tried.append(away)
        return sum(1.0 + int(name[-1]) for name in away) + 100.0 * ({"block0", "block1"} <= away)

    assert by_trial(STRUCTURE, MACS, judge, silent) == ["block0", "block2", "block3", "block4", "block1"]
    assert len(tried) <= 1 + 3 * BLOCKS


def test_a_branch_that_does_harm_goes_first():
    worth = {f"block{i}": [0.5, -1.0, 0.2, -3.0, 0.1][i] for i in range(BLOCKS)}

    def judge(keep):
        return 10 + sum(loss for name, loss in worth.items() if not keep[name].any())

    assert by_trial(STRUCTURE, MACS, judge, silent) == sorted(worth, key=lambda name: worth[name])


def test_a_trial_counts_what_is_saved():
    """The last block is missed no more than others, and costs half as much."""
    half = replace(MACS, layers=tuple(
        replace(c, product=c.product / 2 if "block4" in c.layer.branches else c.product) for c in MACS.layers
    ))  # fmt: skip
    assert by_trial(STRUCTURE, half, gone, silent)[-1] == "block4"


def test_the_better_weights_to_begin_with_are_found():
    """The search's are better with many branches gone, the dense network's with few."""
    judges = {"search": lambda keep: 3.0 - gone(keep) / 2, "dense": lambda keep: 1.0 + gone(keep)}
    scores = ranks({f"block{i}": 0.1 * i for i in range(BLOCKS)})
    shallow = choose_depth(
        Costs(), HOST, parse_budget("30%", "latency"), scores, scores, by_search(scores), judges, silent
    )
    deep = choose_depth(
        Costs(), HOST, parse_budget("90%", "latency"), scores, scores, by_search(scores), judges, silent
    )
    assert (shallow.start, deep.start) == ("search", "dense")
    assert len(shallow.gone) > len(deep.gone)
    (taken,) = [one for one in deep.tried if one.gone == deep.gone]
    assert taken.losses == {"search": 3.0 - len(deep.gone) / 2, "dense": 1.0 + len(deep.gone)}


def test_a_depth_that_the_budget_cannot_pay_for_is_not_tried():
    """Half of the dense network's time is its layers': all of them can't stay at 30%."""
    found = choose_depth(
        Costs(),
        HOST,
        parse_budget("30%", "latency"),
        ranks(),
        ranks(),
        by_search(ranks()),
        {"search": gone},
        silent,
    )
    assert min(len(one.gone) for one in found.tried) >= 2


def test_a_budget_out_of_reach_at_every_depth_is_an_error():
    with pytest.raises(BudgetError, match="can't be met"):
        choose_depth(
            Costs(),
            HOST,
            parse_budget("0.1%", "latency"),
            ranks(),
            ranks(),
            by_search(ranks()),
            {"search": gone},
            silent,
        )


def test_choosing_keeps_all_branches_unless_told():
    keep = choose(ranks(), STRUCTURE, LATENCY, 0.8 * LATENCY(DENSE), 8)
    assert all(bool(keep[branch.name].all()) for branch in STRUCTURE.branches)
    with pytest.raises(BudgetError):
        choose(ranks(), STRUCTURE, LATENCY, 0.4 * LATENCY(DENSE), 8)
    gone = ["block0", "block3"]
    keep = choose(ranks(), STRUCTURE, LATENCY, 0.4 * LATENCY(DENSE), 8, fixed=fixed_counts(STRUCTURE, gone))
    assert [name for name, mask in keep.items() if not mask.any()] == gone
    counts = {name: int(mask.sum()) for name, mask in keep.items()}
    assert counts["inner0"] == CHANNELS, "it costs nothing any more"
    assert 0.33 * LATENCY(DENSE) < LATENCY(counts) <= 0.4 * LATENCY(DENSE)


def test_a_branch_that_is_gone_costs_nothing():
    counts = {**DENSE, "block2": 0}
    of_block = sum(c.product * CHANNELS * CHANNELS + c.fixed for c in LATENCY.layers if "block2" in c.layer.branches)
    assert LATENCY(counts) == pytest.approx(LATENCY(DENSE) - of_block)
    assert LATENCY.scaled(2.0, "latency", exact=(DENSE, 1.0))(counts) == pytest.approx(1.0 - 2 * of_block)
    soft = {name: torch.tensor(float(count), requires_grad=True) for name, count in DENSE.items()}
    expected = LATENCY.expected(soft)
    expected.backward()
    assert float(expected.detach()) == pytest.approx(LATENCY(DENSE))
    assert float(soft["block2"].grad) == pytest.approx(of_block)
    dict_of = dict(cost.share_by_layer(LATENCY, counts))
    assert dict_of["in2"] == dict_of["out2"] == 0
