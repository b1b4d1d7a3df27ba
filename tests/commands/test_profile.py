"""`deploy-prune profile`: a table that says how good it is, and that recipes find again."""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from tiny_run import arithmetic_device, tiny_recipe

from deploy_prune.budget import candidates
from deploy_prune.budget.candidates import VARIANTS, CandidateCosts, identity_of
from deploy_prune.cli import main
from deploy_prune.commands import profile as profile_module
from deploy_prune.commands.given_inputs import parse_inputs
from deploy_prune.commands.profile import profile
from deploy_prune.device.targets import load_target
from deploy_prune.errors import SurgeryError, TargetError
from deploy_prune.latency import granularity
from deploy_prune.networks import build
from deploy_prune.recipe.parts import ModelPart, PrunePart
from deploy_prune.surgery.groups import find_groups
from deploy_prune.system.shell import write_text
from deploy_prune.types import Artifact, Input, Latency

SHAPE = (3, 32, 32)
PICTURE = (Input(shape=(1, *SHAPE), type="float32"),)
MODEL = ("conv4", "--target", "host", "--input", "3x32x32", "--classes", "10")


def true_ms(widths) -> float:
    """What the stand-in for a device takes for conv4: a sum that the table's form has."""
    positions = (1024, 1024, 256, 256)
    macs = sum(9 * p * i * o for p, (i, o, _) in zip(positions, widths, strict=False))
    return 0.1 + 1e-8 * macs + 2e-7 * sum(i * o for i, o, _ in widths[4:])


@pytest.fixture
def device(monkeypatch, tmp_path):
    """Artifacts are empty files; a network takes ``true_ms``, times what a test puts in; ``measured`` counts them."""
    monkeypatch.setenv("DEPLOY_PRUNE_CACHE", str(tmp_path / "cache"))
    known: dict[str, float] = {}
    state = type(
        "Device", (), {"measured": 0, "factor": staticmethod(lambda number: 1.0), "ms": staticmethod(true_ms)}
    )()

    def artifact(self, target, counts, folder):
        path = folder / "model.onnx"
        write_text(path, "")
        known[str(path)] = state.ms(candidates.widths_of(self.structure, counts))
        return Artifact(path=path, format="onnx", precision="fp32", sha256="0", input_shape=(1,), versions={})

    def measure(target, artifacts, runs, warmup, *, min_s):
        times = [known[str(a.path)] * state.factor(i) for i, a in enumerate(artifacts)]
        state.measured += len(times)
        return tuple(
            Latency(samples_ms=(ms,) * 3, warmup=warmup, threads=1, device="test", measured_on="host") for ms in times
        )

    monkeypatch.setattr(CandidateCosts, "_artifact", artifact)
    monkeypatch.setattr(candidates, "measure", measure)
    monkeypatch.setattr(candidates, "profilable", lambda target: False)
    ratios = {1: 1.1, 2: 1.05, 4: 1.0, 8: 0.7, 16: 0.6, 32: 0.3}
    monkeypatch.setattr(granularity, "time_ratios", lambda target, write: ratios)
    return state


def test_it_is_made_of_random_aligned_widths_and_judged_by_others(device):
    found = profile("conv4", "host", PICTURE, classes=10, variants=4)
    assert (found.granularity, found.ratios[8]) == (8, 0.7)
    assert len(found.tabled.samples) == 2 + 4
    assert len(found.errors) == 4
    assert device.measured == 10
    seen = [s.widths for s in (*found.tabled.samples, *found.tabled.held_out)]
    assert len(set(seen)) == len(seen), "none was used to make it"
    assert all(width % 8 == 0 for widths in seen for _, width, _ in widths[:-1])
    assert found.dense_ms == pytest.approx(true_ms(seen[0]))
    assert found.smallest_ms == pytest.approx(true_ms(seen[1])) == min(map(true_ms, seen))


def test_the_error_is_that_of_the_held_out_networks(device):
    device.factor = lambda number: 2.0 if number >= 6 else 1.0
    found = profile("conv4", "host", PICTURE, classes=10, variants=4)
    assert [e.measured_ms for e in found.errors] == [pytest.approx(2 * true_ms(s.widths)) for s in held(found)]
    errors = sorted(1 - e.predicted_ms / e.measured_ms for e in found.errors)
    assert errors[0] > 0.3
    assert found.quantile(0.5) == pytest.approx((errors[1] + errors[2]) / 2)
    assert found.quantile(0.5) < found.quantile(0.9) < errors[3]


def held(found):
    return [replace(s, total_ms=0.0) for s in found.tabled.held_out]


def bench_of(tmp_path, **prune) -> CandidateCosts:
    """What a recipe works with for the same network."""
    part, example = ModelPart(source="conv4"), torch.zeros(1, *SHAPE)
    return costs_of(build.build_network(part, 10), example, part, PrunePart(**prune), tmp_path)


def costs_of(network, example, part, prune, scratch) -> CandidateCosts:
    structure = find_groups(network, (example,), prune)
    return CandidateCosts(
        network=network, structure=structure, inputs=(example,), identity=identity_of(part), prune=prune,
        scratch=scratch,
    )  # fmt: skip


@pytest.mark.parametrize("prune", [{}, {"min_channels": 32}, {"skip": ["features.0"]}], ids=["all", "least", "some"])
def test_a_recipe_for_the_same_network_uses_it_without_measuring(device, tmp_path, prune):
    found = profile("conv4", "host", PICTURE, classes=10)
    before = device.measured
    costs = bench_of(tmp_path, **prune)
    model = costs.cost(load_target("host"), "latency")
    assert device.measured == before
    assert model(costs.structure.dense_counts) == pytest.approx(found.dense_ms, rel=0.01)
    renamed = replace(load_target("host"), name="my-host")
    assert costs.cost(renamed, "latency").constant == model.constant, "whatever the device is called"
    assert device.measured == before


@pytest.mark.parametrize("change", [{"precision": "fp16"}, {"threads": 2}, {"runtime": "ncnn", "format": "ncnn"}])
def test_another_precision_runtime_or_number_of_threads_is_measured(device, tmp_path, change):
    profile("conv4", "host", PICTURE, classes=10)
    before = device.measured
    bench_of(tmp_path).cost(replace(load_target("host"), **change), "latency")
    assert device.measured == before + 2 + VARIANTS


def test_again_it_is_read_and_a_larger_one_is_measured(device):
    first = profile("conv4", "host", PICTURE, classes=10, variants=3)
    again = profile("conv4", "host", PICTURE, classes=10, variants=2)
    assert again.as_json() == first.as_json()
    assert device.measured == 2 + 3 + 3
    assert len(profile("conv4", "host", PICTURE, classes=10, variants=4).errors) == 4


def test_a_recipes_own_table_is_no_profile_yet(device, tmp_path):
    bench_of(tmp_path).cost(load_target("host"), "latency")
    assert device.measured == 2 + VARIANTS
    assert len(profile("conv4", "host", PICTURE, classes=10, variants=VARIANTS).errors) == VARIANTS


@pytest.mark.parametrize(
    ("target", "device", "words"),
    [
        ("pixel-8", None, "name one with --device, or use `deploy-prune predict`"),
        ("host", "telnet://x", "telnet"),
        ("galaxy-s23", "local", "Nothing can be measured with .* litert-npu"),
    ],
)
def test_there_must_be_a_device(target, device, words):
    with pytest.raises(TargetError, match=words):
        profile("conv4", target, PICTURE, device=device)


@pytest.mark.parametrize("name", ["raspberry-pi-4", "raspberry-pi-5", "pixel-6", "jetson-orin-nano"])
def test_a_shipped_target_is_measured_where_it_is_attached(name):
    on = profile_module.attached(load_target(name), "ssh://pi@board")
    assert on == replace(load_target(name), runner="ssh://pi@board")


def test_a_network_without_channels_to_cut_has_no_table(monkeypatch):
    whole = find_groups(torch.nn.Sequential(torch.nn.Linear(4, 4)), (torch.zeros(1, 4),), PrunePart())
    monkeypatch.setattr(profile_module.remembered, "cuttable_groups", lambda *args: whole)
    with pytest.raises(SurgeryError, match="No channel of this network can be removed"):
        profile("conv4", "host", PICTURE)


def test_the_command_prints_lines_or_json_and_writes_a_file(device, tmp_path):
    result = CliRunner().invoke(main, ["profile", *MODEL, "--variants", "3", "--out", str(tmp_path / "t.json")])
    assert result.exit_code == 0, result.stderr
    for words in ("steps of 8", "8: 0.70", "ms dense", "5 networks", "on 3 others", "measured   in"):
        assert words in result.stdout
    told = CliRunner().invoke(main, ["profile", *MODEL, "--variants", "3", "--json"]).stdout
    assert json.loads(told) == json.loads((tmp_path / "t.json").read_text())
    assert len(json.loads(told)["held_out"]) == 3


def test_tiny_tables_without_other_widths_say_so(device):
    found = profile("conv4", "host", PICTURE, classes=10, variants=3)
    alone = replace(found, errors=())
    assert alone.quantile(0.5) is None
    assert "no other widths" in str(alone)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [("input_kinds:audio_network", ["1x400"]), ("input_kinds:two_inputs_network", ["3x8x8", "4"]),
     ("input_kinds:tokens_network", ["int64:12"]), ("unet", ["3x32x48"])],
)  # fmt: skip
def test_a_table_of_any_network(model, inputs, device, monkeypatch):
    monkeypatch.setattr(profile_module, "load_target", lambda name: replace(load_target("host"), granularity=1))
    device.ms = lambda widths: 0.1 + 1e-4 * sum(i * o for i, o, _ in widths)
    found = profile(model, "host", parse_inputs(inputs), classes=4, variants=2, trust=True)
    assert [list(x.shape[1:]) for x in found.inputs] == [list(map(int, s.split(":")[-1].split("x"))) for s in inputs]
    assert found.smallest_ms < found.dense_ms
    assert len(found.errors) == 2


@pytest.mark.slow
def test_the_whole_way_on_an_arithmetic_device(tmp_path, monkeypatch):
    """Exported, timed by arithmetic and profiled node by node; a recipe goes on with it."""
    recipe = tiny_recipe()
    network = build.build_network(recipe.model, 3)
    monkeypatch.setattr(
        profile_module,
        "network_of",
        lambda *args: (network, (Input(shape=(1, 1, 16, 16), type="float32"),), recipe.model),
    )
    monkeypatch.setattr(profile_module, "load_target", lambda name: replace(load_target("host"), granularity=4))
    with arithmetic_device(tmp_path / "cache") as device:
        found = profile("tiny", "host", variants=3)
        assert found.by_layer
        assert set(found.tabled.samples[0].per_layer_ms) == {"0", "3", "6", "11"}
        assert found.quantile(0.9) < 0.05
        asked = device.asked.total()
        example = build.example_input(recipe.data)
        costs = costs_of(network, example, recipe.model, recipe.prune, tmp_path)
        costs.cost(replace(load_target("host"), granularity=4), "latency")
        assert device.asked.total() == asked


@pytest.mark.slow
def test_a_real_table_predicts_networks_that_it_has_not_seen(tmp_path, monkeypatch):
    """Loosely: what else runs on the machine is not known here; benchmarks/latency_table.py has the figures."""
    monkeypatch.setenv("DEPLOY_PRUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(profile_module, "load_target", lambda name: replace(load_target("host"), granularity=16))
    found = profile("conv4", "host", PICTURE, classes=10, variants=3)
    assert found.smallest_ms < 0.6 * found.dense_ms
    assert found.quantile(0.5) < 0.35
