"""Numbers below the smallest normal one are written, and run, as 0."""

import numpy
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from deploy_prune import device
from deploy_prune.export import isolated
from deploy_prune.export.artifact import describe, export_program
from deploy_prune.export.denormals import SMALLEST, flush_initializers, without_denormals
from deploy_prune.export.parity import check_parity
from deploy_prune.recipe.parts import ExportPart


def decayed() -> nn.Module:
    """Half of the first layer's channels have decayed; a batch norm makes one more too small."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    network[0].weight.data[4:] *= 1e-38
    network[0].weight.data[3] *= 1e-20
    network[1].weight.data[3] = 1e-20
    return network


def weights_of(path) -> numpy.ndarray:
    model = onnx.load(path)
    tensors = [numpy_helper.to_array(t) for t in model.graph.initializer]
    return numpy.concatenate([t.astype("float64").ravel() for t in tensors if t.dtype.kind == "f"])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_file_has_no_denormal_weights_and_the_network_keeps_its_own(precision, tmp_path):
    network, x = decayed(), torch.randn(8, 3, 8, 8)
    before = network[0].weight.detach().clone()
    artifact = isolated.write("onnx", network, x[:1], tmp_path / "a.onnx", precision, ExportPart())
    found = numpy.abs(weights_of(artifact.path))
    smallest = SMALLEST if precision == "fp32" else 2.0**-24
    assert found[found > 0].min() >= smallest
    assert (found == 0).sum() >= 5 * 27
    assert torch.equal(network[0].weight, before)
    check_parity(network, artifact, x)


def test_every_format_is_given_a_program_without_denormals():
    network, x = decayed(), torch.randn(2, 3, 8, 8)
    module = without_denormals(export_program(network, x, ExportPart())).module()
    sizes = torch.cat([p.detach().abs().flatten() for p in module.parameters()])
    assert not ((sizes > 0) & (sizes < SMALLEST)).any()
    torch.testing.assert_close(module(x), network(x), rtol=0, atol=1e-30)


def test_half_precisions_own_denormals_stay():
    """They lie between 2**-24 and 6.1e-5, and tell weights apart."""
    values = numpy.array([1e-40, 2.0**-25, 2.0**-24, 1e-6, 1.0], "float32")
    entry = numpy_helper.from_array(values, "w")
    model = helper.make_model(helper.make_graph([], "g", [], [], [entry]))
    kept = [numpy_helper.to_array(flush_initializers(model, p).graph.initializer[0]) for p in ("fp32", "fp16")]
    assert kept[0].tolist() == [0, *values[1:].tolist()]
    assert kept[1].tolist() == [0, 0, *values[2:].tolist()]


def test_onnx_runtime_takes_denormal_activations_for_0(tmp_path):
    x = torch.rand(2, 3) + 1
    nodes = [helper.make_node("Mul", ["x", "s"], ["y"]), helper.make_node("Mul", ["y", "s"], ["z"])]
    entries = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [2, 3]) for n in ("x", "z")]
    scale = numpy_helper.from_array(numpy.array(1e-20, "float32"), "s")
    graph = helper.make_graph(nodes, "g", entries[:1], entries[1:], [scale])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "a.onnx")
    artifact = describe(tmp_path / "a.onnx", format="onnx", precision="fp32", input_shape=(2, 3), versions={})
    assert float((x * 1e-20 * 1e-20).max()) > 0
    (found,) = device.run(artifact, x, "onnxruntime")
    assert not found.any()
    (large,) = device.run(artifact, x * 1e20, "onnxruntime")
    assert large.all()
