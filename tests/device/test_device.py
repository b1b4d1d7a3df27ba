"""What is started on a device: outputs, timing, profiles; and how this machine is reached."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from small_models import WEIGHT, convolution

from deploy_prune import device
from deploy_prune.device import ABOUT, PAYLOAD, RUNTIMES, SCRIPT
from deploy_prune.device.host import local
from deploy_prune.errors import CommandError, MeasurementError
from deploy_prune.export.artifact import describe


def expected(x):
    return torch.nn.functional.conv2d(x, torch.from_numpy(WEIGHT), padding=1), x.mean((1, 2, 3))


@pytest.mark.parametrize(("batch", "channels_last"), [(1, False), (2, False), ("n", False), (2, True)])
def test_outputs_in_order_for_any_number_of_inputs(tmp_path, batch, channels_last):
    artifact = convolution(tmp_path / "c.onnx", batch, channels_last)
    x = torch.randn(6, 3, 8, 6)
    found = device.run(artifact, x, "onnxruntime")
    for a, b in zip(expected(x), found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_whole_numbers_stay_whole(tmp_path):
    """A language model's inputs; above 2**24 float32 would round them."""
    node = helper.make_node("Add", ["x", "x"], ["y"])
    ends = [helper.make_tensor_value_info(n, TensorProto.INT64, [2, 3]) for n in "xy"]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), tmp_path / "i.onnx")
    artifact = describe(tmp_path / "i.onnx", format="onnx", precision="fp32", input_shape=(2, 3), versions={})
    (found,) = device.run(artifact, torch.full((2, 3), 2**24 + 1), "onnxruntime")
    assert found.tolist() == [[2**25 + 2] * 3] * 2


def test_inputs_that_do_not_fill_a_batch_are_refused(tmp_path):
    artifact = convolution(tmp_path / "c.onnx", 2)
    for number in (0, 3):
        with pytest.raises(MeasurementError, match=f"takes 2 inputs at a time; {number} can't be divided so"):
            device.run(artifact, torch.randn(number, 3, 8, 6), "onnxruntime")


def test_a_file_that_was_edited_is_not_run(tmp_path):
    artifact = convolution(tmp_path / "c.onnx")
    artifact.path.write_bytes(artifact.path.read_bytes().replace(b"conv", b"vonc"))
    with pytest.raises(MeasurementError, match="has changed since it was written"):
        device.run(artifact, torch.randn(2, 3, 8, 6), "onnxruntime")


def test_a_file_that_ends_early_is_one_sentence(tmp_path):
    artifact = convolution(tmp_path / "c.onnx")
    artifact.path.write_bytes(artifact.path.read_bytes()[:-40])
    cut = describe(artifact.path, format="onnx", precision="fp32", input_shape=artifact.input_shape, versions={})
    with pytest.raises(MeasurementError, match="can't be run in onnxruntime") as caught:
        device.run(cut, torch.randn(2, 3, 8, 6), "onnxruntime")
    assert "\n" not in str(caught.value)


def test_no_file_and_no_runtime(tmp_path):
    artifact = convolution(tmp_path / "c.onnx")
    with pytest.raises(MeasurementError, match="export it again"):
        device.run(replace(artifact, path=tmp_path / "no.onnx"), torch.randn(2, 3, 8, 6), "onnxruntime")
    with pytest.raises(MeasurementError, match="its runtime 'abacus' is none of .*onnxruntime"):
        device.run(artifact, torch.randn(2, 3, 8, 6), "abacus")


def test_the_answer_has_versions_and_nothing_that_a_runtime_prints(tmp_path):
    folder = tmp_path / "payload"
    folder.mkdir()
    for path in (SCRIPT, ABOUT):
        (folder / path.name).write_text(path.read_text())
    (folder / "loud.py").write_text(
        "import os\nos.system('echo loud')\nprint('loud')\n"
        "class Model:\n"
        "    def __init__(self, path, threads, layout): pass\n"
        "    def feed(self, x): self.x = x\n"
        "    def run(self): return [2 * self.x]\n"
        "def versions(): return {'loud': '7'}\n"
    )
    numpy.save(tmp_path / "x.npy", numpy.ones((2, 3), "float32"))
    model = {"runtime": "loud", "path": "nowhere", "layout": "NCHW", "input_shape": [1, 3]}
    spec = {"mode": "run", "models": [model], "threads": 1, "inputs": str(tmp_path / "x.npy"), "outputs": str(tmp_path)}
    answer = local(folder / "device.py", spec, 60)
    assert answer["versions"] == {"loud": "7"}
    assert numpy.load(answer["outputs"][0][0]).tolist() == [[2.0] * 3] * 2
    with pytest.raises(CommandError, match="can't tell the time of its nodes"):
        local(folder / "device.py", {"mode": "profile", "models": [model], "threads": 1, "warmup": 1, "runs": 1}, 60)


def test_the_payload_does_not_hide_the_package_of_the_same_name(tmp_path):
    """However it is started: with its folder in front of the path, too."""
    artifact = convolution(tmp_path / "c.onnx")
    spec = {"mode": "bench", "models": [device.entry(artifact, "onnxruntime")], "threads": 1, "warmup": 1, "runs": 5}
    text = json.dumps({**spec, "min_s": 0, "max_runs": 5})
    for options in ([], ["-I"]):
        done = subprocess.run(
            [sys.executable, *options, str(SCRIPT)], input=text, capture_output=True, text=True, check=True
        )
        answer = json.loads(done.stdout)
        assert len(answer["samples_ms"][0]) == 5
        assert answer["versions"]["onnxruntime"][0].isdigit()


def test_runtimes_are_the_files():
    assert "onnxruntime" in RUNTIMES
    assert not {"device", "__init__"} & set(RUNTIMES)


def test_a_missing_runtime_is_named(tmp_path):
    code = "import runpy, sys; sys.modules['onnxruntime'] = None; runpy.run_path(sys.argv[1], run_name='__main__')"
    model = device.entry(convolution(tmp_path / "c.onnx"), "onnxruntime")
    spec = json.dumps({"mode": "bench", "models": [model], "threads": 1})
    done = subprocess.run(
        [sys.executable, "-c", code, str(SCRIPT)], input=spec, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "onnxruntime" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("text", ["nonsense", "[1]"])
def test_an_answer_that_is_not_an_object(monkeypatch, text, tmp_path):
    payload = tmp_path / "p.py"
    payload.write_text(f"print({text!r})")
    with pytest.raises(CommandError, match="not"):
        local(payload, {}, 30)


def test_in_rounds_every_model_is_timed_once_and_follows_every_other_alike():
    import runpy
    from collections import Counter

    payload = runpy.run_path(str(SCRIPT))
    seen = []
    calls = [lambda i=i: seen.append(i) or len(seen) for i in range(3)]
    samples = payload["rounds"](calls, 600)
    assert sorted(sum(samples, [])) == list(range(2, 3602, 2)), "the second time counts"
    untimed, timed = seen[::2], seen[1::2]
    assert untimed == timed
    assert all(sorted(timed[at : at + 3]) == [0, 1, 2] for at in range(0, len(timed), 3))
    follows = Counter(zip(timed[:-1], timed[1:], strict=True))
    apart, itself = ([n for (a, b), n in follows.items() if (a == b) is same] for same in (False, True))
    assert len(apart) == 6
    assert max(apart) < 1.3 * min(apart)
    assert len(itself) == 3
    assert max(itself) < 1.6 * min(itself)


def test_profile_events_are_averaged(tmp_path):
    import runpy

    payload = runpy.run_path(str(PAYLOAD / "onnxruntime.py"))
    events = [{"cat": "Session", "name": "model_run", "dur": 9}]
    events += [{"cat": "Node", "name": "a_kernel_time", "dur": d} for d in (900, 10, 20)]
    path = tmp_path / "p.json"
    path.write_text(json.dumps(events))
    assert payload["trimmed_mean"]([1, 1, 1, 1, 1, 1, 1, 1, 1, 100]) == 1
    assert payload["nodes"](path, 1) == {"a": pytest.approx(0.010)}
