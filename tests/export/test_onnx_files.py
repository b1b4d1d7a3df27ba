"""Models that are too large for one file, by a limit that small ones are over."""

import json

import numpy
import onnx
import pytest
import torch
from torch import nn

from deploy_prune import device
from deploy_prune.errors import ExportError
from deploy_prune.export import FORMATS, onnx_files
from deploy_prune.export.parity import check_parity
from deploy_prune.recipe.parts import ExportPart

NAMES = [onnx_files.GRAPH, onnx_files.WEIGHTS]


@pytest.fixture
def network():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU())
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).eval()


@pytest.fixture
def limit(monkeypatch):
    """Sets the bytes of weights that one file can hold."""
    return lambda size: monkeypatch.setattr(onnx_files, "MAX_BYTES", onnx_files.MOST_OF_THE_GRAPH + size)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(network, path, precision="fp32", kind="onnx"):
    x = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    return FORMATS[kind].write(network, x[:1], path, precision, ExportPart(), x), x


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_large_model_is_a_folder_that_computes_the_same(precision, network, limit, tmp_path):
    one, x = write(network, tmp_path / "one.onnx", precision)
    limit(0)
    two, _ = write(network, tmp_path / "two.onnx", precision)
    assert (one.path.is_file(), names(two.path)) == (True, NAMES)
    assert (two.path / onnx_files.WEIGHTS).stat().st_size > (two.path / onnx_files.GRAPH).stat().st_size / 2
    outputs = [device.run(artifact, x, "onnxruntime") for artifact in (one, two)]
    assert all(numpy.array_equal(a, b) for a, b in zip(*outputs, strict=True))
    check_parity(network, two, x)
    again, _ = write(network, tmp_path / "again.onnx", precision)
    assert again.sha256 == two.sha256 != one.sha256


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_what_is_large_in_float32_alone_is_one_file(precision, network, limit, tmp_path):
    sizes = [sum(p.numel() for p in network.parameters()) * share for share in (2.5, 4)]
    limit(int(sizes[0]))
    assert sizes[1] > sizes[0]
    assert write(network, tmp_path / "f.onnx")[0].path.is_dir()
    assert write(network, tmp_path / "l.onnx", precision)[0].path.is_file()


def test_just_what_fits_is_one_file(network, limit, tmp_path):
    weights = onnx.load(write(network, tmp_path / "n.onnx")[0].path).graph.initializer
    size = sum(len(entry.raw_data) for entry in weights)
    for bytes_, folder in ((size, False), (size - 1, True)):
        limit(bytes_)
        assert write(network, tmp_path / f"{folder}.onnx")[0].path.is_dir() is folder


def test_a_large_models_faults_are_seen(network, limit, tmp_path, monkeypatch):
    limit(0)
    made = FORMATS["onnx"]._export

    def spoilt(*given):
        model = made(*given)
        model.graph.node[0].op_type = "NoSuchOperator"
        return model

    monkeypatch.setattr(FORMATS["onnx"], "_export", spoilt)
    with pytest.raises(ExportError, match=r"not valid.*NoSuchOperator"):
        write(network, tmp_path / "s.onnx")
    assert not list(tmp_path.iterdir())


def test_tensorrts_folder_has_the_weights_beside_the_graph(network, limit, tmp_path):
    limit(0)
    artifact, x = write(network, tmp_path / "t.tensorrt", kind="tensorrt")
    assert {*NAMES, "model.json", "build_engine.py"} <= {*names(artifact.path)}
    assert json.loads((artifact.path / "model.json").read_text())["shape"] == [1, 3, 12, 12]
    weights = onnx.load(artifact.path / onnx_files.GRAPH).graph.initializer
    assert max(len(entry.raw_data) for entry in weights) == 32 * 32 * 9 * 4


def test_an_ort_file_cant_be_large(network, limit, tmp_path):
    limit(0)
    with pytest.raises(ExportError, match="over 2 GB.*choose the format onnx"):
        write(network, tmp_path / "o.ort", kind="ort")
