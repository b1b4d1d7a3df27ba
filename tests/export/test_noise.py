"""The yardsticks of int8 and fp16, and what they let through."""

import pytest
import torch
from torch import Tensor, nn

from deploy_prune.errors import ParityError
from deploy_prune.export import onnx
from deploy_prune.export.noise import eight_bits, half
from deploy_prune.export.parity import HALF_MARGIN, HALF_TOLERANCE, check_parity
from deploy_prune.recipe import ExportPart


def test_half_rounds_what_layers_read():
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)
    rounded = nn.functional.conv2d(x.half().float(), layer.weight.half().float(), layer.bias)
    with torch.no_grad(), half():
        assert torch.equal(layer(x), rounded)
    assert not torch.equal(layer(x), rounded)


def test_eight_bits_have_256_steps():
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad(), eight_bits():
        assert len(layer(torch.linspace(0, 1, 5000)[:, None]).unique()) == 256


class Network(nn.Module):
    """Its first layer reads inputs moved by ``offset``; its head's bias moves the outputs by half a percent."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.offset = offset
        self.stem, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 10)
        with torch.no_grad():
            for _ in range(50):
                self(torch.randn(32, 3, 16, 16))
            outputs = self.eval()(torch.randn(32, 3, 16, 16))
            self.head.bias[0] = 0.005 * outputs.abs().max()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(x + self.offset)).relu().mean((2, 3)))


def test_fp16_is_held_to_what_the_network_loses_in_half_precision(tmp_path):
    """One tolerance for all would let one network's dropped bias through and refuse another one's good file."""
    x = torch.randn(16, 3, 16, 16)
    calm, nervous = (
        check_parity(network, onnx.write(network, x, tmp_path / f"{network.offset}.onnx", "fp16", ExportPart()), x)
        for network in (Network(0), Network(15))
    )
    assert HALF_TOLERANCE <= calm.tolerance < 0.005 < nervous.tolerance
    assert calm.max_rel < 2 * calm.tolerance / HALF_MARGIN
    assert nervous.max_rel < 2 * nervous.tolerance / HALF_MARGIN
    network = Network(0)
    network.head.bias.data[0] = 0
    with pytest.raises(ParityError, match="differs"):
        check_parity(network, onnx.write(Network(0), x, tmp_path / "a.onnx", "fp16", ExportPart()), x)


def test_only_what_is_multiplied_is_rounded():
    """Attention's products and the sums around it, rounded to 8 bits, cost a vision transformer 30 dB."""
    import onnx
    from onnx import helper, numpy_helper

    from deploy_prune.export.quantize import int8

    weight = numpy_helper.from_array(torch.eye(4).numpy(), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], "by_weight"),
        helper.make_node("Transpose", ["y"], ["t"], "turned", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["y", "t"], ["z"], "product"),
        helper.make_node("Add", ["x", "z"], ["s"], "sum_multiplied"),
        helper.make_node("MatMul", ["s", "w"], ["u"], "after_the_sum"),
        helper.make_node("Add", ["u", "z"], ["out"], "sum"),
    ]
    entries = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 4, 4]) for n in ("x", "out")]
    graph = helper.make_graph(nodes, "g", entries[:1], entries[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    made = int8(model, torch.randn(8, 4, 4))
    assert {n.input[0] for n in made.graph.node if n.op_type == "QuantizeLinear"} == {"x", "y", "z", "s", "u"}


def test_a_network_that_8_bits_are_too_few_for_is_told_so(tmp_path):
    """Its outputs hardly differ from input to input."""
    x, network = torch.randn(32, 3, 16, 16), Network(300)
    artifact = onnx.write(network, x[:1], tmp_path / "a.onnx", "int8", ExportPart(), x)
    with pytest.raises(ParityError, match="8 bits are too few for this network as it is: train it first"):
        check_parity(network, artifact, x)
