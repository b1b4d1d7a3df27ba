"""The yardsticks of int8 and fp16, and what they let through."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from uneven_outputs import uneven, uneven_transposed

from deploy_prune.errors import ParityError
from deploy_prune.export import onnx, parity
from deploy_prune.export.noise import eight_bits, half, single
from deploy_prune.export.overflow import stored_in_half
from deploy_prune.export.parity import CEILING, HALF_CEILING, HALF_MARGIN, HALF_TOLERANCE, TOLERANCE, check_parity
from deploy_prune.recipe.parts import ExportPart
from deploy_prune.types import Artifact


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


@pytest.mark.parametrize("offset", [15, 60, 120, 250])
def test_what_half_precision_loses_never_allows_all(offset):
    """Rounded so far off, the network loses a quarter of its outputs: no file may."""
    x, network = torch.randn(16, 3, 16, 16), Network(offset)
    expected = parity._reference(network, x, 1)
    made = SimpleNamespace(precision="fp16", input_shape=(1, 3, 16, 16))
    assert HALF_TOLERANCE <= parity._tolerance(network, made, x, expected) <= HALF_CEILING


class Cancelling(nn.Module):
    """Its output is what is left of two large sums: float32 loses much of it."""

    def __init__(self, size: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.size = size
        self.first, self.head = nn.Conv2d(3, 32, 3, bias=False), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.head(((y + self.size) * 3 - 3 * self.size).mean((2, 3)))


def test_fp32_is_held_to_what_float32_loses_on_the_network(tmp_path):
    x = torch.randn(8, 3, 16, 16)
    made = SimpleNamespace(precision="fp32", input_shape=(1, 3, 16, 16))

    def allowed(size):
        network = Cancelling(size).eval()
        return parity._tolerance(network, made, x, parity._reference(network, x, 1))

    assert allowed(1) == TOLERANCE
    assert TOLERANCE < allowed(1000) < CEILING
    assert allowed(1e5) == CEILING

    network = Cancelling(1000).eval()
    output = parity._reference(network, x, 1)[0]
    artifact = onnx.write(network, x[:1], tmp_path / "a.onnx", "fp32", ExportPart())
    honest = check_parity(network, artifact, x)
    assert honest.max_rel <= honest.tolerance <= CEILING
    off = copy.deepcopy(network)
    off.head.bias.data[0] += 3 * CEILING * output.abs().max()
    with pytest.raises(ParityError, match="differs"):
        check_parity(off, artifact, x)


def test_a_network_that_float64_cant_run_has_a_yardstick_too():
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.head = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.float()) * 2

    network, x = Fixed(), torch.randn(8, 3)
    expected = parity._reference(network, x, 8)[0]
    moved = single(lambda net, given: parity._reference(net, given, 8), network, x)[0]
    assert moved.dtype == torch.float32
    assert 0 < float((moved - expected).abs().max() / expected.abs().max()) < 1e-6


class Large(nn.Module):
    """Values above 65504 somewhere; the outputs are small again."""

    def __init__(self, where: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.where = where
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        scale = 1e6 if where in ("weight", "folded") else 1.0
        self.first.weight.data *= scale
        if where == "folded":
            self.norm.running_var.fill_(scale**2)
        elif where == "layer":
            self.first.weight.data *= 6e4
            self.second.weight.data *= 1e3
        elif where == "bias":
            self.second.bias.data += 1e5
            self.second.weight.data *= 1e4
        elif where == "output":
            self.last.weight.data *= 5e4
            self.last.bias.data += 5e4

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x * 1e-6 if self.where == "input" else x)
        x = self.norm(x) if self.where == "folded" else x
        x = x * 1e6 * torch.sigmoid(x) if self.where == "code" else x
        x = self.second(x)
        x = x.pow(2).mean(1, keepdim=True).sqrt() * torch.ones(8, 1, 1) if self.where == "square" else x
        return self.last(x * {"weight": 1e-6, "layer": 1e-8, "code": 1e-6, "bias": 1e-5}.get(self.where, 1.0))


OVERFLOWS = {
    "weight": "the weight first.weight reaches -?[0-9.]+e",
    "layer": "the output of second reaches",
    "code": "'mul' after first reaches",
    "bias": r"the weight second.bias reaches 1e\+05",
    "input": r"the network's input reaches -?\d+e?",
    "output": "the output of last reaches",
    "square": "'pow' after second reaches",
}


@pytest.mark.parametrize("where", OVERFLOWS)
def test_an_overflow_in_half_precision_is_told_with_its_layer(where, tmp_path):
    x = torch.randn(4, 3, 16, 16) * {"input": 1e6, "square": 2e3}.get(where, 1)
    network = Large(where).eval()
    artifact = onnx.write(network, x[:1], tmp_path / "a.onnx", "fp16", ExportPart())
    with pytest.raises(ParityError, match=rf"Half precision \(fp16\) holds values up to 65504, and {OVERFLOWS[where]}"):
        check_parity(network, artifact, x)
    check_parity(network, onnx.write(network, x[:1], tmp_path / "b.onnx", "fp32", ExportPart()), x)


class Masked(nn.Module):
    """Attention with a mask of -1e9, which may as well be infinite."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.full((4, 4), -1e9).triu(1)
        return self.head(torch.softmax(self.layer(x) @ x.transpose(1, 2) + mask, -1) @ x)


def test_values_that_may_overflow_without_harm_are_no_overflow():
    x = torch.randn(4, 3, 16, 16)
    folded = Large("folded").eval()
    assert stored_in_half(folded, x, 2)[1] is None
    network, tokens = Masked(), torch.randn(8, 4, 8)
    outputs, overflow = stored_in_half(network, tokens, 2)
    assert overflow.magnitude == -1e9
    expected = parity._reference(network, tokens, 2)
    assert parity._relative(expected[0], outputs[0]) < HALF_TOLERANCE * 5
    made = SimpleNamespace(precision="fp16", input_shape=(2, 4, 8))
    assert parity._tolerance(network, made, tokens, expected) < HALF_CEILING


class Close(nn.Module):
    """Two outputs that differ by ``gap`` only, whatever the input: a near tie that 8 bits don't turn.

    A negative one makes the other output the larger.
    """

    def __init__(self, gap: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)
        with torch.no_grad():
            self.head.weight[1] = self.head.weight[0]
            self.head.bias.copy_(torch.tensor([max(-gap, 0.0), max(gap, 0.0)]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).relu().mean((2, 3)))


def test_an_int8_file_that_answers_otherwise_is_refused_however_little_noise_it_has(tmp_path):
    """Signal over noise hardly sees two small biases that decide every answer, two steps of an 8-bit output apart."""
    x = torch.randn(32, 3, 16, 16) * torch.linspace(0.2, 4, 32).view(-1, 1, 1, 1)
    with torch.no_grad():
        gap = 0.03 * float(Close(0.0)(x).std())
    artifact = onnx.write(Close(gap), x[:1], tmp_path / "a.onnx", "int8", ExportPart(), x)
    honest = check_parity(Close(gap), artifact, x)
    assert honest.agreement == 1.0
    assert honest.snr_db >= honest.least_db
    with pytest.raises(ParityError, match="differs: 0% of the largest outputs agree, 100% should"):
        check_parity(Close(-gap), artifact, x)


@pytest.mark.parametrize(("num", "turned", "refused"), [(8, 2, False), (8, 3, True), (100, 15, False), (100, 16, True)])
def test_so_many_answers_may_turn_in_int8(num, turned, refused, monkeypatch, tmp_path):
    """Two inputs, or 15% of them."""
    network, x = Close(0.01), torch.randn(num, 3, 16, 16) * torch.linspace(0.2, 4, num).view(-1, 1, 1, 1)
    network.head.weight.data *= 100
    with torch.no_grad():
        expected = network(x)
    found = torch.where(torch.arange(num)[:, None] < turned, expected.flip(1), expected)
    monkeypatch.setattr(parity.device, "run", lambda artifact, inputs, runtime: (found,))
    made = Artifact(path=tmp_path, format="onnx", precision="int8", sha256="", input_shape=(1, 3, 16, 16), versions={})
    if refused:
        with pytest.raises(ParityError, match="of the largest outputs agree, 100% should"):
            check_parity(network, made, x)
    else:
        assert check_parity(network, made, x).agreement == pytest.approx(1 - turned / num)


class ConstantFirst(nn.Module):
    """An output that never changes before one that does."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones(len(x), 3), x.mean((2, 3))


@pytest.mark.parametrize("wrong", [False, True])
def test_outputs_after_one_that_never_changes_are_compared_in_int8(wrong, monkeypatch, tmp_path):
    network, x = ConstantFirst(), torch.randn(32, 3, 16, 16)
    constant, moving = network(x)
    monkeypatch.setattr(
        parity.device, "run", lambda artifact, inputs, runtime: (constant, moving.flip(0) if wrong else moving)
    )
    made = Artifact(path=tmp_path, format="onnx", precision="int8", sha256="", input_shape=(1, 3, 16, 16), versions={})
    if wrong:
        with pytest.raises(ParityError, match="differs from the network: signal over noise"):
            check_parity(network, made, x)
    else:
        check_parity(network, made, x)


def test_a_network_that_ignores_its_input_proves_nothing(tmp_path):
    network, x = ConstantFirst(), torch.randn(4, 3, 16, 16)
    made = Artifact(path=tmp_path, format="onnx", precision="fp32", sha256="", input_shape=(1, 3, 16, 16), versions={})
    with pytest.raises(ParityError, match="outputs move by only 0 relative over 4 inputs, so comparing proves nothing"):
        check_parity(network, made, x[:1].expand(4, -1, -1, -1))


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_a_transposed_convolution_has_a_step_for_each_output(groups):
    """Its weight is [inputs, outputs / groups, ...]: output channels are on no axis of their own."""
    torch.manual_seed(0)
    layer, x = uneven_transposed(groups, kernel=3, stride=1, bias=False), torch.zeros(1, 8, 3, 3)
    x[:, :, 1, 1] = 1
    with torch.no_grad():
        exact = layer(x)
        with eight_bits():
            found = layer(x)
    off = (exact - found).abs().amax((0, 2, 3)) / exact.abs().amax((0, 2, 3))
    assert 0 < float(off.max()) < 0.03


@pytest.mark.parametrize("groups", [2, 8])
def test_transposed_convolutions_with_groups_are_written_in_int8(groups, tmp_path):
    network, x = uneven(groups)
    check_parity(network, onnx.write(network, x[:1], tmp_path / "a.onnx", "int8", ExportPart(), x), x)


def test_outputs_of_a_last_layer_are_not_rounded_to_8_bits(tmp_path):
    """Outputs that move little from input to input would be lost in the 256 steps of their whole range."""
    network, x = Network(0), torch.randn(32, 3, 16, 16)
    network.head.bias.data += 100
    artifact = onnx.write(network, x[:1], tmp_path / "a.onnx", "int8", ExportPart(), x)
    assert check_parity(network, artifact, x).snr_db > 20


def test_more_calibration_is_advised_only_where_it_can_help(monkeypatch, tmp_path):
    network, x = Network(0), torch.randn(32, 3, 16, 16)
    artifact = onnx.write(network, x[:1], tmp_path / "a.onnx", "int8", ExportPart(), x / 10)
    with pytest.raises(ParityError, match="More calibration examples may help"):
        check_parity(network, artifact, x)
    network.norm.bias.data += 1000  # the results before the pooling hardly move
    network.head.weight.data *= 100
    artifact = onnx.write(network, x[:1], tmp_path / "b.onnx", "int8", ExportPart(), x)
    with pytest.raises(ParityError, match="8 bits are too few for this network"):
        check_parity(network, artifact, x)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_resizing_by_a_factor_is_valid_in_fp16(mode, tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Upsample(scale_factor=2, mode=mode), nn.Conv2d(8, 4, 3)).eval()
    x = torch.randn(8, 3, 8, 8)
    check_parity(network, onnx.write(network, x[:1], tmp_path / "a.onnx", "fp16", ExportPart()), x)
