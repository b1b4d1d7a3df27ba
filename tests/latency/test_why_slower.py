"""Where time was lost, on files whose nodes take the times that a test gives them."""

from dataclasses import replace

import numpy
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy_prune.export.artifact import describe
from deploy_prune.latency.why_slower import BETWEEN, lost

SIZE = 14


def chain(path, widths, kernel=3):
    """An ONNX file with a convolution between each two widths, and a global pooling behind them."""
    nodes, weights = [], []
    for i, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
        shape = (outputs, inputs, kernel, kernel)
        weights.append(numpy_helper.from_array(numpy.zeros(shape, numpy.float32), f"c{i}.weight"))
        pads = [kernel // 2] * 4
        nodes.append(helper.make_node("Conv", [f"x{i}", f"c{i}.weight"], [f"x{i + 1}"], name=f"conv{i}", pads=pads))
    last = len(nodes)
    nodes.append(helper.make_node("GlobalAveragePool", [f"x{last}"], ["y"], name="pool"))
    ends = [("x0", [1, widths[0], SIZE, SIZE]), ("y", [1, widths[-1], 1, 1])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in ends]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return describe(path, format="onnx", precision="fp32", input_shape=(1, widths[0], SIZE, SIZE), versions={})


@pytest.fixture
def pair(tmp_path):
    """64 channels everywhere, and slim: half of them, and in the last layer nine."""
    return chain(tmp_path / "dense.onnx", [64] * 5), chain(tmp_path / "slim.onnx", [64, 32, 32, 32, 9])


def times(*conv, pool=0.0):
    nodes = {f"conv{i}": ms for i, ms in enumerate(conv)} | {"pool": pool}
    return nodes, sum(nodes.values())


DENSE = times(1.0, 1.0, 1.0, 1.0)
MACS = (0.5, 0.25, 0.25, 0.5 * 9 / 64)


def test_nothing_is_lost_where_time_follows_the_macs(pair):
    assert lost(pair, (DENSE, times(*MACS)), 1) == ()


def test_what_the_granularity_takes_is_told_apart_from_overhead(pair):
    slim = times(0.5, 0.6, 0.25, 0.5 * 16 / 64)
    first, second = lost(pair, (DENSE, slim), 16)
    assert (first.layer, first.reason) == ("c1", "overhead"), "32 channels are a multiple of 16"
    assert first.share == pytest.approx((0.6 - 0.25) / slim[1])
    assert (first.dense_ms, first.slim_ms, first.macs_share) == pytest.approx((1.0, 0.6, 0.25))
    assert (second.layer, second.reason) == ("c3", "granularity")
    assert second.share == pytest.approx((0.5 * 16 / 64 - MACS[3]) / slim[1])
    assert [x.reason for x in lost(pair, (DENSE, slim), 1)] == ["overhead", "overhead"], "of single channels it's not"


@pytest.mark.parametrize(("width", "reason"), [(31, "granularity"), (32, "overhead")])
def test_a_smaller_layer_that_is_slower_has_the_wrong_width(tmp_path, width, reason):
    """Rounding up explains next to nothing of a layer that takes five times as long with half the channels."""
    dense, slim = (chain(tmp_path / f"{w}.onnx", [w, w]) for w in (64, width))
    (only,) = lost((dense, slim), (times(1.0), times(5.0)), 16)
    assert only.reason == reason


def test_a_layer_of_little_arithmetic_is_bound_by_memory(tmp_path):
    """A pointwise layer that takes as long as its data says; a 3x3 layer of the same widths has 9 times the MACs."""
    reasons = []
    for kernel in (1, 3):
        dense, slim = (chain(tmp_path / f"{kernel}-{w}.onnx", [w, w], kernel) for w in (32, 16))
        reasons += [x.reason for x in lost((dense, slim), (times(1.0), times(0.5)), 1)]
    assert reasons == ["memory-bound", "overhead"]


def test_what_no_layer_does_is_told_too(pair):
    dense, slim = times(1.0, 1.0, 1.0, 1.0, pool=1.0), times(*MACS, pool=1.0)
    (only,) = lost(pair, (dense, slim), 1)
    kept = sum(MACS) / 4
    assert (only.layer, only.reason) == (BETWEEN, "memory-bound")
    assert only.share == pytest.approx((1 - kept) / slim[1])


def test_at_most_five_and_the_worst_first(tmp_path):
    dense, slim = (chain(tmp_path / f"{w}.onnx", [w] * 8) for w in (64, 32))
    shares = [x.share for x in lost((dense, slim), (times(*[1.0] * 7), times(*[0.9 - 0.05 * i for i in range(7)])), 1)]
    assert len(shares) == 5
    assert shares == sorted(shares, reverse=True)


def test_a_weight_that_is_used_twice_is_two_layers(tmp_path):
    path = tmp_path / "twice.onnx"
    made = chain(path, [8, 8, 8])
    model = onnx.load(path)
    model.graph.node[1].input[1] = "c0.weight"
    onnx.save(model, path)
    found = lost((replace(made), replace(made)), (times(1.0, 1.0), times(2.0, 4.0)), 1)
    assert [x.layer for x in found] == ["c0 #2", "c0"]
