import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from deploy_prune import cost
from deploy_prune.cost import CostModel, LayerCost, at_widths, share_by_layer
from deploy_prune.types import Axis, ChannelGroup, Layer, LayerKind, Structure, Width

HW, SHRUNK, CLASSES, SPREAD = 64, 16, 5, 4
counts_of = st.fixed_dictionaries({"a": st.integers(1, 32), "b": st.integers(1, 48)})


def make_layer(name: str, kind: LayerKind, inputs: Width, outputs: Width, **changes: int) -> Layer:
    sizes = {"taps": 1, "positions": HW, "input_positions": HW, "vectors": 0, **changes}
    return Layer(name=name, kind=kind, tensor=f"{name}.weight", inputs=inputs, outputs=outputs, **sizes)


def fixed(width: int) -> Width:
    return Width(fixed=width, per_unit={})


def of(group: str, per: int = 1, plus: int = 0) -> Width:
    return Width(fixed=plus, per_unit={group: per})


def make_structure() -> Structure:
    """conv 3x3 (3 -> a), norm, depthwise 3x3 stride 2, conv 1x1 (a + 6 -> b) with bias, linear (4b -> classes)."""
    layers = (
        make_layer("stem", "conv", fixed(3), of("a"), taps=9),
        make_layer("norm", "norm", of("a"), of("a"), taps=0, vectors=2),
        make_layer("depthwise", "depthwise", fixed(1), of("a"), taps=9, positions=SHRUNK),
        make_layer("point", "conv", of("a", plus=6), of("b"), positions=SHRUNK, input_positions=SHRUNK, vectors=1),
        make_layer("head", "linear", of("b", SPREAD), fixed(CLASSES), positions=1, input_positions=1, vectors=1),
    )
    first, spread = torch.cat([torch.arange(32), torch.full((6,), -1)]), torch.arange(48).repeat(SPREAD)
    members = {
        "a": [*(axis(name, 32) for name in ("stem.weight", "norm.weight", "norm.bias", "depthwise.weight")),
              Axis(tensor="point.weight", axis=1, unit_of=first)],
        "b": [axis("point.weight", 48), axis("point.bias", 48), Axis(tensor="head.weight", axis=1, unit_of=spread)],
    }  # fmt: skip
    groups = [
        ChannelGroup(name=n, channels=c, period=1, consumers=(), members=tuple(members[n]))
        for n, c in (("a", 32), ("b", 48))
    ]
    return Structure(groups=tuple(groups), layers=layers, whole=())


def axis(tensor: str, size: int) -> Axis:
    """The first axis of a tensor, a unit for each coordinate."""
    return Axis(tensor=tensor, axis=0, unit_of=torch.arange(size))


def make_modules(counts: dict[str, int]) -> nn.ModuleDict:
    """The same layers as real ones, at these counts."""
    a, b = counts["a"], counts["b"]
    return nn.ModuleDict({
        "stem": nn.Conv2d(3, a, 3, padding=1, bias=False),
        "norm": nn.BatchNorm2d(a),
        "depthwise": nn.Conv2d(a, a, 3, stride=2, padding=1, groups=a, bias=False),
        "point": nn.Conv2d(a + 6, b, 1),
        "head": nn.Linear(SPREAD * b, CLASSES),
    })  # fmt: skip


DENSE = make_modules({"a": 32, "b": 48})


def count_params(counts: dict[str, int]) -> int:
    return sum(p.numel() for p in make_modules(counts).parameters())


def count_macs(counts: dict[str, int]) -> int:
    """Multiplications one by one: every weight of a convolution is used once per output position."""
    positions = (HW, 0, SHRUNK, SHRUNK, 1)
    modules = make_modules(counts).values()
    return sum(p * m.weight.numel() for p, m in zip(positions, modules, strict=True))


@pytest.fixture
def structure() -> Structure:
    return make_structure()


@given(counts_of)
def test_macs_are_what_real_layers_multiply(counts):
    assert cost.macs(make_structure())(counts) == count_macs(counts)


@given(counts_of)
def test_params_are_what_real_layers_hold(counts):
    assert cost.params(make_structure(), DENSE)(counts) == count_params(counts)


def test_params_that_no_group_cuts_stay(structure):
    model = cost.params(structure, nn.ModuleDict({**DENSE, "table": nn.Embedding(100, 10)}))
    assert model({"a": 8, "b": 8}) == count_params({"a": 8, "b": 8}) + 1000


def test_a_shared_parameter_counts_once_whatever_it_is_called(structure):
    """The groups know it by its second name."""
    model = cost.params(structure, nn.ModuleDict({"again": DENSE["stem"], **DENSE}))
    assert model({"a": 8, "b": 8}) == count_params({"a": 8, "b": 8})


def test_a_weight_used_twice_costs_its_macs_twice(structure):
    twice = Structure(groups=structure.groups, layers=(*structure.layers, structure.layers[3]), whole=())
    dense = structure.dense_counts
    assert cost.macs(twice)(dense) - cost.macs(structure)(dense) == SHRUNK * (32 + 6) * 48


@given(counts_of, st.sampled_from([1, 8]))
def test_what_is_done_anew_for_each_channel_costs_as_often_and_has_no_stairs(counts, granule):
    """A token mixer, 49 -> b -> 49, over a channels."""
    first = make_layer("first", "linear", fixed(49), of("b"), positions=1)
    second = make_layer("second", "linear", of("b"), fixed(49), positions=1)
    layers = tuple(replace(x, repeats=(of("a"), of("a", plus=2))) for x in (first, second))
    model = replace(cost.macs(replace(make_structure(), layers=layers)), granule=granule)
    a, b, tokens = counts["a"], math.ceil(counts["b"] / granule) * granule, math.ceil(49 / granule) * granule
    assert model(counts) == 2 * a * (a + 2) * b * tokens
    assert at_widths(model, widths_of(layers, counts)) == model(counts)
    assert (
        sum(share for _, share in share_by_layer(replace(model, granule=1), counts))
        == 2 * a * (a + 2) * counts["b"] * 49
    )
    soft = {name: torch.tensor(float(count)) for name, count in counts.items()}
    assert replace(model, granule=1).expected(soft).item() == 2 * a * (a + 2) * counts["b"] * 49


def widths_of(layers, counts):
    return [(x.inputs.at(counts), x.outputs.at(counts), x.times(counts)) for x in layers]


@given(counts_of)
def test_expected_is_the_cost_itself_on_integers(counts):
    model = cost.params(make_structure(), DENSE)
    soft = {name: torch.tensor(float(count)) for name, count in counts.items()}
    assert model.expected(soft).item() == pytest.approx(model(counts), rel=1e-12)


@pytest.mark.parametrize("kind", ["macs", "params"])
def test_the_gradient_is_the_slope(structure, kind):
    model = cost.macs(structure) if kind == "macs" else cost.params(structure, DENSE)
    at = {"a": 11.3, "b": 20.7}
    soft = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in at.items()}
    model.expected(soft).backward()
    for name, value in at.items():
        near = [
            model.expected({n: torch.tensor(v, dtype=torch.float64) for n, v in {**at, name: value + step}.items()})
            for step in (-1e-3, 1e-3)
        ]
        slope = (near[1] - near[0]).item() / 2e-3
        assert soft[name].grad.item() == pytest.approx(slope, rel=1e-7)


def test_float32_gates_get_a_gradient(structure):
    gates = torch.full((32,), 0.5, requires_grad=True)
    cost.macs(structure).expected({"a": gates.sum(), "b": torch.tensor(48.0)}).backward()
    per_unit = HW * 27 + SHRUNK * 9 + SHRUNK * 48
    torch.testing.assert_close(gates.grad, torch.full((32,), float(per_unit)))


@given(counts_of, st.sampled_from([2, 4, 8, 16]))
def test_stairs_price_every_width_rounded_up(counts, granule):
    plain = cost.macs(make_structure())
    stairs = CostModel(metric="macs", layers=plain.layers, groups=plain.groups, granule=granule)

    def up(width: int) -> int:
        return math.ceil(width / granule) * granule

    a, b = counts["a"], counts["b"]
    by_hand = HW * 9 * up(3) * up(a) + SHRUNK * 9 * up(1) * up(a) + SHRUNK * up(a + 6) * up(b)
    assert stairs(counts) == by_hand + up(SPREAD * b) * up(CLASSES)


def test_a_stair_is_flat_and_then_steps(structure):
    plain = cost.macs(structure)
    stairs = CostModel(metric="macs", layers=plain.layers[:2], groups=plain.groups, granule=8)
    costs = [stairs({"a": count, "b": 8}) for count in range(1, 18)]
    assert len(set(costs[0:8])) == len(set(costs[8:16])) == 1
    assert costs[7] < costs[8] < costs[16]


@given(counts_of, st.sampled_from(["a", "b"]))
def test_one_unit_more_never_costs_less(counts, name):
    plain = cost.macs(make_structure())
    for granule in (1, 8):
        model = CostModel(metric="macs", layers=plain.layers, groups=plain.groups, granule=granule)
        assert model({**counts, name: counts[name] + 1}) >= model(counts)


def test_many_choices_at_once_are_each_of_them(structure):
    model = cost.params(structure, DENSE)
    choices = torch.tensor([[4, 8], [32, 48], [1, 1]], dtype=torch.float64)
    one_by_one = [model({"a": int(a), "b": int(b)}) for a, b in choices]
    assert model.batched(choices).tolist() == one_by_one


def test_a_layer_of_two_groups_adds_their_widths():
    both = Width(fixed=2, per_unit={"a": 1, "b": 3})
    layer = LayerCost(layer=make_layer("join", "conv", both, fixed(10)), product=7.0, linear=0.5)
    model = CostModel(metric="latency", layers=(layer,), groups=("a", "b"), constant=0.25)
    assert model({"a": 4, "b": 5}) == 0.25 + 7.0 * (2 + 4 + 15) * 10 + 0.5 * 10


def test_shares_sum_to_the_cost_in_order_of_execution(structure):
    model, counts = cost.macs(structure), {"a": 9, "b": 17}
    shares = share_by_layer(model, counts)
    assert [name for name, _ in shares] == ["stem", "depthwise", "point", "head"]
    assert sum(share for _, share in shares) == model(counts)
