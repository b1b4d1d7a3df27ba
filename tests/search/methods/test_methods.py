"""Every method in the table goes through the same tests."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from gating_examples import reachable
from search_run import run_search
from torch import nn

from deploy_prune.budget.choose import choose
from deploy_prune.cost import macs, params
from deploy_prune.errors import RecipeError
from deploy_prune.networks import build
from deploy_prune.recipe.parts import SEARCH_METHODS, ModelPart, PrunePart, SearchPart
from deploy_prune.search.methods import METHODS, check_options, values
from deploy_prune.search.threshold import threshold_values
from deploy_prune.surgery.groups import find_groups
from deploy_prune.tasks.classification import CLASSIFIER

FINDS_DEAD = {"dap": {}, "gate": {}, "gumbel": {}, "magnitude": {"over": "consumers"}, "taylor": {}, "obs": {}}


search = run_search


def counts(keep):
    return {name: int(kept.sum()) for name, kept in keep.items()}


@pytest.fixture(params=list(METHODS))
def method(request):
    return request.param


def test_the_tables_agree_with_each_other_and_with_the_recipe():
    assert tuple(METHODS) == SEARCH_METHODS


def test_scores_are_finite_and_one_a_unit(method, example, accelerator):
    scores = search(method, example, accelerator).scores
    assert {name: tuple(s.shape) for name, s in scores.items()} == {
        g.name: (g.channels,) for g in example.structure.groups
    }
    assert all(s.is_floating_point() and bool(torch.isfinite(s).all()) for s in scores.values())
    assert all(s.device.type == "cpu" and not s.requires_grad for s in scores.values())


def test_the_same_seed_gives_the_same_scores(method, example, accelerator):
    first, second = (search(method, example, accelerator, seed=3) for _ in range(2))
    for name in first.scores:
        assert torch.equal(first.scores[name], second.scores[name])
    for name in first.state:
        assert torch.equal(first.state[name], second.state[name])


@pytest.mark.parametrize("training", [True, False])
def test_the_network_stays_untouched(method, example, accelerator, training):
    example.network.train(training)
    next(example.network.parameters()).requires_grad_(False)
    before = copy.deepcopy(example.network)
    search(method, example, accelerator)
    assert all(m.training is training for m in example.network.modules())
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, example.network.state_dict()[name]), name
    assert [p.requires_grad for p in before.parameters()] == [p.requires_grad for p in example.network.parameters()]
    assert all(p.grad is None for p in example.network.parameters())


def test_the_state_fits_the_network_and_is_its_own(method, example, accelerator):
    state = search(method, example, accelerator).state
    other = copy.deepcopy(example.network)
    other.load_state_dict(state)
    for tensor in state.values():
        tensor.zero_()
    assert any(bool(tensor.any()) for tensor in example.network.state_dict().values())


@pytest.mark.parametrize("share", [0.7, 0.4])
def test_the_budget_is_met(method, example, accelerator, share):
    scores = search(method, example, accelerator, share=share).scores
    for cost in (macs(example.structure), params(example.structure, example.network)):
        smallest, dense = reachable(example.structure, cost, 2)
        limit = max(smallest, share * dense)
        keep = choose(scores, example.structure, cost, limit, 2)
        assert smallest <= cost(counts(keep)) <= limit


def train(example, steps):
    optimizer, batches = torch.optim.SGD(example.network.parameters(), lr=0.05, momentum=0.9), example.batches(7)
    for _ in range(steps):
        optimizer.zero_grad()
        CLASSIFIER.batch_loss(example.network, next(batches)).backward()
        optimizer.step()


@pytest.mark.parametrize("method", list(FINDS_DEAD))
def test_planted_dead_channels_go_first(method, example, accelerator):
    """A third of each group of a trained network is read by nobody; for a method that trains, it computes nothing."""
    train(example, 60)
    dead, tensors = {}, example.network.state_dict()
    lot = torch.Generator().manual_seed(0)
    for group in example.structure.groups:
        dead[group.name] = torch.randperm(group.channels, generator=lot)[: group.channels // 3]
        for axis in group.members if method in {"dap", "gate", "gumbel"} else group.consumers:
            tensors[axis.tensor].index_fill_(axis.axis, dead[group.name], 0.0)
    scores = search(method, example, accelerator, share=0.5, steps=100, **FINDS_DEAD[method]).scores
    for name, units in dead.items():
        lowest = scores[name].argsort()[: len(units)]
        assert set(lowest.tolist()) == set(units.tolist()), name


def test_an_unknown_option_names_the_nearest(method, chained, accelerator):
    known = next(iter(METHODS[method].options.model_fields), None)
    wrong = (known or "steps") + "x"
    with pytest.raises(RecipeError) as error:
        search(method, chained, accelerator, **{wrong: 1})
    hint = f"perhaps you meant {known!r}" if known else "there are none"
    assert str(error.value) == f"search.options.{wrong} of the method {method}: unknown option; {hint}."


def test_a_far_off_option_lists_all():
    with pytest.raises(RecipeError, match=r"search\.options\.qqq of the method taylor: .* known are: num_batches\."):
        check_options(SearchPart(method="taylor", options={"qqq": 1}))
    with pytest.raises(RecipeError, match=r"known are: weights, anneal, gain, damping, average, "):
        check_options(SearchPart(method="gate", options={"qqq": 1}))


def test_a_bad_value_names_the_option():
    with pytest.raises(RecipeError, match=r"search\.options\.anneal of .* less than or equal to 1 \(given 2\)\."):
        check_options(SearchPart(method="gate", options={"anneal": 2}))


def test_progress_is_told_of_long_work(chained, accelerator):
    told = []
    for method in ("gate", "taylor"):
        search(method, chained, accelerator, progress=lambda *a, **figures: told.append(a))
    assert told[0][1:] == (1, 20)
    assert told[-1] == ("taylor", 20, 20)


def test_uniform_takes_nearly_the_same_share_of_every_group_at_every_budget(make_chain, accelerator):
    example = make_chain((80, 160, 240))
    for cost in (macs(example.structure), params(example.structure, example.network)):
        scores = values("uniform", search("uniform", example, accelerator).scores, cost)
        for share in (0.75, 0.5, 0.25):
            keep = choose(scores, example.structure, cost, share * cost(example.structure.dense_counts), 4)
            shares = [float(kept.float().mean()) for kept in keep.values()]
            assert max(shares) - min(shares) < 0.15, shares


@pytest.mark.parametrize("share", [0.6, 0.3])
def test_one_search_is_priced_for_each_cost_by_itself(method, example, accelerator, share):
    """What a search leaves ranks units, and doesn't know which of the costs will be asked for first."""
    scores = search(method, example, accelerator).scores
    for cost in (macs(example.structure), params(example.structure, example.network)):
        priced, limit = values(method, scores, cost), share * cost(example.structure.dense_counts)
        expected = scores if METHODS[method].valued else threshold_values(scores, cost)
        assert all(torch.equal(priced[name], expected[name]) for name in scores)
        assert cost(counts(choose(priced, example.structure, cost, limit, 1))) <= limit


def test_baselines_rank_alike_whatever_the_goal_is(example, accelerator):
    for method in ("uniform", "random", "magnitude", "bn_scale"):
        first, second = (
            search(method, example, accelerator, cost=cost).scores
            for cost in (macs(example.structure), params(example.structure, example.network))
        )
        assert all(torch.equal(first[name], second[name]) for name in first), method


def test_random_depends_on_the_seed(chained, accelerator):
    first, second = (search("random", chained, accelerator, seed=s).scores["6"] for s in (0, 1))
    assert not torch.equal(first.argsort(), second.argsort())


def test_magnitude_by_hand(chained, accelerator):
    state = chained.network.state_dict()
    norms = (state["0.weight"].pow(2).sum((1, 2, 3)) + state["3.weight"].pow(2).sum((0, 2, 3))).sqrt()
    assert torch.equal(search("magnitude", chained, accelerator).scores["0"].argsort(), norms.argsort())


def test_bn_scale_by_hand(example, accelerator):
    lot = torch.Generator().manual_seed(0)
    for parameter in example.network.parameters():
        if parameter.dim() == 1:
            parameter.data = torch.randn(parameter.shape, generator=lot)
    group = example.structure.groups[0]
    gammas = [
        example.network.get_parameter(axis.tensor).detach().abs()
        for axis in group.members
        if axis.tensor in {layer.tensor for layer in example.structure.layers if layer.kind == "norm"}
    ]
    assert gammas
    expected = sum(gammas).argsort()
    assert torch.equal(search("bn_scale", example, accelerator).scores[group.name].argsort(), expected)


def without_norms(example, *names):
    from dataclasses import replace

    layers = tuple(layer for layer in example.structure.layers if layer.name not in names)
    return replace(example, structure=replace(example.structure, layers=layers))


def test_bn_scale_does_not_guess_for_a_group_without_a_norm(chained, accelerator):
    bare = without_norms(chained, "4")
    with pytest.raises(RecipeError, match=r"can't score 3: .*search\.options\.without_norm: magnitude"):
        search("bn_scale", bare, accelerator)
    scores = search("bn_scale", bare, accelerator, without_norm="magnitude").scores
    assert torch.equal(scores["3"].argsort(), search("magnitude", chained, accelerator).scores["3"].argsort())


def test_bn_scale_refuses_a_network_without_norms(chained, accelerator):
    bare = without_norms(chained, "1", "4", "7")
    with pytest.raises(RecipeError, match="can't score 0, 3, 6: no norm"):
        search("bn_scale", bare, accelerator, without_norm="magnitude")


def test_taylor_is_the_mean_of_absolute_gradients(chained, accelerator):
    network = copy.deepcopy(chained.network).eval()
    expected = torch.zeros(8)
    batches = chained.batches(0)
    for _ in range(3):
        network.zero_grad()
        CLASSIFIER.batch_loss(network, next(batches)).backward()
        weight = network.get_parameter("3.weight")
        expected += (weight.grad * weight).sum((0, 2, 3)).abs().detach() / 3
    assert torch.allclose(search("taylor", chained, accelerator, num_batches=3).scores["0"], expected, atol=1e-7)


def test_bn_scale_finds_the_norms_of_a_traced_network(accelerator):
    network = build.build_network(ModelPart(source="resnet20"), 10)
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 2)
    structure = find_groups(network, (torch.randn(1, 3, 32, 32),), PrunePart())
    traced = SimpleNamespace(network=network, structure=structure, batches=lambda seed: iter(()))
    scores = search("bn_scale", traced, accelerator).scores
    inner = {f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)}
    assert {f"{block}.conv1" for block in inner} <= set(scores)
    for block in inner:
        scale = network.get_parameter(f"{block}.bn1.weight")
        assert torch.equal(scores[f"{block}.conv1"].argsort(), scale.abs().argsort())
