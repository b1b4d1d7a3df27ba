"""Every operator that costs time, counted against closed formulas."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from deploy_prune.latency.ops import list_ops, stair
from deploy_prune.surgery.trace import trace


def ops_of(network, *shape):
    return list_ops(torch.export.export(network.eval(), (torch.zeros(shape),), strict=False))


class Residual(nn.Module):
    """A stem, a depthwise and a strided layer, a residual addition, a pool and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU6(inplace=True))
        self.depth = nn.Sequential(nn.Conv2d(16, 16, 5, padding=2, groups=16), nn.Hardswish())
        self.point = nn.Conv2d(16, 16, 1)
        self.down = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.head = nn.Linear(24, 10)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.point(self.depth(x))
        return self.head(functional.adaptive_avg_pool2d(self.down(x), 1).flatten(1))


def test_kinds_macs_and_traffic():
    ops = ops_of(Residual(), 1, 3, 8, 8)
    kinds = ["winograd", "depthwise", "pointwise", "elementwise", "conv", "movement", "matmul"]
    assert [op.kind for op in ops] == kinds
    macs = [64 * 9 * 3 * 16, 64 * 25 * 16, 64 * 16 * 16, 0, 16 * 9 * 16 * 24, 0, 24 * 10]
    assert [op.macs() for op in ops] == macs
    written = [1024, 1024, 1024, 1024, 16 * 24, 24, 10]
    assert [op.writes for op in ops] == written
    read = [192, 1024, 1024, 2048, 1024, 16 * 24, 24]
    assert [op.activations - op.writes for op in ops] == read
    assert [op.weights for op in ops] == [27 * 16 + 16, 25 * 16 + 16, 272, 0, 9 * 16 * 24 + 24, 0, 250]


def test_results_belong_to_the_layer_whose_channels_they_have():
    ops = ops_of(Residual(), 1, 3, 8, 8)
    assert [op.anchor for op in ops] == [
        "stem.0.weight", "depth.0.weight", "point.weight", "point.weight", "down.weight", "down.weight", "head.weight",
    ]  # fmt: skip
    assert ops[0].reads == ((None, 192),)
    assert ops[3].reads == (("stem.0.weight", 1024), ("point.weight", 1024))


def test_widths_are_rounded_up_but_not_an_images():
    ops = ops_of(nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 9, 1)), 1, 3, 4, 4)
    assert [op.macs(8) for op in ops] == [16 * 9 * 3 * 16, 16 * 16 * 16]
    assert [stair(width, 8) for width in (1, 4, 5, 8, 9)] == [1, 4, 8, 8, 16]


@pytest.mark.parametrize("make", [nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.PReLU])
def test_activations_of_a_few_instructions_are_the_layers(make):
    assert [op.kind for op in ops_of(nn.Sequential(nn.Conv2d(8, 16, 1), make()), 1, 8, 5, 5)] == ["pointwise"]


@pytest.mark.parametrize(
    "make",
    [
        nn.SiLU, nn.Sigmoid, nn.GELU, nn.Tanh, nn.Mish, nn.Softplus, nn.ELU, nn.SELU, nn.CELU, nn.LogSigmoid,
        lambda: nn.SiLU(inplace=True),
    ],
)  # fmt: skip
def test_transcendental_functions_are_operators_behind_a_layer_too(make):
    layer, function = ops_of(nn.Sequential(nn.Conv2d(8, 16, 1), make()), 1, 8, 5, 5)
    assert (layer.kind, layer.functions) == ("pointwise", 0)
    assert (function.kind, function.functions, function.macs(8)) == ("transcendental", 16 * 25, 0)
    assert (function.anchor, function.tensor, function.writes) == ("0.weight", None, 16 * 25)
    assert function.reads == (("0.weight", 16 * 25),)


@pytest.mark.parametrize("make", [nn.Softmax, nn.LogSoftmax])
def test_a_softmax_moves_its_operand_and_takes_a_function_of_each_element(make):
    _, op = ops_of(nn.Sequential(nn.Conv2d(8, 16, 1), make(1)), 1, 8, 5, 5)
    assert (op.kind, op.functions, op.writes, op.anchor) == ("movement", 16 * 25, 16 * 25, "0.weight")


class Functions(nn.Module):
    """As functions and not as modules; a gate; half of the channels gating the others."""

    def forward(self, x):
        return functional.glu(x * torch.sigmoid(x.mean((2, 3), keepdim=True)) + torch.exp(x) + torch.erf(x), 1)


def test_functions_are_counted_by_elements():
    ops = ops_of(Functions(), 1, 8, 5, 5)
    assert [op.functions for op in ops if op.kind == "transcendental"] == [8, 200, 200, 100]
    assert [op.kind for op in ops if not op.functions] == ["movement", "elementwise", "elementwise", "elementwise"]


class Norms(nn.Module):
    """A norm that a convolution takes in, and one that stands before it."""

    def __init__(self):
        super().__init__()
        self.before, self.conv, self.after = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x):
        return self.after(self.conv(functional.relu(self.before(x * 2))))


def test_only_a_norm_behind_a_convolution_is_folded():
    assert [op.kind for op in ops_of(Norms(), 1, 8, 4, 4)] == ["elementwise", "movement", "pointwise"]


class Attention(nn.Module):
    """Two heads over 5 tokens of 8 channels."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x_BTC):
        q, k, v = self.qkv(x_BTC).reshape(1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(1, 5, 8))


def test_attention_has_two_products_and_its_transposes_are_free():
    ops = ops_of(Attention(), 1, 5, 8)
    assert [op.kind for op in ops] == ["matmul", "attention", "matmul"]
    assert [op.macs() for op in ops] == [5 * 8 * 24, 2 * 2 * 5 * 5 * 4, 5 * 8 * 8]
    assert ops[1].tensor is None
    assert ops[1].anchor == "qkv.weight"
    assert [op.functions for op in ops] == [0, 2 * 5 * 5, 0], "the softmax of each head's square"


@pytest.mark.parametrize(("stride", "kind"), [(1, "winograd"), (2, "conv")])
def test_padding_before_a_convolution_is_the_convolutions(stride, kind):
    network = nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(4, 8, 3, stride=stride, padding=0))
    ops = ops_of(network, 1, 4, 8, 8)
    assert len(ops) == 1
    assert ops[0].positions == (8 // stride) ** 2


@pytest.mark.parametrize(("groups", "outputs", "kind"), [(1, 6, "conv"), (2, 6, "conv"), (4, 4, "depthwise")])
def test_a_transposed_convolution_multiplies_once_for_each_place_of_its_input(groups, outputs, kind):
    layer = nn.ConvTranspose2d(4, outputs, 3, stride=2, groups=groups)
    (op,) = ops_of(layer, 1, 4, 5, 5)
    assert op.macs() == 25 * 9 * 4 * outputs // groups
    assert (op.kind, op.writes) == (kind, outputs * 11 * 11)


class Reader(nn.Module):
    """Tokens, a recurrent layer and a head."""

    def __init__(self):
        super().__init__()
        self.table, self.lstm = nn.Embedding(1000, 8), nn.LSTM(8, 6, batch_first=True, bidirectional=True)
        self.head = nn.Linear(12, 3)

    def forward(self, tokens):
        return self.head(self.lstm(self.table(tokens))[0])


def test_a_recurrent_layer_is_its_matrices_and_an_embedding_reads_the_rows_it_picks():
    program = trace(Reader(), (torch.zeros(1, 7, dtype=torch.int64),), 60.0)
    embedding, *matrices, head = (op for op in list_ops(program) if op.writes or op.weights)
    matrices = [op for op in matrices if op.kind == "matmul"]
    assert (embedding.kind, embedding.macs(), embedding.weights) == ("movement", 0, 0)
    assert (embedding.writes, embedding.activations) == (7 * 8, 7 + 2 * 7 * 8)
    assert [op.macs() for op in matrices] == [7 * 24 * 8, 7 * 24 * 6] * 2
    assert [op.tensor for op in matrices] == [
        f"lstm.weight_{side}_l0{way}" for way in ("", "_reverse") for side in ("ih", "hh")
    ]
    assert [op.writes for op in matrices] == [7 * 12, 0, 0, 0], "read and written once"
    assert sum(op.weights for op in matrices) == 2 * (24 * 8 + 24 * 6 + 2 * 24)
    assert (head.macs(), head.reads[0][0]) == (7 * 12 * 3, "lstm.weight_hh_l0_reverse")


class Mixed(nn.Module):
    """Experts in one tensor, and products of activations whose sizes aren't those of a square."""

    def __init__(self):
        super().__init__()
        self.experts = nn.Parameter(torch.randn(3, 8, 10))

    def forward(self, x_ETC):
        y = torch.bmm(x_ETC, self.experts)
        scores = torch.einsum("etc,esc->ets", x_ETC, x_ETC)
        return functional.scaled_dot_product_attention(x_ETC, x_ETC, y) + torch.bmm(scores, y)


def test_products_of_any_sizes():
    experts, scores, attention, values, added = ops_of(Mixed(), 3, 5, 8)
    assert (experts.kind, experts.tensor, experts.inputs, experts.outputs) == ("matmul", "experts", 8, 10)
    assert experts.macs() == 3 * 5 * 8 * 10
    assert (scores.kind, scores.macs()) == ("attention", 3 * 5 * 5 * 8)
    assert attention.macs() == 3 * 5 * 5 * (8 + 10)
    assert values.macs() == 3 * 5 * 5 * 10
    assert (added.kind, added.macs()) == ("elementwise", 0)
