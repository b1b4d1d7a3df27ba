"""TensorRT: the folder, and its engine: with stand-ins for three versions, and on a GPU where there is one."""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import fake_tensorrt
import numpy
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import Tensor, nn

import deploy_prune
from deploy_prune.errors import ExportError
from deploy_prune.export import _tensorrt_build, tensorrt
from deploy_prune.export import onnx as onnx_format
from deploy_prune.export._tensorrt_qdq import make_symmetric
from deploy_prune.export.artifact import flatten
from deploy_prune.recipe.parts import ExportPart

PAYLOAD = Path(deploy_prune.__file__).parent / "device" / "payload"
EXAMPLE = torch.zeros(2, 3, 16, 16)
RUN = f"""
import importlib.util, sys, numpy
spec = importlib.util.spec_from_file_location("runtime_tensorrt", {str(PAYLOAD / "tensorrt.py")!r})
runtime = importlib.util.module_from_spec(spec)
spec.loader.exec_module(runtime)
folder, layout, *inputs = sys.argv[1:]
model = runtime.Model(folder, 1, layout)
for path in inputs:
    model.feed(numpy.load(path))
    model.run()
    numpy.savez(path + ".out", *model.run())
print(runtime.versions())
"""
MODULE = """
import os, sys, fake_tensorrt
made = fake_tensorrt.make(os.environ["FAKE_TENSORRT"], fake_tensorrt.write_calls_to(os.environ["FAKE_TENSORRT_CALLS"]))
sys.modules[__name__] = made
"""


class Net(nn.Module):
    """Convolutions with biases, and two outputs of which the later computed comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.body(self.stem(x).relu()).relu()
        x = x.mean((2, 3))
        return {"scores": self.head(x), "features": x}


def network() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


class Reader(CalibrationDataReader):
    def __init__(self, name: str, x: Tensor) -> None:
        self._left = iter([{name: batch.numpy()} for batch in x.split(2)])

    def get_next(self):
        return next(self._left, None)


def quantise(source: Path, target: Path, x: Tensor, activations: QuantType = QuantType.QUInt8) -> None:
    """As ONNX Runtime does unless told otherwise: zero points, stored int8 weights, int32 biases."""
    name = onnx.load(source).graph.input[0].name
    options = {"quant_format": QuantFormat.QDQ, "activation_type": activations, "per_channel": True}
    quantize_static(source, target, Reader(name, x), weight_type=QuantType.QInt8, **options)


REAL_MADE = onnx_format.made


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    return tmp_path_factory.mktemp("written")


@pytest.fixture(autouse=True)
def _each_network_is_exported_once(written, monkeypatch):
    """The ONNX format's ``made`` takes seconds, and the tests are about what follows."""

    def made(network, example, precision, part, calibration=None, *, symmetric=False):
        weights = b"".join(t.numpy().tobytes() for t in network.state_dict().values())
        data = None if calibration is None else calibration.numpy().tobytes()
        key = (type(network).__name__, tuple(example.shape), precision, symmetric, part.dynamic_batch, weights, data)
        kept = written / hashlib.sha256(repr(key).encode()).hexdigest()
        if not kept.exists():
            onnx.save(REAL_MADE(network, example, precision, part, calibration, symmetric=symmetric), kept)
        return onnx.load(kept)

    monkeypatch.setattr(onnx_format, "made", made)


@pytest.fixture
def each_precision(monkeypatch, tmp_path):
    """ONNX models of each precision, independent of how the project's own ONNX format makes fp16 and int8."""
    real = onnx_format.made
    seen = []

    def made(network, example, precision, part, calibration=None, *, symmetric=False):
        model = real(network, example, "fp32", part)
        seen.append((precision, calibration, symmetric))
        if precision == "fp16":
            return convert_float_to_float16(model, keep_io_types=True)
        if precision == "int8":
            onnx.save(model, tmp_path / "own.onnx")
            quantise(tmp_path / "own.onnx", tmp_path / "own.onnx", calibration)
            return onnx.load(tmp_path / "own.onnx")
        return model

    monkeypatch.setattr(onnx_format, "made", made)
    return seen


@pytest.fixture(scope="session")
def libcuda(tmp_path_factory):
    folder = tmp_path_factory.mktemp("libcuda")
    source = folder / "cuda.c"
    source.write_text(fake_tensorrt.LIBCUDA)
    args = ["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(folder / "libcuda.so.1"), str(source)]
    subprocess.run(args, check=True)
    return folder


class Machine:
    """This machine, with a stand-in for a GPU and TensorRT that every process started from here sees."""

    def __init__(self, folder: Path, libcuda: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls_file = folder / "calls.jsonl"
        self._monkeypatch = monkeypatch
        package = folder / "packages" / "tensorrt"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(MODULE)
        monkeypatch.syspath_prepend(package.parent)
        support = Path(fake_tensorrt.__file__).parent
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (package.parent, support))))
        monkeypatch.setenv("LD_LIBRARY_PATH", str(libcuda))
        monkeypatch.setenv("FAKE_TENSORRT_CALLS", str(self.calls_file))
        monkeypatch.setenv("DEPLOY_PRUNE_CACHE", str(folder / "cache"))
        self.has("10.3.0")

    def has(self, version: str) -> None:
        self._monkeypatch.setenv("FAKE_TENSORRT", version)

    def calls(self) -> list[list]:
        """All calls since this was last asked."""
        lines = self.calls_file.read_text().splitlines()
        self.calls_file.unlink()
        return [json.loads(line) for line in lines]


@pytest.fixture
def machine(tmp_path, libcuda, monkeypatch):
    return Machine(tmp_path, libcuda, monkeypatch)


@pytest.fixture
def nothing_here(monkeypatch):
    """No tensorrt package, whatever is installed."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def start(folder: Path, inputs: list[Path], layout: str = "NCHW") -> subprocess.CompletedProcess[str]:
    args = [sys.executable, "-c", RUN, str(folder), layout, *map(str, inputs)]
    return subprocess.run(args, capture_output=True, text=True, check=False, timeout=300)


def outputs_of(folder: Path, *batches: Tensor) -> list[list[Tensor]]:
    """The engine's outputs for each batch, by the payload in a process of its own."""
    paths = []
    for number, batch in enumerate(batches):
        paths.append(folder.parent / f"{number}.npy")
        numpy.save(paths[-1], batch.numpy())
    done = start(folder, paths)
    assert done.returncode == 0, done.stderr
    loaded = [numpy.load(f"{path}.out.npz") for path in paths]
    return [[torch.from_numpy(one[key]) for key in one.files] for one in loaded]


def far(network: nn.Module, x: Tensor, found: list[Tensor]) -> float:
    """The largest difference, relative to each output's largest magnitude."""
    with torch.no_grad():
        expected = flatten(network(x))
    assert [y.shape for y in found] == [y.shape for y in expected]
    assert all(y.dtype == torch.float32 for y in found)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(expected, found, strict=True))


def test_the_folder_without_tensorrt(nothing_here, tmp_path):
    artifact = tensorrt.write(network(), EXAMPLE, tmp_path / "m.tensorrt", "fp32", ExportPart())
    assert sorted(entry.name for entry in artifact.path.iterdir()) == ["build_engine.py", "model.json", "model.onnx"]
    assert artifact.versions["engine"] == "to be built on device"
    assert (artifact.format, artifact.precision, artifact.input_shape) == ("tensorrt", "fp32", (2, 3, 16, 16))
    assert (artifact.path / "build_engine.py").read_bytes() == (PAYLOAD / "build_engine.py").read_bytes()
    model = onnx.load(artifact.path / "model.onnx")
    assert json.loads((artifact.path / "model.json").read_text()) == {
        "precision": "fp32",
        "input": model.graph.input[0].name,
        "shape": [2, 3, 16, 16],
        "max_batch": None,
        "outputs": [entry.name for entry in model.graph.output],
    }
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.tensorrt"]


def test_the_same_weights_give_the_same_folder(nothing_here, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_format, "made", REAL_MADE)
    one, two = (tensorrt.write(network(), EXAMPLE, tmp_path / n, "fp32", ExportPart()).sha256 for n in "ab")
    other = network()
    other.head.bias.data[0] += 1
    assert one == two
    assert tensorrt.write(other, EXAMPLE, tmp_path / "a", "fp32", ExportPart()).sha256 != one


def test_no_driver(machine, monkeypatch, tmp_path):
    """The package is there, libcuda is not: TensorRT must not even be imported, since it would crash."""
    monkeypatch.delenv("LD_LIBRARY_PATH")
    if _tensorrt_build.gpu_name() is not None:
        pytest.skip("this machine has a GPU")
    artifact = tensorrt.write(network(), EXAMPLE, tmp_path / "m", "fp32", ExportPart())
    assert artifact.versions["engine"] == tensorrt.TO_BE_BUILT
    assert not machine.calls_file.exists()


def test_a_driver_without_a_gpu(machine, monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_CUDA_ERROR", "100")
    artifact = tensorrt.write(network(), EXAMPLE, tmp_path / "m", "fp32", ExportPart())
    assert artifact.versions["engine"] == tensorrt.TO_BE_BUILT
    assert not machine.calls_file.exists()
    assert not (artifact.path / "engine.plan").exists()


BEFORE = [["Builder"], ["create_network", None], ["OnnxParser"], ["parse_from_file", "model.onnx"]]
LIMIT = [["create_builder_config"], ["set_memory_pool_limit", "WORKSPACE", 2**30]]
INSIDE = ["set_tactic_sources", ["EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"]]
AFTER = [["set_timing_cache", 0, True], ["build_serialized_network"]]


@pytest.mark.parametrize(
    ("version", "network_flags", "precision", "flags"),
    [
        ("8.6.1", ["EXPLICIT_BATCH"], "fp32", [["clear_flag", "TF32"], INSIDE]),
        ("8.6.1", ["EXPLICIT_BATCH"], "fp16", [["set_flag", "FP16"], INSIDE]),
        ("8.6.1", ["EXPLICIT_BATCH"], "int8", [["set_flag", "INT8"], ["set_flag", "FP16"], INSIDE]),
        ("10.3.0", [], "fp32", [["clear_flag", "TF32"], INSIDE]),
        ("10.3.0", [], "fp16", [["set_flag", "FP16"], INSIDE]),
        ("10.3.0", [], "int8", [["set_flag", "INT8"], ["set_flag", "FP16"], INSIDE]),
        ("11.4.0.106", ["STRONGLY_TYPED"], "fp32", [["clear_flag", "TF32"]]),
        ("11.4.0.106", ["STRONGLY_TYPED"], "fp16", []),
        ("11.4.0.106", ["STRONGLY_TYPED"], "int8", []),
    ],
)
def test_calls_per_version(machine, each_precision, tmp_path, version, network_flags, precision, flags):
    machine.has(version)
    net = network()
    artifact = tensorrt.write(net, EXAMPLE, tmp_path / "m", precision, ExportPart(), calibration=images(8))
    before = [BEFORE[0], ["create_network", network_flags], *BEFORE[2:]]
    assert machine.calls() == [*before, *LIMIT, *flags, *AFTER]
    assert artifact.versions["engine"] == f"TensorRT {version} on Fake GPU"
    (found,) = outputs_of(artifact.path, images())
    assert far(net, images(), found) < {"fp32": 1e-5, "fp16": 1e-2, "int8": 0.1}[precision]
    names = json.loads((artifact.path / "model.json").read_text())["outputs"]
    assert [call for call in machine.calls() if call[0] != "Runtime"][-3:] == [
        ["set_tensor_address", names[-1]],
        ["execute_async_v3"],
        ["execute_async_v3"],
    ]


@pytest.mark.parametrize("version", fake_tensorrt.VERSIONS)
def test_an_open_batch(machine, tmp_path, version):
    machine.has(version)
    net, name = network(), "x"
    artifact = tensorrt.write(net, EXAMPLE, tmp_path / "m", "fp32", ExportPart(dynamic_batch=True))
    calls = machine.calls()
    assert ["set_shape", name, [1, 3, 16, 16], [2, 3, 16, 16], [16, 3, 16, 16]] in calls
    assert calls.index(["add_optimization_profile"]) < calls.index(["build_serialized_network"])
    batches = [images(3), images(3) + 1, images(1), images(16)]
    for batch, found in zip(batches, outputs_of(artifact.path, *batches), strict=True):
        assert far(net, batch, found) < 1e-5
    numpy.save(tmp_path / "17.npy", images(17).numpy())
    done = start(artifact.path, [tmp_path / "17.npy"])
    assert "takes no inputs of shape (17, 3, 16, 16)" in done.stderr


def test_nhwc_inputs_are_turned(machine, tmp_path):
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return self.inner(x.permute(0, 3, 1, 2))

    artifact = tensorrt.write(Turned(), EXAMPLE.permute(0, 2, 3, 1), tmp_path / "m", "fp32", ExportPart())
    numpy.save(tmp_path / "x.npy", images().numpy())
    assert start(artifact.path, [tmp_path / "x.npy"], "NHWC").returncode == 0
    found = numpy.load(tmp_path / "x.npy.out.npz")
    assert far(network(), images(), [torch.from_numpy(found[key]) for key in found.files]) < 1e-5


def test_timings_are_kept_per_version(machine, tmp_path):
    def build(version: str) -> list[list]:
        machine.has(version)
        tensorrt.write(network(), EXAMPLE, tmp_path / "m", "fp32", ExportPart())
        return [call for call in machine.calls() if call[0] == "set_timing_cache"]

    assert build("8.6.1") == build("10.3.0") == [["set_timing_cache", 0, True]]
    assert build("10.3.0") == [["set_timing_cache", len("10.3.0 timings"), True]]
    (kept,) = (tmp_path / "cache" / "tensorrt").glob("10.3.0-Fake-GPU.timing")
    kept.write_bytes(b"damaged")
    assert build("10.3.0") == [["set_timing_cache", 7, False], ["set_timing_cache", 0, True]]


@pytest.mark.parametrize("version", fake_tensorrt.VERSIONS)
def test_what_tensorrt_says_is_in_the_error(machine, each_precision, monkeypatch, tmp_path, version):
    machine.has(version)
    monkeypatch.setattr(tensorrt, "make_symmetric", lambda model: None)
    with pytest.raises(ExportError) as caught:
        tensorrt.write(network(), EXAMPLE, tmp_path / "m", "int8", ExportPart(), calibration=images(8))
    assert f"TensorRT {version} can't read the ONNX file" in str(caught.value)
    assert "only symmetric quantization is supported" in str(caught.value)
    assert not (tmp_path / "m").exists()


def test_a_build_that_fails(machine, each_precision, tmp_path):
    trt = fake_tensorrt.make("10.3.0", lambda *call: None)
    tensorrt.write(network(), EXAMPLE, tmp_path / "m", "fp16", ExportPart())
    spec = {"onnx": str(tmp_path / "m" / "model.onnx"), "engine": str(tmp_path / "e"), "precision": "fp32"}
    spec |= {"workspace_bytes": 1, "max_batch": None, "timing_caches": None}
    with pytest.raises(_tensorrt_build.BuildError, match=r"can't build the engine: .* FP16 is not allowed") as caught:
        _tensorrt_build.build(trt, spec, "GPU")
    assert "only a warning" not in str(caught.value)
    assert not (tmp_path / "e").exists()


def test_a_build_without_an_end(machine, tmp_path, monkeypatch):
    script = tmp_path / "slow.py"
    script.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(tensorrt, "_ENGINE_SCRIPT", script)
    with pytest.raises(ExportError, match="stopped after 1 s"):
        tensorrt.write(network(), EXAMPLE, tmp_path / "m", "fp32", ExportPart(timeout_s=1))
    assert not (tmp_path / "m").exists()


def test_precision_and_calibration_reach_the_onnx_format(nothing_here, each_precision, tmp_path):
    x = images(8)
    tensorrt.write(network(), EXAMPLE, tmp_path / "m", "int8", ExportPart(), calibration=x)
    assert each_precision == [("int8", x, True)]


@pytest.mark.parametrize("precision", onnx_format.precisions)
@pytest.mark.parametrize("version", fake_tensorrt.VERSIONS)
def test_what_the_onnx_format_writes_is_built(machine, tmp_path, version, precision):
    """The project's own ONNX files of each precision that its format has."""
    machine.has(version)
    net = network()
    artifact = tensorrt.write(net, EXAMPLE, tmp_path / "m", precision, ExportPart(), calibration=images(8))
    (found,) = outputs_of(artifact.path, images())
    assert far(net, images(), found) < {"fp32": 1e-5, "fp16": 1e-2, "int8": 0.1}[precision]


def test_unknown_precision(tmp_path):
    with pytest.raises(ExportError, match="bf16"):
        tensorrt.write(network(), EXAMPLE, tmp_path / "m", "bf16", ExportPart())
    assert list(tmp_path.iterdir()) == []


def test_running_without_an_engine(nothing_here, tmp_path):
    artifact = tensorrt.write(network(), EXAMPLE, tmp_path / "m", "fp32", ExportPart())
    done = start(artifact.path, [])
    assert done.returncode == 1
    assert "has no engine.plan" in done.stderr
    assert "python3 build_engine.py" in done.stderr


def test_running_without_a_gpu(machine, monkeypatch, tmp_path):
    artifact = tensorrt.write(network(), EXAMPLE, tmp_path / "m", "fp32", ExportPart())
    monkeypatch.setenv("FAKE_CUDA_ERROR", "100")
    assert "cuInit failed with CUDA error 100" in start(artifact.path, []).stderr


def test_an_engine_of_another_version_or_network(machine, tmp_path):
    artifact = tensorrt.write(network(), EXAMPLE, tmp_path / "m", "fp32", ExportPart())
    machine.has("8.6.1")
    errors = start(artifact.path, []).stderr
    assert "TensorRT 8.6.1 on Fake GPU can't load" in errors
    assert "version tag mismatch: 10.3.0 engine" in errors
    machine.has("10.3.0")
    about = artifact.path / "model.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "outputs": ["others"]}))
    assert "build the engine again" in start(artifact.path, []).stderr


def run_onnx(model: onnx.ModelProto, x: Tensor) -> list[numpy.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The network in fp32, and quantised by ONNX Runtime in two ways."""
    folder = tmp_path_factory.mktemp("quantised")
    path = folder / "fp32.onnx"
    onnx_format.write(network(), EXAMPLE, path, "fp32", ExportPart())
    found = {"fp32": onnx.load(path)}
    for kind in (QuantType.QUInt8, QuantType.QInt8):
        quantise(path, folder / f"{kind}.onnx", images(8), kind)
        found[str(kind)] = onnx.load(folder / f"{kind}.onnx")
    return found


@pytest.mark.parametrize("kind", ["QUInt8", "QInt8"])
def test_quantised_files_become_what_tensorrt_reads(files, kind):
    before = files[kind]
    assert len(set(fake_tensorrt.refusals(before, older=True))) >= 2, "nothing to do would prove nothing"
    after = onnx.ModelProto.FromString(before.SerializeToString())
    make_symmetric(after)
    assert list(fake_tensorrt.refusals(after, older=True)) == []
    expected = run_onnx(files["fp32"], images())
    for wanted, old, new in zip(expected, run_onnx(before, images()), run_onnx(after, images()), strict=True):
        scale = abs(wanted).max()
        assert abs(old - wanted).max() / scale < 0.05
        assert abs(new - wanted).max() / scale < 0.05
    again = onnx.ModelProto.FromString(after.SerializeToString())
    make_symmetric(again)
    assert all((a == b).all() for a, b in zip(run_onnx(after, images()), run_onnx(again, images()), strict=True))


def small(
    weight: numpy.ndarray, zero: numpy.ndarray | None, axis: int, op: str = "DequantizeLinear"
) -> onnx.ModelProto:
    """x * dequantised weight, with the weight [2, 3] stored quantised, scales 0.5 and 0.25 along axis 0."""
    names = ["w", "s"] + (["z"] if zero is not None else [])
    nodes = [helper.make_node("DequantizeLinear", names, ["r"], axis=axis), helper.make_node("Mul", ["x", "r"], ["y"])]
    values = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(numpy.float32([0.5, 0.25]), "s")]
    values += [numpy_helper.from_array(zero, "z")] if zero is not None else []
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize(
    ("weight", "zero"),
    [
        (numpy.int8([[1, -2, 127], [4, -128, 0]]), numpy.int8([0, 0])),
        (numpy.int8([[1, -2, 127], [4, -128, 0]]), None),
        (numpy.uint8([[0, 128, 255], [128, 128, 128]]), numpy.uint8([128, 128])),
        (numpy.int32([[1000, -2000, 3], [4, 5, 6]]), None),
    ],
)
def test_stored_weights_keep_their_values(weight, zero):
    model = small(weight, zero, axis=0)
    real = (weight.astype("float64") - (0 if zero is None else zero.astype("float64")[:, None])) * [[0.5], [0.25]]
    make_symmetric(model)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds == (["Mul"] if weight.dtype == numpy.int32 else ["QuantizeLinear", "DequantizeLinear", "Mul"])
    ones = torch.ones(2, 3)
    (found,) = run_onnx(model, ones)
    exact = weight.dtype != numpy.uint8
    numpy.testing.assert_allclose(found, real, rtol=0, atol=1e-6 if exact else abs(real).max() / 127 / 2 + 1e-6)
    assert {entry.name for entry in model.graph.initializer} <= {name for n in model.graph.node for name in n.input}


def test_quantisation_that_tensorrt_cannot_read():
    other = small(numpy.int16([[1, 2, 3], [4, 5, 6]]), None, axis=0)
    with pytest.raises(ExportError, match="int16"):
        make_symmetric(other)
    foreign = small(numpy.int8([[1, 2, 3], [4, 5, 6]]), None, axis=0)
    foreign.graph.node[0].domain = "com.microsoft"
    with pytest.raises(ExportError, match="com.microsoft"):
        make_symmetric(foreign)
    computed = small(numpy.int8([[1, 2, 3], [4, 5, 6]]), None, axis=0)
    computed.graph.node[0].input[1] = "x"
    with pytest.raises(ExportError, match="constants; x is computed"):
        make_symmetric(computed)


@pytest.fixture
def real_gpu():
    pytest.importorskip("tensorrt", reason="the tensorrt package is not installed")
    if _tensorrt_build.gpu_name() is None:
        pytest.skip("there is no NVIDIA GPU here")


@pytest.mark.gpu
@pytest.mark.tensorrt
@pytest.mark.parametrize("precision", onnx_format.precisions)
@pytest.mark.parametrize("part", [ExportPart(), ExportPart(dynamic_batch=True)], ids=["fixed", "open"])
def test_a_real_engine(real_gpu, tmp_path, precision, part):
    net = network()
    artifact = tensorrt.write(net, EXAMPLE, tmp_path / "m", precision, part, calibration=images(8))
    assert artifact.versions["engine"].startswith("TensorRT ")
    for batch, found in zip([images(), images() + 1], outputs_of(artifact.path, images(), images() + 1), strict=True):
        assert far(net, batch, found) < {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.1}[precision]


LOADED = """
import importlib.util, os, resource, subprocess, sys, time
spec = importlib.util.spec_from_file_location("build", sys.argv[1])
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)
"""


def test_the_builds_process_lifts_a_limit_on_addresses():
    code = "_, hard = resource.getrlimit(resource.RLIMIT_AS); resource.setrlimit(resource.RLIMIT_AS, (2**40, hard));"
    code += "build._lift_memory_limit(); print(resource.getrlimit(resource.RLIMIT_AS) == (hard, hard))"
    args = [sys.executable, "-c", LOADED + code, _tensorrt_build.__file__]
    assert subprocess.run(args, capture_output=True, text=True, check=True).stdout == "True\n"


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_the_builds_process_ends_with_the_one_that_started_it():
    child = LOADED + "build._die_with_the_parent(); print(os.getpid(), flush=True); time.sleep(120)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}, sys.argv[1]])"
    args = [sys.executable, "-c", parent, _tensorrt_build.__file__]
    with subprocess.Popen(args, stdout=subprocess.PIPE, text=True) as started:
        stat = Path(f"/proc/{int(started.stdout.readline())}/stat")
        assert stat.exists()
        started.kill()
    until = time.monotonic() + 20
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < until, "the build goes on without the export"
        time.sleep(0.05)
