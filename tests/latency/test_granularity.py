"""Granularity: the rule on known staircases, the cache, and one real measurement."""

import json
from dataclasses import replace

import pytest

from deploy_prune.device.targets import load_target
from deploy_prune.errors import MeasurementError
from deploy_prune.export import onnx
from deploy_prune.latency import granularity as module
from deploy_prune.latency.granularity import STEPS, WIDTH, granularity, kept_ratios, smallest_paying, time_ratios
from deploy_prune.recipe.parts import ExportPart
from deploy_prune.system.cache import cached_json

HOST = load_target("host")


def write(network, example, name, folder):
    return onnx.write(network, example, folder / f"{name}.onnx", HOST.precision, ExportPart())


def never(*args):
    pytest.fail("written")


def stair(block: int, penalty: float = 0.0) -> dict[int, float]:
    """Ratios of a device that computes blocks of channels, and is slower by ``penalty`` off the blocks."""

    def time(width: int) -> float:
        blocks = -(-width // block) * block
        return blocks * blocks * (1 + (penalty if width % block else 0))

    return {step: time(WIDTH - step) / time(WIDTH) for step in STEPS}


@pytest.mark.parametrize("block", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("penalty", [0.0, 0.4])
def test_staircases(block, penalty):
    assert smallest_paying(stair(block, penalty)) == block


def test_noise_of_two_percent_does_not_matter_from_eight_on():
    for block in (8, 16, 32):
        noisy = {step: r * (0.98 if step < block else 1.02) for step, r in stair(block).items()}
        assert smallest_paying({k: v for k, v in noisy.items() if k >= 4}) == block


def test_no_step_pays():
    assert smallest_paying(dict.fromkeys(STEPS, 1.0)) == max(STEPS)


def test_a_stated_granularity_is_not_measured(monkeypatch):
    monkeypatch.setattr(module, "time_ratios", lambda target, write: pytest.fail("measured"))
    assert granularity(replace(HOST, granularity=12), never) == 12


def test_measured_once_per_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("DEPLOY_PRUNE_CACHE", str(tmp_path))
    calls = []
    monkeypatch.setattr(module, "time_ratios", lambda target, write: calls.append(target) or stair(8))
    assert [granularity(HOST, never), granularity(HOST, never)] == [8, 8]
    assert kept_ratios(HOST, never) == stair(8), "what it is judged by is kept"
    assert len(calls) == 1
    granularity(replace(HOST, threads=2), never)
    granularity(replace(HOST, format="ncnn", runtime="ncnn"), never)
    assert len(calls) == 3
    for path in tmp_path.rglob("*.json"):
        path.write_text(path.read_text()[:20])
    assert granularity(HOST, never) == 8
    assert len(calls) == 4


def test_cache_checks_the_key(monkeypatch, tmp_path):
    monkeypatch.setenv("DEPLOY_PRUNE_CACHE", str(tmp_path))
    assert cached_json("kind", {"b": 1, "a": [2]}, lambda: {"x": 1}) == {"x": 1}
    assert cached_json("kind", {"a": [2], "b": 1}, lambda: pytest.fail("computed")) == {"x": 1}
    (path,) = tmp_path.rglob("*.json")
    assert path.parent == tmp_path / "kind"
    path.write_text(json.dumps({"key": {"other": 1}, "value": 5}))
    assert cached_json("kind", {"a": [2], "b": 1}, lambda: 6) == 6
    kept = json.loads(path.read_text())
    assert (kept["key"], kept["value"]) == ({"a": [2], "b": 1}, 6)


class Told:
    """What devices tell of themselves."""

    def __init__(self, **about):
        self.about = about

    def __call__(self, device, program):
        return lambda *asked: {"about": self.about[device.removeprefix("ssh://")]}


PI = {"cpu": ["A76"], "cores": 4, "memory_mib": 8000, "packages": {"onnxruntime": "1.2", "numpy": "2.0"}}


@pytest.mark.parametrize(
    ("another", "words"),
    [
        ({}, None),
        ({"memory_mib": 7990}, None),
        ({"packages": {"onnxruntime": "1.2", "numpy": "2.1"}}, None),
        ({"cores": 8}, "cores 8, not 4"),
        (
            {"cpu": ["A72"], "governors": ["powersave"]},
            r"cpu .*A72.*, not .*A76.*; governors .*, not None",
        ),
        ({"packages": {"onnxruntime": "1.3"}}, "runtime .*1.3.*, not .*1.2"),
    ],
)
def test_devices_that_stand_for_one_another_must_be_alike(monkeypatch, another, words):
    module._told.cache_clear()
    monkeypatch.setattr(module, "reach", Told(a=PI, b=PI, c={**PI, **another}))
    first, several = HOST.on("ssh://a"), replace(HOST, runner="ssh://a", alike=("ssh://b", "ssh://c"))
    if words is None:
        assert module.machine(several) == module.machine(first)
    else:
        with pytest.raises(MeasurementError, match=f"ssh://c can't measure in the place of ssh://a.*{words}"):
            module.machine(several)
    module._told.cache_clear()


def test_a_real_measurement_is_plausible():
    ratios = time_ratios(HOST, write)
    assert sorted(ratios) == sorted(STEPS)
    assert ratios[32] < 0.6
    assert smallest_paying(ratios) in STEPS
