"""What a cut costs on a target: measured until two measurements agree, and kept per machine."""

import time
from collections import Counter
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
import torch
from input_kinds import KINDS
from tiny_run import ArithmeticDevice, arithmetic_device, tiny_recipe

from deploy_prune.budget import candidates
from deploy_prune.budget.candidates import CandidateCosts, Timed, identity_by_graph, identity_of
from deploy_prune.budget.shelf import Shelf
from deploy_prune.device.targets import load_target
from deploy_prune.errors import ExportError, MeasurementError
from deploy_prune.export.inputs import several
from deploy_prune.latency.table import variant_counts
from deploy_prune.networks import build
from deploy_prune.recipe.parts import ExportPart, ModelPart, PrunePart
from deploy_prune.surgery.groups import find_groups
from deploy_prune.system import cache
from deploy_prune.system.shell import write_text
from deploy_prune.types import Artifact, Latency

DENSE_MS = 2.0
HOST = replace(load_target("host"), granularity=4)


def make_bench(scratch, **changes) -> CandidateCosts:
    recipe = tiny_recipe(**changes)
    example = build.example_input(recipe.data)
    network = build.build_network(recipe.model, 3)
    structure = find_groups(network, (example,), recipe.prune)
    return CandidateCosts(
        network=network, structure=structure, inputs=(example,), identity=identity_of(recipe.model), scratch=scratch,
        prune=recipe.prune, export=recipe.export, measure=recipe.measure,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_bench(tmp_path_factory.mktemp("scratch"))


@pytest.fixture
def costs(tiny, tmp_path, monkeypatch):
    """Candidates' costs with a cache of its own, whose artifacts are empty files."""
    monkeypatch.setenv("DEPLOY_PRUNE_CACHE", str(tmp_path / "cache"))

    def artifact(self, target, counts, folder):
        path = folder / ("dense.onnx" if counts == self.structure.dense_counts else "slim.onnx")
        write_text(path, "")
        return Artifact(path=path, format="onnx", precision="fp32", sha256="0", input_shape=(1,), versions={})

    monkeypatch.setattr(CandidateCosts, "_artifact", artifact)
    return replace(tiny, scratch=tmp_path, _shelf=Shelf())


@pytest.fixture
def ratios(monkeypatch):
    """What the next measurements give, slim over dense."""
    answers: list[float] = []

    def measure(target, artifacts, runs, warmup, progress):
        assert [a.path.stem for a in artifacts] == ["dense", "slim"]
        share = answers.pop(0)
        return tuple(
            Latency(samples_ms=(ms,) * runs, warmup=warmup, threads=1, device="test", measured_on="host")
            for ms in (DENSE_MS, share * DENSE_MS)
        )

    monkeypatch.setattr(candidates, "measure_steadily", measure)
    return answers


def half(costs):
    return {name: n // 2 for name, n in costs.structure.dense_counts.items()}


def test_both_times_are_medians_of_one_measurement(costs, ratios):
    ratios += [0.5]
    assert costs.timed(HOST, half(costs)) == Timed(dense_ms=DENSE_MS, slim_ms=0.5 * DENSE_MS)


def test_what_was_measured_is_not_measured_again(costs, ratios):
    ratios += [0.5]
    first = costs.timed(HOST, half(costs))
    assert costs.timed(HOST, half(costs)) == first
    assert replace(costs, _shelf=Shelf()).timed(HOST, half(costs)) == first, "nor by another run"


def other_counts(costs):
    return costs, {**half(costs), "0": 1}


def other_runs(costs):
    return replace(costs, measure=costs.measure.model_copy(update={"runs": 21})), half(costs)


def other_args(costs):
    model = tiny_recipe().model.model_copy(update={"args": {"width": 16}})
    return replace(costs, identity=identity_of(model)), half(costs)


def other_input(costs):
    return replace(costs, inputs=(torch.zeros(1, 1, 32, 32),)), half(costs)


@pytest.mark.parametrize("change", [other_counts, other_runs, other_args, other_input])
def test_another_network_or_way_to_measure_is_measured_anew(costs, ratios, change):
    ratios += [0.5, 0.6]
    costs.timed(HOST, half(costs))
    changed, counts = change(costs)
    assert changed.timed(HOST, counts).slim_ms == pytest.approx(0.6 * DENSE_MS)


def test_another_machine_is_measured_anew(costs, ratios, monkeypatch):
    ratios += [0.5, 0.6]
    costs.timed(HOST, half(costs))
    monkeypatch.setattr(candidates, "machine", lambda target: {"cpu": "another"})
    assert costs.timed(HOST, half(costs)).slim_ms == pytest.approx(0.6 * DENSE_MS)


def test_a_measurement_that_fails_is_not_kept(costs, ratios, monkeypatch):
    working = candidates.measure_steadily

    def broken(*args):
        message = "the device is gone"
        raise MeasurementError(message)

    monkeypatch.setattr(candidates, "measure_steadily", broken)
    with pytest.raises(MeasurementError, match="gone"):
        costs.timed(HOST, half(costs))
    monkeypatch.setattr(candidates, "measure_steadily", working)
    ratios += [0.5]
    assert costs.timed(HOST, half(costs)).slim_ms == pytest.approx(0.5 * DENSE_MS)


@pytest.fixture
def drawn(costs, monkeypatch):
    """Rows of (counts of) every network that a table was made of and checked with, and each draw's seed."""
    seeds: list[list[int]] = [[], []]

    def counts(structure, granule, num, seed):
        seeds[num - 5].append(seed)
        return variant_counts(structure, granule, num, seed)

    def rows(self, target, known, others):
        return [
            {"widths": candidates.widths_of(self.structure, c), "total_ms": 1.0, "per_layer_ms": None}
            for c in (*known, *others)
        ]

    monkeypatch.setattr(candidates, "variant_counts", counts)
    monkeypatch.setattr(CandidateCosts, "_measure_variants", rows)
    return costs.tabled(HOST, 5, 6), seeds


def test_a_table_is_checked_with_networks_of_other_draws(drawn):
    table, (made_of, checked_with) = drawn
    assert (len(table.samples), len(table.held_out)) == (2 + 5, 6)
    assert made_of
    assert checked_with
    assert not set(made_of) & set(checked_with), "no seed for both"
    widths = [sample.widths for sample in (*table.samples, *table.held_out)]
    assert len(set(widths)) == len(widths), "and none is the same network by chance"


def test_counts_of_parameters_are_those_of_the_cut_network(tiny):
    for counts in (tiny.structure.dense_counts, half(tiny), tiny.smallest(HOST)):
        assert tiny.num_params(counts) == tiny.cost(HOST, "params")(counts)
    a, b, c = half(tiny).values()
    assert tiny.num_params(half(tiny)) == 9 * (a + a * b + b * c) + 2 * (a + b + c) + 3 * c + 3


def test_the_smallest_network_stands_on_the_stairs(tiny):
    assert set(tiny.smallest(HOST).values()) == {4}
    assert set(tiny.smallest(replace(HOST, granularity=8)).values()) == {8}


def test_a_network_of_another_stride_is_another_network(tiny):
    """Same tensors, same input, same groups: but not the same time."""
    strided = build.build_network(tiny_recipe().model, 3)
    strided[3].stride = (2, 2)
    structure = find_groups(strided, tiny.inputs, tiny.prune)
    other = replace(tiny, network=strided, structure=structure)
    assert other._identity(HOST) != tiny._identity(HOST)


def test_a_network_of_another_activation_is_another_network(tiny):
    smooth = build.build_network(tiny_recipe().model, 3)
    smooth[2] = torch.nn.GELU()
    assert replace(tiny, network=smooth)._identity(HOST) != tiny._identity(HOST)


@pytest.mark.slow
def test_the_table_knows_a_device_that_is_as_simple_as_itself(tiny, tmp_path):
    """The device's time is a sum of products of widths, which is what the table fits."""
    with arithmetic_device(tmp_path / "cache") as device:
        model = tiny.cost(HOST, "latency")
        for counts in (tiny.structure.dense_counts, tiny.smallest(HOST), half(tiny)):
            assert model(counts) == pytest.approx(tiny.timed(HOST, counts).slim_ms, rel=0.05)
        asked = device.asked["bench"]
        assert tiny.cost(HOST, "latency")(half(tiny)) == model(half(tiny))
        assert device.asked["bench"] == asked, "the table is kept"
    assert isinstance(device, ArithmeticDevice)


def test_a_correction_is_what_the_counts_cost_from_then_on(costs, ratios):
    ratios += [0.5, 0.7]
    counts = costs.smallest(HOST)
    assert costs.timed(HOST, counts) == Timed(slim_ms=1.0, dense_ms=2.0)
    costs.override(HOST, counts, Timed(slim_ms=1.3, dense_ms=2.0))
    assert costs.timed(HOST, counts) == Timed(slim_ms=1.3, dense_ms=2.0)
    assert ratios == [0.7], "and nothing is measured again"


def test_after_a_correction_others_are_measured_anew_once(costs, ratios):
    ratios += [0.5, 0.6]
    costs.timed(HOST, half(costs))
    costs.override(HOST, costs.smallest(HOST), Timed(slim_ms=1.3, dense_ms=2.0))
    assert [costs.timed(HOST, half(costs)).slim_ms for _ in range(2)] == [pytest.approx(0.6 * DENSE_MS)] * 2


def test_the_next_run_knows_of_the_correction(costs, ratios):
    """It begins with what the finished artifact took, and believes nothing that was measured before it."""
    ratios += [0.5, 0.6]
    costs.timed(HOST, half(costs))
    costs.override(HOST, costs.smallest(HOST), Timed(slim_ms=1.3, dense_ms=2.0))
    later = replace(costs, _shelf=Shelf())
    assert later.timed(HOST, costs.smallest(HOST)) == Timed(slim_ms=1.3, dense_ms=2.0)
    assert later.timed(HOST, half(costs)).slim_ms == pytest.approx(0.6 * DENSE_MS)
    assert ratios == []


def test_what_is_too_old_is_measured_again(costs, ratios, monkeypatch):
    ratios += [0.5, 0.6]
    costs.timed(HOST, half(costs))
    later = time.time() + cache.MAX_AGE_DAYS * cache.DAY_S + 60
    monkeypatch.setattr(cache.time, "time", lambda: later)
    assert replace(costs, since=cache.still_valid()).timed(HOST, half(costs)).slim_ms == 0.6 * DENSE_MS


def test_a_fresh_run_uses_nothing_that_was_measured_before(costs, ratios):
    ratios += [0.5, 0.6]
    costs.timed(HOST, half(costs))
    fresh = replace(costs, since=time.time())
    assert [fresh.timed(HOST, half(costs)).slim_ms for _ in range(2)] == [pytest.approx(0.6 * DENSE_MS)] * 2
    assert costs.timed(HOST, half(costs)).slim_ms == 0.6 * DENSE_MS, "and replaces it"


# --- what is written and timed for it ---------------------------------------------------------------------------------


@dataclass
class Written:
    """Stands in for the worker that writes artifacts: a file of as many bytes as its network has parameters."""

    asked: list[SimpleNamespace] = field(default_factory=list)

    def __call__(self, name, network, example, path, precision, part, inputs):
        widths = [module.out_channels for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
        first = next(iter(network.parameters())).detach().clone()
        self.asked.append(SimpleNamespace(path=path, precision=precision, widths=widths, first=first, inputs=inputs))
        assert (name, part) == ("onnx", tiny_recipe().export)
        write_text(path, "x" * sum(p.numel() for p in network.parameters()))
        shape = tuple(example.shape)
        return Artifact(path=path, format=name, precision=precision, sha256="0", input_shape=shape, versions={})


@pytest.fixture
def written(monkeypatch):
    recorder = Written()
    monkeypatch.setattr(candidates.isolated, "write", recorder)
    return recorder


@pytest.fixture
def told():
    return []


@pytest.fixture
def writing(tiny, written, told, tmp_path, monkeypatch):
    """Candidates' costs with a cache of its own, which writes to ``tmp_path`` and has 20 inputs to calibrate on."""
    monkeypatch.setenv("DEPLOY_PRUNE_CACHE", str(tmp_path / "cache"))
    inputs = torch.arange(20.0).view(20, 1, 1, 1).expand(-1, 1, 16, 16)
    return replace(
        tiny, scratch=tmp_path, _shelf=Shelf(), _sizes={}, calibration=(inputs,),
        progress=lambda work, done, total, **figures: told.append((work, done, total)),
    )  # fmt: skip


def test_a_candidate_is_the_dense_network_cut_to_the_first_units_and_timed_beside_it(writing, written, told, ratios):
    ratios += [0.5, 0.4]
    writing.timed(HOST, half(writing))
    writing.timed(HOST, writing.smallest(HOST))
    dense, slim, smallest = written.asked
    assert [one.widths for one in written.asked] == [[16, 16, 32], [8, 8, 16], [4, 4, 4]]
    assert torch.equal(slim.first, dense.first[:8])
    assert [one.path.name for one in written.asked] == ["dense.onnx", "slim.onnx", "slim.onnx"]
    assert all(one.path.is_relative_to(writing.scratch) for one in written.asked)
    assert all(one.inputs.flatten(1)[:, 0].tolist() == list(range(16)) for one in written.asked)
    works = [f"host: write {what} artifact" for what in ("the dense", "a slim", "a slim")]
    assert told == [(work, done, 1) for work in works for done in (0, 1)]


def test_without_calibration_inputs_none_are_passed(writing, written, ratios):
    ratios += [0.5]
    replace(writing, calibration=None).timed(HOST, half(writing))
    assert [one.inputs for one in written.asked] == [None, None]


def test_a_size_is_the_files_and_each_is_written_once(writing, written):
    dense, smallest = writing.structure.dense_counts, writing.smallest(HOST)
    sizes = {name: writing.size_bytes(HOST, c) for name, c in (("dense", dense), ("smallest", smallest))}
    assert sizes == {"dense": writing.num_params(dense), "smallest": writing.num_params(smallest)}
    assert writing.size_bytes(HOST, dict(smallest)) == sizes["smallest"]
    model = writing.cost(HOST, "size")
    assert len(written.asked) == 2
    assert model.metric == "size"
    assert (round(model(dense)), round(model(smallest))) == (sizes["dense"], sizes["smallest"])
    assert writing.size_bytes(replace(HOST, name="other"), smallest) == sizes["smallest"]
    assert len(written.asked) == 2, "another target's files are the same"
    assert writing.size_bytes(replace(HOST, precision="fp16"), smallest) == sizes["smallest"]
    assert len(written.asked) == 3, "those of another precision are others"


def test_all_that_is_timed_and_weighed_is_written_once_for_alike_targets(writing, written, timing, ratios):
    ratios += [0.5] * 4
    others = [HOST, replace(HOST, name="b", threads=2), replace(HOST, name="c", threads=3)]
    for target in others:
        writing.tabled(target, 2, 1)
        writing.timed(target, half(writing))
        writing.size_bytes(target, writing.smallest(target))
    assert [one[0] for one in timing if len(one) == 4 and one[1] == candidates.TABLE_RUNS] == ["host", "b", "c"]
    widths = Counter(tuple(one.widths) for one in written.asked)
    assert len(widths) >= 4
    assert set(widths.values()) == {1}


def test_networks_of_a_granularity_are_written_once_for_alike_targets(writing, written, monkeypatch, tmp_path):
    network, found = torch.nn.Conv2d(1, 4, 3), []

    def probe(target, write, since):
        found.append(write(network, torch.zeros(1, 1, 8, 8), "63", tmp_path / target.name).path)
        return 8

    monkeypatch.setattr(candidates, "granularity", probe)
    for name in ("a", "b"):
        writing.granule(replace(HOST, name=name))
    assert found == [tmp_path / name / "63.onnx" for name in ("a", "b")]
    assert found[0].samefile(found[1])
    assert len(written.asked) == 1


def test_a_shelf_keeps_only_so_much(tmp_path):
    shelf, asked = Shelf(most_bytes=25), []

    def take(key):
        def write(path):
            asked.append(key)
            write_text(path, "x" * 10)
            return Artifact(path=path, format="onnx", precision="fp32", sha256="0", input_shape=(1,), versions={})

        return shelf.take(key, tmp_path / f"{len(asked)}{key}" / "a.onnx", tmp_path / "shelf", write)

    first = take("a")
    for key in "bac":  # b was not asked for the longest
        take(key)
    assert asked == ["a", "b", "c"]
    take("a")
    assert asked == ["a", "b", "c"]
    take("b")
    assert asked == ["a", "b", "c", "b"]
    assert first.path.read_text() == "x" * 10, "who has it keeps it"
    assert len(list((tmp_path / "shelf").rglob("*.onnx"))) == 2


@pytest.fixture
def timing(monkeypatch):
    """Each network takes as many ms as its file has bytes; what was asked."""
    asked = []

    def measure(target, artifacts, runs, warmup, *, min_s):
        asked.append((target.name, runs, warmup, min_s))
        return tuple(
            Latency(samples_ms=(float(a.size_bytes),) * 3, warmup=1, threads=1, device="test", measured_on="host")
            for a in artifacts
        )

    def profile_for(target, artifacts, slowest_ms, seconds):
        asked.append((target.name, [a.size_bytes for a in artifacts], slowest_ms, seconds))
        return tuple({"node": float(i)} for i, _ in enumerate(artifacts))

    monkeypatch.setattr(candidates, "measure", measure)
    monkeypatch.setattr(candidates, "profile_for", profile_for)
    monkeypatch.setattr(
        candidates, "by_layer", lambda artifact, structure, nodes, total_ms: {**nodes, "file": artifact.size_bytes}
    )
    return asked


def test_a_table_is_one_measurement_of_all_variants_with_layers_where_the_runtime_tells(writing, timing, told):
    table = writing.tabled(HOST, 2, 1)
    dense, smallest = writing.structure.dense_counts, writing.smallest(HOST)
    assert (len(table.samples), len(table.held_out)) == (4, 1)
    assert [one.widths for one in table.samples[:2]] == [
        candidates.widths_of(writing.structure, counts) for counts in (dense, smallest)
    ]
    assert [one.total_ms for one in table.samples[:2]] == [writing.num_params(c) for c in (dense, smallest)]
    assert [one.per_layer_ms for one in table.samples] == [
        {"node": float(i), "file": one.total_ms} for i, one in enumerate(table.samples)
    ]
    assert table.held_out[0].per_layer_ms is None
    assert 0 < table.seconds < 60
    runs = (candidates.TABLE_RUNS, writing.measure.warmup, candidates.TABLE_S)
    sizes = [one.total_ms for one in table.samples]
    assert timing == [("host", *runs), ("host", sizes, sizes[0], candidates.PROFILE_S)]
    steps = [(done, total) for work, done, total in told if work == "host: latency table"]
    assert steps == [(i, 6) for i in range(7)]


def test_a_table_serves_until_more_variants_are_asked_for(writing, timing):
    first = writing.tabled(HOST, 2, 1)
    for variants, held_out in ((2, 1), (1, 1), (2, 0)):
        assert writing.tabled(HOST, variants, held_out) == first
    assert len(timing) == 2
    assert len(writing.tabled(HOST, 3, 1).samples) == 5
    assert len(writing.tabled(HOST, 3, 2).held_out) == 2
    assert len(timing) == 6


def test_a_fresh_run_measures_its_table_and_granularity_again(writing, timing, monkeypatch):
    writing.tabled(HOST, 2, 1)
    fresh = replace(writing, since=time.time() + 1)
    fresh.tabled(HOST, 2, 1)
    assert len(timing) == 4
    asked = []
    monkeypatch.setattr(candidates, "granularity", lambda target, write, since: asked.append(since) or 8)
    assert fresh.granule(HOST) == 8
    assert asked == [fresh.since]


def test_a_network_has_only_so_many_variants(writing):
    """Of at most four stairs a group, 64 in all."""
    granule, known = 8, [writing.structure.dense_counts]
    all_of_them = writing._variants(known, granule, 1000, 0)
    assert all_of_them[0] == known[0]
    assert len({str(sorted(counts.items())) for counts in all_of_them}) == len(all_of_them) <= 2 * 2 * 4
    assert len(writing._variants(known, granule, 3, 0)) == 4


def test_the_latency_of_a_device_that_is_not_attached_is_a_roofline(tiny, timing):
    there = load_target("pixel-8")
    model = replace(tiny, _ops=[]).cost(there, "latency")
    assert 0 < model(half(tiny)) < model(tiny.structure.dense_counts)
    assert timing == [], "nothing is measured"


@pytest.mark.parametrize(
    ("changes", "told"),
    [({}, True), ({"runtime": "ncnn"}, False), ({"format": "ort"}, False), ({"program": "x"}, False)],
)
def test_layers_are_told_by_onnx_runtime_alone(changes, told):
    assert candidates.profilable(replace(HOST, **changes)) == told


def test_networks_of_a_granularity_are_calibrated_on_noise(written, tmp_path):
    network, example = torch.nn.Conv2d(1, 4, 3), torch.zeros(1, 1, 8, 8)
    write = candidates.writer(replace(HOST, precision="int8"), tiny_recipe().export)
    made = [write(network, example, "probe", tmp_path) for _ in range(2)]
    assert [one.path for one in made] == [tmp_path / "probe.onnx"] * 2
    first, again = (one.inputs for one in written.asked)
    assert first.shape == (candidates.CANDIDATE_INPUTS, 1, 8, 8)
    assert torch.equal(first, again)
    assert first.std() > 0.5
    assert {one.precision for one in written.asked} == {"int8"}


def other_opset(costs):
    return replace(costs, export=ExportPart(opset=19)), HOST


def other_batch(costs):
    return replace(costs, export=ExportPart(dynamic_batch=True)), HOST


def other_source(costs):
    return replace(costs, identity=identity_of(ModelPart(source="resnet20"))), HOST


@pytest.mark.parametrize(
    "change",
    [
        other_opset, other_batch, other_source,
        *(
            lambda costs, name=name: (costs, replace(HOST, **{name: "another"}))
            for name in ("format", "precision", "runtime", "threads", "program")
        ),
    ],
)  # fmt: skip
def test_what_a_latency_depends_on_is_in_its_identity(tiny, monkeypatch, change):
    monkeypatch.setattr(candidates, "machine", lambda target: {})
    costs, target = change(tiny)
    assert costs._identity(target) != tiny._identity(HOST)
    assert tiny._identity(replace(HOST, title="another", notes="another")) == tiny._identity(HOST)


def test_the_smallest_network_keeps_the_recipes_least_channels(tiny):
    assert set(replace(tiny, prune=PrunePart(min_channels=6)).smallest(HOST).values()) == {8}, "two stairs of four"


class Wrapped(torch.nn.Module):
    """Its text has a function's address."""

    def __init__(self):
        super().__init__()
        self.function = lambda x: x.relu()

    def extra_repr(self):
        return repr(self.function)

    def forward(self, x):
        return self.function(x)


def test_where_a_function_lies_in_memory_does_not_make_another_network(tiny):
    identities = []
    kept = [Wrapped(), Wrapped()]
    assert repr(kept[0]) != repr(kept[1])
    for module in kept:
        network = build.build_network(tiny_recipe().model, 3)
        network[2] = module
        identities.append(replace(tiny, network=network)._identity(HOST))
    assert identities[0] == identities[1]


# --- inputs of any number, rank and type ------------------------------------------------------------------------------


def costs_of_kind(kind, folder):
    make, inputs = KINDS[kind]
    torch.manual_seed(0)
    network, given = make().eval(), several(inputs())
    example = tuple(x[:1] for x in given)
    return CandidateCosts(
        network=network, structure=find_groups(network, example, PrunePart()), inputs=example, calibration=given,
        identity=identity_by_graph(network, example, 60), scratch=folder,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "shapes", "weights"),
    [
        ("audio", ((1, 1, 400),), (8 * 9, 8 * 8)),
        ("two", ((1, 3, 8, 8), (1, 4)), (8 * 4 * 9, 8 * 4, 8 * 8)),
        ("tokens", ((1, 12),), (8 * 16,)),
    ],
)
def test_a_network_of_any_inputs_has_its_costs(kind, shapes, weights, tmp_path):
    costs = costs_of_kind(kind, tmp_path)
    dense = costs.structure.dense_counts
    with arithmetic_device(tmp_path / "cache"):
        timed = costs.timed(HOST, dense)
        assert timed.slim_ms == timed.dense_ms == pytest.approx(0.02 + 1e-5 * sum(weights))
        assert costs.timed(HOST, costs.smallest(HOST)).slim_ms < timed.dense_ms
    assert costs._artifact(HOST, dense, tmp_path / "dense").shapes == shapes
    assert costs.size_bytes(HOST, costs.smallest(HOST)) < costs.size_bytes(HOST, dense)
    roofline = costs.cost(replace(load_target("pixel-8"), granularity=4), "latency")
    assert 0 < roofline(costs.smallest(HOST)) < roofline(dense)


def test_int8_candidates_are_calibrated_on_every_input(tmp_path):
    costs = costs_of_kind("two", tmp_path)
    target = replace(HOST, precision="int8")
    assert costs.size_bytes(target, costs.structure.dense_counts) > 0
    one = replace(costs, calibration=costs.calibration[:1], _shelf=Shelf(), _sizes={})
    with pytest.raises(ExportError):
        one.size_bytes(target, costs.structure.dense_counts)


def test_a_network_without_a_recipe_is_named_by_its_graph(tmp_path):
    one, again, other = (costs_of_kind(kind, tmp_path) for kind in ("audio", "audio", "two"))
    assert one.identity == again.identity != other.identity
    again.network[0].stride = (2,)
    assert identity_by_graph(again.network, again.inputs, 60) != one.identity
    longer = (torch.zeros(1, 1, 500),)
    assert identity_by_graph(one.network, longer, 60) != one.identity
    assert replace(one, inputs=longer)._identity(HOST) != one._identity(HOST)
