"""LiteRT files: parity in LiteRT's interpreter, float and int8, and what is refused."""

import importlib.util
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor, nn

import deploy_prune
from deploy_prune.errors import ExportError, MissingDependencyError
from deploy_prune.export import artifact as artifact_module
from deploy_prune.export import litert
from deploy_prune.recipe import ExportPart

PAYLOAD = Path(deploy_prune.__file__).parent / "device" / "payload" / "litert.py"
EXAMPLE = torch.zeros(1, 3, 16, 12)
NOISE_DB = {"fp32": 100.0, "fp16": 55.0, "int8": 20.0}
"""Signal to noise, at least: fp32's is that of single sums, fp16's of 11-bit weights, int8's of 8-bit activations."""


class Net(nn.Module):
    """Strided shortcut, depthwise, hard swish, a norm over channels, dropout, and three outputs in a nested dict."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depth = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.mix, self.layer_norm = nn.Conv2d(8, 16, 1), nn.LayerNorm(16)
        self.drop, self.head, self.other = nn.Dropout(0.5), nn.Linear(16, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> dict[str, object]:
        x = nn.functional.hardswish(self.norm(self.stem(x)))
        x = self.mix(self.depth(x) + x[:, :, ::2, ::2]).relu()
        y = self.head(self.drop(self.layer_norm(x.mean((2, 3)))))
        return {"scores": y, "more": [self.other(y), x]}


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    made = Net()
    made.norm.running_mean.normal_(0, 0.2)
    made.norm.running_var.uniform_(0.5, 2)
    nn.init.uniform_(made.head.bias, 0.5, 1.0)
    return made.eval()


def images(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 16, 12, generator=torch.Generator().manual_seed(seed))


def calibration() -> Tensor:
    return images(32, seed=2)


def reference(net: nn.Module, x: Tensor) -> list[numpy.ndarray]:
    with torch.no_grad():
        found = net(x)
    return [y.numpy() for y in (found["scores"], *found["more"])]


def noise_db(expected: numpy.ndarray, found: numpy.ndarray) -> float:
    error = ((expected.astype(float) - found) ** 2).sum()
    return 10 * float(numpy.log10((expected.astype(float) ** 2).sum() / max(error, 1e-30)))


@pytest.fixture(scope="module")
def runtime():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("litert_torch")
        pytest.importorskip("ai_edge_quantizer")
        spec = importlib.util.spec_from_file_location("runtime_litert", PAYLOAD)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def written(runtime, tmp_path_factory):
    folder = tmp_path_factory.mktemp("litert")
    return {
        precision: litert.write(
            network(), EXAMPLE, folder / f"{precision}.tflite", precision, ExportPart(), calibration()
        )
        for precision in litert.precisions
    }


def run(runtime, artifact, x: Tensor) -> list[numpy.ndarray]:
    model = runtime.Model(str(artifact.path), 1, artifact.layout)
    parts = []
    for one in x:
        model.feed(one[None].numpy())
        parts.append([y.copy() for y in model.run()])
    return [numpy.concatenate(column) for column in zip(*parts, strict=True)]


@pytest.mark.litert
@pytest.mark.parametrize("precision", litert.precisions)
def test_outputs_are_the_networks(runtime, written, precision):
    x = images(16)
    expected, found = reference(network(), x), run(runtime, written[precision], x)
    assert [y.shape for y in found] == [y.shape for y in expected]
    assert {y.dtype for y in found} == {numpy.dtype("float32")}
    for a, b in zip(expected, found, strict=True):
        assert noise_db(a, b) > NOISE_DB[precision]
        if precision == "fp32":
            assert abs(a - b).max() <= 1e-4 * abs(a).max()


@pytest.mark.litert
@pytest.mark.parametrize("precision", litert.precisions)
def test_planted_faults_stand_out(runtime, written, precision):
    x = images(16)
    found = run(runtime, written[precision], x)[0]
    noise = abs(reference(network(), x)[0] - found).max()
    swapped, dropped = network(), network()
    swapped.head.weight.data[[0, 1]] = swapped.head.weight.data[[1, 0]]
    dropped.head.bias.data[0] = 0
    for faulty in (swapped, dropped):
        assert abs(reference(faulty, x)[0] - found).max() > 4 * noise
    turned = run(runtime, written[precision], x.flip(2, 3))[0]
    assert abs(reference(network(), x)[0] - turned).max() > 4 * noise


@pytest.mark.litert
def test_artifact_is_described_and_shrinks(written):
    for precision, one in written.items():
        assert (one.format, one.precision, one.layout) == ("litert", precision, "NHWC")
        assert one.input_shape == (1, 3, 16, 12)
        assert {"torch", "litert-torch", "ai-edge-litert", "ai-edge-quantizer"} == set(one.versions)
    assert written["fp32"].sha256 != written["fp16"].sha256 != written["int8"].sha256


@pytest.mark.litert
@pytest.mark.parametrize("precision", litert.precisions)
def test_same_bytes_and_no_paths(written, tmp_path, precision):
    again = litert.write(network(), EXAMPLE, tmp_path / "b.tflite", precision, ExportPart(), calibration())
    assert again.sha256 == written[precision].sha256
    data = again.path.read_bytes()
    for secret in (str(Path.home()), str(Path(__file__).parents[2]), "site-packages", str(tmp_path)):
        assert secret.encode() not in data


@pytest.mark.litert
def test_exported_module_and_channels_last_and_train_mode(runtime, written, tmp_path):
    x = images(4)
    module = torch.export.export(network(), (EXAMPLE,)).module()
    modern = EXAMPLE.to(memory_format=torch.channels_last)
    artifact = litert.write(module, modern, tmp_path / "g.tflite", "fp32", ExportPart())
    for a, b in zip(run(runtime, written["fp32"], x), run(runtime, artifact, x), strict=True):
        numpy.testing.assert_allclose(a, b, atol=1e-5)
    net = network().train()
    net.norm.eval()
    artifact = litert.write(net, EXAMPLE, tmp_path / "t.tflite", "fp32", ExportPart())
    assert net.training
    assert net.drop.training
    assert not net.norm.training
    numpy.testing.assert_allclose(run(runtime, artifact, x)[0], reference(network(), x)[0], atol=1e-5)


@pytest.mark.litert
def test_batch_of_the_example(runtime, tmp_path):
    artifact = litert.write(network(), EXAMPLE.expand(2, -1, -1, -1), tmp_path / "b.tflite", "fp32", ExportPart())
    model = runtime.Model(str(artifact.path), 2, artifact.layout)
    model.feed(images(2).numpy())
    numpy.testing.assert_allclose(model.run()[0], reference(network(), images(2))[0], atol=1e-5)
    with pytest.raises(ValueError, match="takes inputs"):
        model.feed(images(1).numpy())


@pytest.mark.litert
def test_int8_runs_in_one_piece(runtime, written):
    """Hard swish and the norm have no int8 kernel: kept in float, they don't break XNNPACK's part in pieces."""
    model = runtime.Model(str(written["int8"].path), 1, "NHWC")
    names = [entry["op_name"] for entry in model._interpreter._get_ops_details()]
    assert "QUANTIZE" in names
    assert names.count("DELEGATE") <= names.count("STRIDED_SLICE") + 1


@pytest.mark.litert
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_truncated_file_is_refused(written, tmp_path, kept):
    """In a process of its own: what a runtime does with such a file is not known."""
    data = written["fp32"].path.read_bytes()
    path = tmp_path / "cut.tflite"
    path.write_bytes(data[: int(len(data) * kept)])
    spec = {"mode": "run", "threads": 1, "inputs": str(tmp_path / "x.npy"), "outputs": str(tmp_path)}
    numpy.save(tmp_path / "x.npy", numpy.zeros(tuple(EXAMPLE.shape), "float32"))
    model = {"runtime": "litert", "path": str(path), "layout": "NHWC", "input_shape": list(EXAMPLE.shape)}
    args = [sys.executable, "-I", str(PAYLOAD.parent / "device.py")]
    told = json.dumps({**spec, "models": [model]}).encode()
    assert subprocess.run(args, input=told, capture_output=True, timeout=120, check=False).returncode != 0


@pytest.mark.litert
def test_a_network_that_cannot_be_converted(runtime, tmp_path):
    class Bad(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if float(x.sum()) > 0 else x

    with pytest.raises(ExportError, match="litert-torch can't convert") as caught:
        litert.write(Bad(), EXAMPLE, tmp_path / "bad.tflite", "fp32", ExportPart())
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_refusals(tmp_path, monkeypatch):
    path = tmp_path / "no.tflite"
    monkeypatch.setattr(artifact_module, "find_spec", lambda name: object())
    with pytest.raises(ExportError, match="bf16"):
        litert.write(network(), EXAMPLE, path, "bf16", ExportPart())
    with pytest.raises(ExportError, match="dynamic_batch"):
        litert.write(network(), EXAMPLE, path, "fp32", ExportPart(dynamic_batch=True))
    with pytest.raises(ExportError, match=r"calibration inputs.*none were given"):
        litert.write(network(), EXAMPLE, path, "int8", ExportPart())
    with pytest.raises(ExportError, match=r"at least 4 .*2 were given"):
        litert.write(network(), EXAMPLE.expand(4, -1, -1, -1), path, "int8", ExportPart(), images(2))
    monkeypatch.setattr(artifact_module, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'deploy-prune\[litert\]'"):
        litert.write(network(), EXAMPLE, path, "fp32", ExportPart())
    assert list(tmp_path.iterdir()) == []


def test_a_norm_stays_in_float_as_a_whole():
    names = ["CONV_2D", "MEAN", "SUB", "SQUARED_DIFFERENCE", "MEAN", "ADD", "RSQRT", "MUL", "MUL", "ADD",
             "FULLY_CONNECTED"]  # fmt: skip
    reads = [[], [0], [0, 1], [0, 1], [3], [4], [5], [2, 6], [7], [8], [9]]
    assert litert.in_float(names, reads) == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_what_only_touches_float_stays_int8():
    gated = ["CONV_2D", "HARD_SWISH", "MEAN", "CONV_2D", "LOGISTIC", "MUL", "CONV_2D"]
    assert litert.in_float(gated, [[], [0], [1], [2], [3], [1, 4], [5]]) == [1, 2]
    residual = ["CONV_2D", "CONV_2D", "ADD", "SOFTMAX", "ADD", "CONV_2D"]
    assert litert.in_float(residual, [[], [0], [0, 1], [0], [2, 3], [4]]) == [3]
    assert litert.in_float(["CONV_2D", "ADD", "MEAN", "FULLY_CONNECTED"], [[], [0], [1], [2]]) == []


def test_a_sum_that_float_reads_stays_in_float():
    names = ["CONV_2D", "FULLY_CONNECTED", "ADD", "SOFTMAX", "FULLY_CONNECTED"]
    assert litert.in_float(names, [[], [0], [0, 1], [2], [2, 3]]) == [2, 3]
