"""What a cut costs on a target: measured until two measurements agree, and kept per machine."""

import time
from dataclasses import replace

import pytest
import torch
from tiny_run import ArithmeticDevice, arithmetic_device, tiny_recipe

from deploy_prune.budget import candidates
from deploy_prune.budget.candidates import Timed, Workbench
from deploy_prune.device.targets import load_target
from deploy_prune.errors import MeasurementError
from deploy_prune.latency.table import variant_counts
from deploy_prune.networks import build
from deploy_prune.surgery.groups import find_groups
from deploy_prune.system import cache
from deploy_prune.system.shell import write_text
from deploy_prune.types import Artifact, Latency

DENSE_MS = 2.0
HOST = replace(load_target("host"), granularity=4)


def make_bench(scratch, **changes) -> Workbench:
    recipe = tiny_recipe(**changes)
    example = build.example_input(recipe.data)
    network = build.build_network(recipe.model, 3)
    structure = find_groups(network, (example,), recipe.prune)
    return Workbench(network=network, structure=structure, example=example, recipe=recipe, scratch=scratch)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_bench(tmp_path_factory.mktemp("scratch"))


@pytest.fixture
def bench(tiny, tmp_path, monkeypatch):
    """A workbench with a cache of its own, whose artifacts are empty files."""
    monkeypatch.setenv("DEPLOY_PRUNE_CACHE", str(tmp_path / "cache"))

    def artifact(self, target, counts, folder):
        path = folder / ("dense.onnx" if counts == self.structure.dense_counts else "slim.onnx")
        write_text(path, "")
        return Artifact(path=path, format="onnx", precision="fp32", sha256="0", input_shape=(1,), versions={})

    monkeypatch.setattr(Workbench, "_artifact", artifact)
    return replace(tiny, scratch=tmp_path, _dense={})


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


def half(bench):
    return {name: n // 2 for name, n in bench.structure.dense_counts.items()}


def test_both_times_are_medians_of_one_measurement(bench, ratios):
    ratios += [0.5]
    assert bench.timed(HOST, half(bench)) == Timed(dense_ms=DENSE_MS, slim_ms=0.5 * DENSE_MS)


def test_what_was_measured_is_not_measured_again(bench, ratios):
    ratios += [0.5]
    first = bench.timed(HOST, half(bench))
    assert bench.timed(HOST, half(bench)) == first
    assert replace(bench, _dense={}).timed(HOST, half(bench)) == first, "nor by another run"


def other_counts(bench):
    return bench, {**half(bench), "0": 1}


def other_runs(bench):
    part = bench.recipe.measure.model_copy(update={"runs": 21})
    return replace(bench, recipe=bench.recipe.model_copy(update={"measure": part})), half(bench)


def other_args(bench):
    part = bench.recipe.model.model_copy(update={"args": {"width": 16}})
    return replace(bench, recipe=bench.recipe.model_copy(update={"model": part})), half(bench)


def other_input(bench):
    return replace(bench, example=torch.zeros(1, 1, 32, 32)), half(bench)


@pytest.mark.parametrize("change", [other_counts, other_runs, other_args, other_input])
def test_another_network_or_way_to_measure_is_measured_anew(bench, ratios, change):
    ratios += [0.5, 0.6]
    bench.timed(HOST, half(bench))
    changed, counts = change(bench)
    assert changed.timed(HOST, counts).slim_ms == pytest.approx(0.6 * DENSE_MS)


def test_another_machine_is_measured_anew(bench, ratios, monkeypatch):
    ratios += [0.5, 0.6]
    bench.timed(HOST, half(bench))
    monkeypatch.setattr(candidates, "machine", lambda target: {"cpu": "another"})
    assert bench.timed(HOST, half(bench)).slim_ms == pytest.approx(0.6 * DENSE_MS)


def test_a_measurement_that_fails_is_not_kept(bench, ratios, monkeypatch):
    working = candidates.measure_steadily

    def broken(*args):
        message = "the device is gone"
        raise MeasurementError(message)

    monkeypatch.setattr(candidates, "measure_steadily", broken)
    with pytest.raises(MeasurementError, match="gone"):
        bench.timed(HOST, half(bench))
    monkeypatch.setattr(candidates, "measure_steadily", working)
    ratios += [0.5]
    assert bench.timed(HOST, half(bench)).slim_ms == pytest.approx(0.5 * DENSE_MS)


@pytest.fixture
def drawn(bench, monkeypatch):
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
    monkeypatch.setattr(Workbench, "_measure_variants", rows)
    return bench.tabled(HOST, 5, 6), seeds


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
    strided = build.build_network(tiny.recipe.model, 3)
    strided[3].stride = (2, 2)
    structure = find_groups(strided, (tiny.example,), tiny.recipe.prune)
    other = replace(tiny, network=strided, structure=structure)
    assert other._identity(HOST) != tiny._identity(HOST)


def test_a_network_of_another_activation_is_another_network(tiny):
    smooth = build.build_network(tiny.recipe.model, 3)
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


def test_a_correction_is_what_the_counts_cost_from_then_on(bench, ratios):
    ratios += [0.5, 0.7]
    counts = bench.smallest(HOST)
    assert bench.timed(HOST, counts) == Timed(slim_ms=1.0, dense_ms=2.0)
    bench.correct(HOST, counts, Timed(slim_ms=1.3, dense_ms=2.0))
    assert bench.timed(HOST, counts) == Timed(slim_ms=1.3, dense_ms=2.0)
    assert ratios == [0.7], "and nothing is measured again"


def test_after_a_correction_others_are_measured_anew_once(bench, ratios):
    ratios += [0.5, 0.6]
    bench.timed(HOST, half(bench))
    bench.correct(HOST, bench.smallest(HOST), Timed(slim_ms=1.3, dense_ms=2.0))
    assert [bench.timed(HOST, half(bench)).slim_ms for _ in range(2)] == [pytest.approx(0.6 * DENSE_MS)] * 2


def test_the_next_run_knows_of_the_correction(bench, ratios):
    """It begins with what the finished artifact took, and believes nothing that was measured before it."""
    ratios += [0.5, 0.6]
    bench.timed(HOST, half(bench))
    bench.correct(HOST, bench.smallest(HOST), Timed(slim_ms=1.3, dense_ms=2.0))
    later = replace(bench, _dense={})
    assert later.timed(HOST, bench.smallest(HOST)) == Timed(slim_ms=1.3, dense_ms=2.0)
    assert later.timed(HOST, half(bench)).slim_ms == pytest.approx(0.6 * DENSE_MS)
    assert ratios == []


def test_what_is_too_old_is_measured_again(bench, ratios, monkeypatch):
    ratios += [0.5, 0.6]
    bench.timed(HOST, half(bench))
    later = time.time() + cache.MAX_AGE_DAYS * cache.DAY_S + 60
    monkeypatch.setattr(cache.time, "time", lambda: later)
    assert replace(bench, since=cache.still_valid()).timed(HOST, half(bench)).slim_ms == 0.6 * DENSE_MS


def test_a_fresh_run_uses_nothing_that_was_measured_before(bench, ratios):
    ratios += [0.5, 0.6]
    bench.timed(HOST, half(bench))
    fresh = replace(bench, since=time.time())
    assert [fresh.timed(HOST, half(bench)).slim_ms for _ in range(2)] == [pytest.approx(0.6 * DENSE_MS)] * 2
    assert bench.timed(HOST, half(bench)).slim_ms == 0.6 * DENSE_MS, "and replaces it"
