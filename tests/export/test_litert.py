"""LiteRT files: what is LiteRT's own. test_mobile_files.py has what it shares with other formats."""

import warnings

import pytest
from export_networks import payload
from input_kinds import KINDS, first
from three_outputs import EXAMPLE, calibration, network
from uneven_outputs import uneven

import deploy_prune
from deploy_prune import device
from deploy_prune.export import litert
from deploy_prune.export.parity import check_parity
from deploy_prune.recipe.parts import ExportPart


@pytest.mark.litert
def test_int8_runs_in_one_piece(tmp_path):
    """Hard swish and the norm have no int8 kernel: kept in float, they don't break XNNPACK's part in pieces."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("litert_torch")
        pytest.importorskip("ai_edge_quantizer")
        runtime = payload("litert")
    artifact = litert.write(network(), EXAMPLE, tmp_path / "a.tflite", "int8", ExportPart(), calibration())
    model = runtime.Model(str(artifact.path), 1, "NHWC")
    names = [entry["op_name"] for entry in model._interpreter._get_ops_details()]
    assert "QUANTIZE" in names
    assert names.count("DELEGATE") <= names.count("STRIDED_SLICE") + 1


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


def test_last_layers_are_followed_by_moves_alone():
    boxes = ["CONV_2D", "CONV_2D", "TRANSPOSE", "CONV_2D_TRANSPOSE", "CONCATENATION"]
    reads = [[], [0], [1], [0], [2, 3]]
    assert litert.at_the_end(boxes, reads, [False] * 4 + [True]) == [1, 2, 3, 4]
    assert litert.at_the_end([*boxes, "LOGISTIC"], [*reads, [4]], [False] * 5 + [True]) == []
    assert litert.at_the_end(["CONV_2D", "CONV_2D"], [[], [0]], [True, True]) == [1], "what is read on stays int8"
    assert litert.at_the_end(["CONV_2D"], [[]], [False]) == [], "what nobody reads is no output"


@pytest.mark.litert
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_last_layers_keep_small_output_channels_as_exact_as_large_ones(groups, tmp_path):
    """With one scale of 8 bits for all, the smallest channel would have 8 of its 255 steps."""
    pytest.importorskip("litert_torch")
    network, x = uneven(groups)
    artifact = litert.write(network, x[:1], tmp_path / "a.tflite", "int8", ExportPart(), x)
    check_parity(network, artifact, x)
    (found,), exact = device.run(artifact, x, "litert"), network(x).detach()
    off = (found - exact).square().mean((0, 2, 3)).sqrt() / exact.std((0, 2, 3))
    assert float(off.max()) < 0.05


@pytest.mark.litert
def test_int8_is_calibrated_on_tokens(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("litert_torch")
        make, inputs = KINDS["tokens"]
        x = inputs()
        path = tmp_path / "a.tflite"
        deploy_prune.export_network(make().eval(), first(x), "litert", "int8", path=path, calibration=x)
