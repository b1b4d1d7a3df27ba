"""Every runner: the same contract; and the statistics of what they give back."""

import threading
from dataclasses import replace

import numpy
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy_prune.device import RUNNERS
from deploy_prune.device.targets import load_target
from deploy_prune.errors import CommandError, MeasurementError
from deploy_prune.export.artifact import describe
from deploy_prune.latency import measure as measure_module
from deploy_prune.latency.measure import measure, profile
from deploy_prune.system.locks import one_at_a_time
from deploy_prune.system.shell import digest

HOST = load_target("host")


def convolution(path, width, size=12):
    """An ONNX file with one 3x3 convolution, width -> width."""
    weight = numpy.random.default_rng(0).standard_normal((width, width, 3, 3)).astype(numpy.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1, 1, 1, 1])
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, width, size, size]) for n in "xy"]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return describe(path, format="onnx", precision="fp32", input_shape=(1, width, size, size), versions={})


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return convolution(folder / "wide.onnx", 128), convolution(folder / "narrow.onnx", 16)


def test_samples(device_name, pair):
    latencies = measure(replace(HOST, runner=device_name), pair, runs=25, warmup=3, min_s=0)
    assert [len(x.samples_ms) for x in latencies] == [25, 25]
    for latency in latencies:
        assert all(ms > 0 for ms in latency.samples_ms)
        place = "host" if device_name == "local" else device_name
        assert (latency.warmup, latency.threads, latency.measured_on) == (3, 1, place)
        assert set(latency.conditions[0]) == {"before", "after"}
        assert latency.device
        assert latency.p50_ms <= latency.p90_ms
    assert latencies[0].p50_ms > 5 * latencies[1].p50_ms


def test_it_says_that_it_waits_for_another_measurement(monkeypatch, pair):
    monkeypatch.setitem(RUNNERS, "local", lambda *asked: {"samples_ms": [[1.0] * 10] * 2, "device": "test"})
    told, entered, go_on = [], threading.Event(), threading.Event()

    def another():
        with one_at_a_time("device", "local"):
            entered.set()
            go_on.wait(10)

    def progress(*step):
        told.append(step)
        go_on.set()

    thread = threading.Thread(target=another)
    thread.start()
    entered.wait(10)
    measure(HOST, pair, runs=10, warmup=0, progress=progress)
    thread.join()
    measure(HOST, pair, runs=10, warmup=0, progress=progress)
    assert told == [("host: wait for another process that measures there", 0, 1)]


def test_small_networks_are_timed_longer(device_name, pair):
    (latency,) = measure(replace(HOST, runner=device_name), pair[1:], runs=10, warmup=3, min_s=0.05)
    assert len(latency.samples_ms) > 50
    assert len(latency.samples_ms) <= measure_module.MAX_RUNS


def test_timeout_is_an_error(device_name, pair):
    with pytest.raises(MeasurementError, match="stopped after 0.01 s"):
        measure(replace(HOST, runner=device_name), pair, runs=25, warmup=3, timeout_s=0.01)


def test_damaged_artifact_is_an_error(device_name, pair, tmp_path):
    path = tmp_path / "bad.onnx"
    path.write_bytes(pair[1].path.read_bytes()[:100])
    with pytest.raises(MeasurementError) as caught:
        measure(
            replace(HOST, runner=device_name), [replace(pair[1], path=path, sha256=digest(path))], runs=10, warmup=0
        )
    assert "bad.onnx" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_profile_names_the_nodes(device_name, pair):
    wide, narrow = profile(replace(HOST, runner=device_name), pair, runs=20, warmup=3)
    assert any("conv" in node or "y" in node for node in wide)
    assert sum(wide.values()) > sum(narrow.values()) > 0


def test_an_edited_artifact_is_not_timed(pair, tmp_path):
    path = tmp_path / "edited.onnx"
    path.write_bytes(pair[1].path.read_bytes() + b" ")
    with pytest.raises(MeasurementError, match="has changed since it was written"):
        measure(HOST, [replace(pair[1], path=path)], runs=10, warmup=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"runner": None}, "No device is attached"),
        ({"runtime": "abacus"}, "its runtime 'abacus' is none of .*onnxruntime"),
    ],
)
def test_targets_that_cannot_be_measured(change, words, pair):
    with pytest.raises(MeasurementError, match=words):
        measure(replace(HOST, **change), pair, runs=10, warmup=0)


def test_nothing_or_nowhere(pair, tmp_path):
    with pytest.raises(MeasurementError, match="nothing to measure"):
        measure(HOST, [], runs=10, warmup=0)
    with pytest.raises(MeasurementError, match="export it again"):
        measure(HOST, [replace(pair[0], path=tmp_path / "no.onnx")], runs=10, warmup=0)


def fake_runner(monkeypatch, answer):
    seen = []

    def run(payload, spec, timeout_s):
        seen.append(dict(spec))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setitem(RUNNERS, "local", run)
    return seen


def test_what_a_runner_is_asked(monkeypatch, pair):
    answer = {"samples_ms": [[1.0] * 10, [2.0] * 10], "device": "abacus"}
    seen = fake_runner(monkeypatch, answer)
    slow, fast = measure(replace(HOST, threads=3), pair, runs=10, warmup=4)
    assert (slow.p50_ms, fast.p50_ms, fast.threads, fast.device) == (1.0, 2.0, 3, "abacus")
    assert [m["path"] for m in seen[0]["models"]] == [str(a.path) for a in pair]
    assert {m["runtime"] for m in seen[0]["models"]} == {"onnxruntime"}
    assert {k: seen[0][k] for k in ("mode", "runs", "warmup", "threads")} == {
        "mode": "bench",
        "runs": 10,
        "warmup": 4,
        "threads": 3,
    }


def test_too_few_samples_are_an_error(monkeypatch, pair):
    fake_runner(monkeypatch, {"samples_ms": [[1.0] * 10], "device": "abacus"})
    with pytest.raises(MeasurementError, match="too few samples"):
        measure(HOST, pair, runs=10, warmup=0)
    fake_runner(monkeypatch, CommandError("The line was cut."))
    with pytest.raises(MeasurementError, match="The line was cut"):
        measure(HOST, pair, runs=10, warmup=0)
