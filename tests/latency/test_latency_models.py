"""The fitted table and the roofline, on hand-made structures and on a real profile."""

import random
from dataclasses import replace

import pytest
import torch
from torch import nn

from deploy_prune.cost import CostModel, at_widths
from deploy_prune.device.targets import load_target
from deploy_prune.errors import MeasurementError, TargetError
from deploy_prune.export import FORMATS
from deploy_prune.latency.measure import profile
from deploy_prune.latency.nodes import by_layer
from deploy_prune.latency.ops import list_ops
from deploy_prune.latency.predict import START, TRAFFIC, ops_of, predict, roofline
from deploy_prune.latency.table import Sample, fit_table, variant_counts, widths_of
from deploy_prune.recipe.parts import ExportPart, PrunePart
from deploy_prune.search.gated_network import gates_of
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.groups import find_groups
from deploy_prune.surgery.try_branches import prunable
from deploy_prune.types import ChannelGroup, Layer, Roofline, Structure, Width

HOST = load_target("host")


def width(fixed=0, **units):
    return Width(fixed=fixed, per_unit=units)


def layer(name, inputs, outputs, *, kind="conv", taps=9, positions=256):
    return Layer(
        name=name,
        kind=kind,
        tensor=f"{name}.weight",
        taps=taps,
        positions=positions,
        input_positions=positions,
        inputs=inputs,
        outputs=outputs,
        vectors=1,
    )


def group(name, channels):
    return ChannelGroup(name=name, channels=channels, period=1, consumers=(), members=())


CHAIN = Structure(
    groups=(group("a", 64), group("b", 96)),
    layers=(
        layer("first", width(3), width(a=1)),
        layer("norm", width(a=1), width(a=1), kind="norm", taps=0),
        layer("second", width(a=1), width(b=1)),
        layer("depth", width(1), width(b=1), kind="depthwise"),
        layer("head", width(b=1), width(10), kind="linear", taps=1, positions=1),
    ),
    whole=(),
)
TRUE = {"first": (2e-6, 1e-3, 0.01), "second": (1e-5, 2e-3, 0.02), "depth": (0, 3e-3, 0.005), "head": (1e-6, 0, 0.003)}


def up(value, granule):
    return -(-value // granule) * granule


def sample(counts, noise=0.0, seed=0, profiled=True, granule=16):
    """What a machine with the layer times TRUE and 0.1 ms beside them would give."""
    generator = random.Random(seed)
    times = {}
    for x in CHAIN.layers:
        if x.taps:
            p, q, r = TRUE[x.name]
            i, o = up(x.inputs.at(counts), granule), up(x.outputs.at(counts), granule)
            times[x.name] = (p * i * o + q * o + r) * generator.uniform(1 - noise, 1 + noise)
    widths = widths_of(CHAIN, counts)
    return Sample(widths=widths, total_ms=sum(times.values()) + 0.1, per_layer_ms=times if profiled else None)


def samples(num=5, **how):
    return [sample(c, seed=i, **how) for i, c in enumerate((CHAIN.dense_counts, *variant_counts(CHAIN, 16, num, 0)))]


def errors(model, held_out):
    return [abs(at_widths(model, s.widths) / s.total_ms - 1) for s in held_out]


HELD_OUT = [sample(c) for seed in range(1, 4) for c in variant_counts(CHAIN, 16, 4, seed)]


def test_table_recovers_a_machine_of_its_form():
    model = fit_table(CHAIN, samples(), 16)
    assert isinstance(model, CostModel)
    assert (model.metric, model.granule, model.groups) == ("latency", 16, ("a", "b"))
    assert max(errors(model, HELD_OUT)) < 0.03
    assert model(CHAIN.dense_counts) == pytest.approx(sample(CHAIN.dense_counts).total_ms, rel=0.01)


def test_table_takes_a_layer_that_is_repeated_for_every_channel_as_often():
    """As "second" is for each channel of a; the device's time goes with it."""
    chain = replace(
        CHAIN, layers=tuple(replace(x, repeats=(width(a=1),)) if x.name == "second" else x for x in CHAIN.layers)
    )
    counts = (chain.dense_counts, *variant_counts(chain, 16, 6, 0), *variant_counts(chain, 16, 4, 1))

    def repeated(one):
        plain = sample(one)
        more = {**plain.per_layer_ms, "second": (plain.per_layer_ms["second"] - 0.02) * one["a"] + 0.02}
        return Sample(widths=widths_of(chain, one), total_ms=sum(more.values()) + 0.1, per_layer_ms=more)

    model = fit_table(chain, [repeated(one) for one in counts[:7]], 16)
    assert max(errors(model, [repeated(one) for one in counts[7:]])) < 0.03


@pytest.mark.parametrize("profiled", [True, False])
def test_a_table_knows_what_layers_cost_that_may_be_gone(profiled):
    """ "second" and "depth" lie on a branch: each takes its own fixed time with it."""
    branch = ChannelGroup(name="away", channels=1, period=1, consumers=(), members=(), vanishes=("second.weight",))
    layers = tuple(replace(x, branches=("away",)) if x.name in {"second", "depth"} else x for x in CHAIN.layers)
    chain = replace(CHAIN, groups=(*CHAIN.groups, branch), layers=layers)
    narrow = {"a": 16, "b": 16}
    counts = (chain.dense_counts, {**narrow, "away": 1}, {**narrow, "away": 0}, *variant_counts(chain, 16, 8, 0))
    assert {one["away"] for one in counts[3:]} == {0, 1}

    def there(one):
        plain = sample(one)
        left = {name: ms for name, ms in plain.per_layer_ms.items() if one["away"] or name not in {"second", "depth"}}
        told = left if profiled else None
        return Sample(widths=widths_of(chain, one), total_ms=sum(left.values()) + 0.1, per_layer_ms=told)

    model = fit_table(chain, [there(one) for one in counts[:7]], 16)
    assert max(errors(model, [there(one) for one in counts[7:]])) < (0.03 if profiled else 0.15), counts
    gone = {**chain.dense_counts, "away": 0}
    assert model(gone) == pytest.approx(there(gone).total_ms, rel=0.03 if profiled else 0.2)


class OneBlock(nn.Module):
    """A residual block."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 1)
        self.inner = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))

    def forward(self, x):
        x = self.stem(x).relu()
        return self.head((x + self.inner(x)).relu())


def test_a_predicted_branch_takes_its_overheads_with_it():
    torch.manual_seed(0)
    network, x, part = OneBlock().eval(), torch.randn(2, 3, 20, 20), PrunePart(depth=True)
    structure = prunable(network, find_groups(network, [x[:1]], part), [x], gates_of, part)
    (branch,), x = structure.branches, x[:1]
    ops = list_ops(torch.export.export(network, (x,), strict=False))
    model = roofline(structure, DEVICE, ops)
    counts = {**structure.dense_counts, branch.name: 0}
    slim = cut(network, structure, {branch.name: torch.tensor([False])})
    exact = predict(list_ops(torch.export.export(slim, (x,), strict=False)), DEVICE).ms
    assert model(structure.dense_counts) == pytest.approx(predict(ops, DEVICE).ms)
    assert model(counts) == pytest.approx(exact, rel=0.02)


def test_operators_of_a_structure_have_its_macs():
    more = (
        replace(layer("mixer", width(49), width(b=1), kind="linear", taps=1, positions=1), repeats=(width(a=1),)),
        layer("lstm", width(8), width(24), kind="recurrent", taps=1, positions=7),
        replace(layer("scores", width(b=1), width(49), kind="product", taps=1, positions=49), tensor=""),
    )
    ops = ops_of(replace(CHAIN, layers=(*CHAIN.layers, *more)))[-3:]
    assert [op.macs() for op in ops] == [64 * 49 * 96, 7 * 8 * 24, 49 * 96 * 49]
    assert [op.kind for op in ops] == ["matmul", "matmul", "attention"]
    assert [(op.tensor, op.weights) for op in ops[1:]] == [("lstm.weight", 8 * 24), (None, 0)]


def test_table_stands_noise_of_ten_percent_a_layer():
    assert max(errors(fit_table(CHAIN, samples(noise=0.1), 16), HELD_OUT)) < 0.12


def test_a_profiler_that_slows_short_nodes_down_does_not_mislead_the_table():
    """Every node takes 0.05 ms more than it should; the whole networks were timed without the profiler."""

    def slowed(one):
        return replace(one, per_layer_ms={name: ms + 0.05 for name, ms in one.per_layer_ms.items()})

    model = fit_table(CHAIN, [slowed(one) for one in samples()], 16)
    assert max(errors(model, HELD_OUT)) < 0.03


def test_table_without_profile_is_near():
    model = fit_table(CHAIN, samples(profiled=False), 16)
    assert model(CHAIN.dense_counts) == pytest.approx(sample(CHAIN.dense_counts).total_ms, rel=0.1)
    assert max(errors(model, HELD_OUT)) < 0.3


def test_one_odd_network_does_not_carry_its_error_to_the_others():
    """The dense network takes a tenth more than its layers; the others don't."""
    dense, *others = samples(8)
    model = fit_table(CHAIN, [replace(dense, total_ms=1.1 * dense.total_ms), *others], 16)
    assert max(errors(model, HELD_OUT)) < 0.06


def test_table_never_rewards_more_channels():
    model = fit_table(CHAIN, samples(noise=0.3), 16)
    assert model.constant >= 0
    assert all(c.product >= 0 and c.linear >= 0 for c in model.layers)
    times = [model({"a": n, "b": 96}) for n in range(1, 65)]
    assert times == sorted(times)
    assert model({"a": 33, "b": 96}) == model({"a": 48, "b": 96})


def test_layers_without_a_node_count_to_the_rest():
    hidden = [replace(s, per_layer_ms={k: v for k, v in s.per_layer_ms.items() if k != "depth"}) for s in samples()]
    assert max(errors(fit_table(CHAIN, hidden, 16), HELD_OUT)) < 0.1


def test_a_table_serves_whichever_groups_are_pruned():
    """Measured with both groups free; asked about with one."""
    only = replace(
        CHAIN,
        groups=CHAIN.groups[1:],
        layers=tuple(
            replace(x, **{k: width(64) for k in ("inputs", "outputs") if "a" in getattr(x, k).per_unit})
            for x in CHAIN.layers
        ),
    )
    whole, part = fit_table(CHAIN, samples(), 16), fit_table(only, samples(), 16)
    assert part.groups == ("b",)
    for n in (16, 48, 96):
        assert part({"b": n}) == pytest.approx(whole({"a": 64, "b": n}))


def test_table_needs_dense_and_variants():
    with pytest.raises(MeasurementError, match="needs the dense network"):
        fit_table(CHAIN, samples()[1:], 16)
    with pytest.raises(MeasurementError, match="needs the dense network"):
        fit_table(CHAIN, samples()[:1], 16)


@pytest.mark.parametrize("profiled", [True, False])
def test_of_a_network_with_two_forms_only_the_table_has_both(profiled):
    smallest = {"a": 16, "b": 16}
    both = [sample(counts, profiled=profiled) for counts in (CHAIN.dense_counts, smallest)]
    assert max(errors(fit_table(CHAIN, both, 16), both)) < 0.05


def test_variants_are_aligned_and_spread():
    variants = variant_counts(CHAIN, 16, 4, 0)
    assert variants == variant_counts(CHAIN, 16, 4, 0)
    assert variants != variant_counts(CHAIN, 16, 4, 1)
    for counts in variants:
        assert counts.keys() == {"a", "b"}
        assert all(0 < n <= CHAIN.dense_counts[g] and n % 16 == 0 for g, n in counts.items())
    assert sum(variants[0].values()) < sum(variants[3].values())


def test_variants_of_narrow_groups_keep_all():
    narrow = replace(CHAIN, groups=(group("a", 10), group("b", 24)))
    assert {c["a"] for c in variant_counts(narrow, 16, 4, 0)} == {10}
    assert {c["b"] for c in variant_counts(narrow, 16, 4, 0)} <= {16, 24}


RATES = Roofline(
    gmacs_per_s=1.0,
    depthwise_gmacs_per_s=0.5,
    gbytes_per_s=1000.0,
    layer_overhead_ms=0.25,
    network_overhead_ms=1.0,
    source="",
)
DEVICE = replace(HOST, runner=None, granularity=8, roofline=RATES)


def test_roofline_adds_up_arithmetic_and_traffic():
    arithmetic = 256 * 9 * ((3 * 64 + 64 * 96) / 2 + 96 / 0.5) / 1e6 + 96 * 16 / 1e6
    weights = 9 * (3 * 64 + 64 * 96 + 96) + 96 * 10
    activations = 256 * (2 * (3 + 64) + 2 * (64 + 96) + 96 + 96) + 96 + 10
    for bandwidth in (1000.0, 0.1):
        device = replace(DEVICE, roofline=replace(RATES, gbytes_per_s=bandwidth))
        traffic = 4 * (weights + activations) / bandwidth / 1e6
        model = roofline(CHAIN, device)
        assert model(CHAIN.dense_counts) == pytest.approx(1.0 + 6 * 0.25 + arithmetic + traffic)
        half = roofline(CHAIN, replace(device, precision="fp16"))(CHAIN.dense_counts)
        assert half == pytest.approx(model(CHAIN.dense_counts) - traffic / 2)
    assert model({"a": 33, "b": 96}) == model({"a": 40, "b": 96})


def test_roofline_without_winograd():
    plain = replace(DEVICE, roofline=replace(RATES, gbytes_per_s=1e9, winograd=1.0))
    arithmetic = 256 * 9 * (3 * 64 + 64 * 96 + 96 / 0.5) / 1e6 + 96 * 16 / 1e6
    assert roofline(CHAIN, plain)(CHAIN.dense_counts) == pytest.approx(2.0 + arithmetic)


def test_roofline_of_matrix_products():
    """A product with many positions is at its own rate, with a single one at that of convolutions."""
    for positions in (1, 50):
        product = layer("head", width(64), width(b=1), kind="linear", taps=1, positions=positions)
        chain = Structure(groups=(group("b", 96),), layers=(product,), whole=())
        device = replace(DEVICE, roofline=replace(RATES, gbytes_per_s=1e9, matmul_gmacs_per_s=0.25))
        arithmetic = positions * 64 * 96 / 1e6 / (0.25 if positions > 1 else 1.0)
        assert roofline(chain, device)(chain.dense_counts) == pytest.approx(1.25 + arithmetic)
        equal = replace(device, roofline=replace(RATES, gbytes_per_s=1e9))
        assert roofline(chain, equal)(chain.dense_counts) == pytest.approx(1.25 + positions * 64 * 96 / 1e6)


@pytest.mark.parametrize("bandwidth", [0.05, 5.0, 5000.0])
def test_the_closed_form_is_the_prediction_on_the_dense_network(bandwidth):
    network, x = Branches().eval(), torch.zeros(1, 3, 20, 20)
    ops = list_ops(torch.export.export(network, (x,), strict=False))
    device = replace(DEVICE, roofline=replace(RATES, gbytes_per_s=bandwidth))
    structure = structure_of(ops)
    model = roofline(structure, device, ops)
    predicted = predict(ops, device).ms
    assert model(structure.dense_counts) == pytest.approx(predicted)
    assert model.constant + sum(c.fixed for c in model.layers) >= 1.0 + 0.25 * 5
    narrow = model({"c": 8})
    assert model.constant < narrow < predicted
    assert narrow == model({"c": 5})


def structure_of(ops):
    """The layers of ``Branches``, all of whose inner widths are one group's."""
    c = width(c=1)
    layers = [
        layer("stem.0", width(3), c), layer("left", c, c), layer("right.0", c, c),
        layer("depth.0", width(1), c, kind="depthwise"), layer("head", c, width(10), kind="linear", taps=1),
    ]  # fmt: skip
    assert {x.tensor for x in layers} == {op.tensor for op in ops if op.tensor}
    return Structure(groups=(group("c", 32),), layers=tuple(layers), whole=())


def test_a_transcendental_function_takes_its_rate_its_traffic_and_half_a_start():
    x, elements = torch.zeros(1, 8, 5, 5), 8 * 25
    plain, curved = (ops_of_network(nn.Sequential(nn.Conv2d(8, 8, 1), f()), x) for f in (nn.ReLU, nn.SiLU))
    device = replace(DEVICE, roofline=replace(RATES, gbytes_per_s=0.1, gfunctions_per_s=0.01))
    traffic = TRAFFIC["transcendental"] * 2 * elements * 4 / 0.1 / 1e6
    functions = elements / 0.01 / 1e6
    extra = predict(curved, device).ms - predict(plain, device).ms
    assert extra == pytest.approx(START * 0.25 + traffic + functions)
    fused = replace(device, roofline=replace(device.roofline, gfunctions_per_s=None))
    assert predict(curved, fused) == predict(plain, fused) == predict(plain, device)


def test_attention_takes_the_time_of_its_softmax():
    q = torch.zeros(1, 2, 5, 8)
    ops = ops_of_network(Attention(), q)
    fast, slow = (replace(DEVICE, roofline=replace(RATES, gfunctions_per_s=rate)) for rate in (None, 0.01))
    assert predict(ops, slow).ms - predict(ops, fast).ms == pytest.approx(2 * 5 * 5 / 0.01 / 1e6)


class Attention(nn.Module):
    """Of two heads, five tokens, to itself."""

    def forward(self, q):
        return nn.functional.scaled_dot_product_attention(q, q, q)


@pytest.mark.parametrize("channels", [32, 16, 8])
def test_functions_cost_as_much_in_the_closed_form_as_in_a_network_cut_so_far(channels):
    """SiLU beside ReLU: the rest of both networks is the same."""
    x = torch.zeros(1, 3, 20, 20)
    device = replace(DEVICE, roofline=replace(RATES, gbytes_per_s=0.05, gfunctions_per_s=0.02))
    models, cut = [], []
    for make in (nn.ReLU, nn.SiLU):
        ops = ops_of_network(Branches(make=make), x)
        models.append(roofline(structure_of(ops), device, ops))
        cut.append(predict(ops_of_network(Branches(channels, make), x), device).ms)
    added = models[1]({"c": channels}) - models[0]({"c": channels})
    assert added == pytest.approx(cut[1] - cut[0])
    assert added > (2 * 400 + 324) * channels / 0.02 / 1e6, "the functions alone"


def ops_of_network(network, x):
    return list_ops(torch.export.export(network.eval(), (x,), strict=False))


def test_roofline_needs_rates():
    with pytest.raises(TargetError, match="needs 'roofline:'"):
        roofline(CHAIN, HOST)


class Branches(nn.Module):
    """Two branches of equal shapes, activations, a depthwise layer and a head."""

    def __init__(self, c=32, make=nn.ReLU6):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), make())
        self.left = nn.Conv2d(c, c, 3, padding=1)
        self.right = nn.Sequential(nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), make())
        self.depth = nn.Sequential(nn.Conv2d(c, c, 3, groups=c), make())
        self.head = nn.Linear(c, 10)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.depth(self.left(x) + self.right(x)).mean((2, 3)))


def test_profiled_nodes_find_their_layers(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "b.onnx"
    artifact = FORMATS["onnx"].write(Branches(), torch.zeros(1, 3, 20, 20), path, "fp32", ExportPart())
    c = width(32)
    layers = (
        layer("stem.0", width(3), c),
        layer("stem.1", c, c, kind="norm", taps=0),
        layer("left", c, c),
        layer("right.0", c, c),
        layer("depth.0", width(1), c, kind="depthwise"),
        layer("head", c, width(10), kind="linear", taps=1),
    )
    (nodes,) = profile(HOST, [artifact], runs=50)
    found = by_layer(artifact, Structure(groups=(), layers=layers, whole=()), nodes, total_ms=1.0)
    assert set(found) == {"stem.0", "left", "right.0", "depth.0", "head"}
    assert sum(found.values()) <= 1.0 + 1e-9
    assert min(found["left"], found["right.0"]) > found["head"]
