"""Formats that are a folder with the graph and the weights apart: the same contract."""

from pathlib import Path

import pytest
import torch
from export_networks import FAULTS, Attention, Small, Two, distance, exported, images, network, outputs
from torch import nn

from deploy_prune.errors import ExportError, MissingDependencyError
from deploy_prune.export import FORMATS
from deploy_prune.recipe.parts import ExportPart

EXAMPLE = images(1)
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2}
FILES = {"ncnn": {"model.param", "model.bin"}, "openvino": {"model.xml", "model.bin"}}


@pytest.fixture(scope="module", params=[pytest.param(name, marks=getattr(pytest.mark, name)) for name in FILES])
def name(request):
    for module in FORMATS[request.param].extra.modules:
        pytest.importorskip(module)
    return request.param


@pytest.fixture(scope="module")
def form(name):
    return FORMATS[name]


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def written(form, request, tmp_path_factory):
    net = network()
    path = tmp_path_factory.mktemp("written") / f"a{form.suffix}"
    return net, form.write(net, EXAMPLE, path, request.param, ExportPart())


def test_it_computes_what_the_network_does(name, written):
    net, artifact = written
    assert distance(net, outputs(name, artifact, images())[0], images()) <= TOLERANCE[artifact.precision]


def test_half_precision_is_half_the_size_and_no_more_exact(name, form, tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 100))
    whole, half = (form.write(net, EXAMPLE, tmp_path / p, p, ExportPart()) for p in ("fp32", "fp16"))
    assert 0.45 < half.size_bytes / whole.size_bytes < 0.6
    errors = [distance(net, outputs(name, a, images())[0], images()) for a in (whole, half)]
    assert errors[0] < 1e-5 < errors[1] < 1e-2


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_stands_out(name, form, written, fault, tmp_path):
    net, artifact = written
    damaged = network()
    FAULTS[fault](damaged)
    other = form.write(damaged, EXAMPLE, tmp_path / "f", artifact.precision, ExportPart())
    assert distance(net, outputs(name, other, images())[0], images()) > 2 * TOLERANCE[artifact.precision]


def test_a_transposed_input_stands_out(name, written):
    net, artifact = written
    found = outputs(name, artifact, images().transpose(2, 3))[0]
    assert not distance(net, found, images()) <= 2 * TOLERANCE[artifact.precision], "or it is no number"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_truncated_file_is_refused(name, form, tmp_path, precision):
    artifact = form.write(network(), EXAMPLE, tmp_path / "t", precision, ExportPart())
    weights = artifact.path / "model.bin"
    weights.write_bytes(weights.read_bytes()[: -weights.stat().st_size // 3])
    with pytest.raises(RuntimeError):
        outputs(name, artifact, images())


@pytest.mark.parametrize("kind", [Small, Attention])
def test_a_graph_of_torch_export_gives_the_same(name, form, kind, tmp_path):
    net = network(kind)
    for number, given in enumerate((net, exported(net))):
        artifact = form.write(given, EXAMPLE, tmp_path / str(number), "fp32", ExportPart())
        assert distance(net, outputs(name, artifact, images())[0], images()) <= TOLERANCE["fp32"]


def test_all_outputs_in_order(name, form, tmp_path):
    net = network(Two)
    artifact = form.write(net, EXAMPLE, tmp_path / "two", "fp32", ExportPart())
    found = outputs(name, artifact, images())
    with torch.no_grad():
        expected = net.eval()(images())
    for a, b in zip([expected["scores"], *expected["more"]], found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_only_the_model_is_in_the_folder_and_the_same_weights_give_the_same_bytes(name, form, written, tmp_path):
    _, artifact = written
    assert {file.name for file in artifact.path.iterdir()} == FILES[name]
    again = form.write(network(), EXAMPLE, tmp_path / "again", artifact.precision, ExportPart())
    other = form.write(network(seed=7), EXAMPLE, tmp_path / "other", artifact.precision, ExportPart())
    assert again.sha256 == artifact.sha256 != other.sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "other"]
    data = b"".join(file.read_bytes() for file in artifact.path.iterdir())
    for secret in (str(Path.home()), str(Path(__file__).parents[2]), str(tmp_path.parent), "site-packages"):
        assert secret.encode() not in data


def test_an_older_folder_is_replaced_and_modes_are_put_back(name, form, tmp_path):
    net = network().train()
    net.drop.eval()
    for seed in (3, 0):
        given = network(seed=seed) if seed else net
        artifact = form.write(given, EXAMPLE, tmp_path / "m", "fp32", ExportPart())
    assert net.training
    assert not net.drop.training
    assert distance(network(), outputs(name, artifact, images())[0], images()) <= TOLERANCE["fp32"]


def test_refusals_leave_nothing(form, tmp_path):
    class Bad(nn.Module):
        def forward(self, x):
            return x * 2 if float(x.sum()) > 0 else x

    with pytest.raises(ExportError, match="int8"):
        form.write(network(), EXAMPLE, tmp_path / "p", "int8", ExportPart(), images())
    with pytest.raises(ExportError, match="can't export") as caught:
        form.write(Bad(), EXAMPLE, tmp_path / "p", "fp32", ExportPart())
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(name, form, tmp_path, monkeypatch):
    monkeypatch.setattr("deploy_prune.export.artifact.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=rf"pip install 'deploy-prune\[{name}\]'"):
        form.write(network(), EXAMPLE, tmp_path / "p", "fp32", ExportPart())


def test_nothing_is_said(form, tmp_path, capfd):
    form.write(network(), EXAMPLE, tmp_path / "q", "fp32", ExportPart())
    assert capfd.readouterr() == ("", "")
