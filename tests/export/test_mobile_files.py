"""Formats that are one file of a fixed batch, in float and int8: the same contract."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy
import pytest
import torch
from export_networks import payload
from three_outputs import EXAMPLE, calibration, found_in, images, least_db, network, noise_db, reference
from torch import Tensor, nn

from deploy_prune.device import SCRIPT
from deploy_prune.errors import ExportError, MissingDependencyError
from deploy_prune.export import FORMATS
from deploy_prune.export import artifact as artifact_module
from deploy_prune.recipe.parts import ExportPart

NEEDS = {"litert": ("litert_torch", "ai_edge_quantizer"), "executorch": ("executorch.runtime", "torchao")}
LAYOUTS = {"litert": "NHWC", "executorch": "NCHW"}
VERSIONS = {
    "litert": {"torch", "litert-torch", "ai-edge-litert", "ai-edge-quantizer"},
    "executorch": {"torch", "executorch", "torchao"},
}
REFUSED = {"litert": "litert-torch can't convert", "executorch": "ExecuTorch can't lower"}
PRECISIONS = ("fp32", "fp16", "int8")


@pytest.fixture(scope="module", params=[pytest.param(name, marks=getattr(pytest.mark, name)) for name in NEEDS])
def name(request):
    """Its packages are there, and have been loaded: what they warn of while that is done is theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in NEEDS[request.param]:
            pytest.importorskip(module)
        payload(request.param)
    return request.param


@pytest.fixture(scope="module")
def form(name):
    return FORMATS[name]


@pytest.fixture(scope="module")
def written(form, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    return {
        precision: form.write(
            network(), EXAMPLE, folder / f"{precision}{form.suffix}", precision, ExportPart(), calibration()
        )
        for precision in form.precisions
    }


@pytest.mark.parametrize("precision", PRECISIONS)
def test_outputs_are_the_networks(name, written, precision):
    x = images(16)
    expected, found = reference(network(), x), found_in(name, written[precision], x)
    assert [y.shape for y in found] == [y.shape for y in expected]
    assert {y.dtype for y in found} == {numpy.dtype("float32")}
    for a, b in zip(expected, found, strict=True):
        assert noise_db(a, b) > least_db(name, precision)
        if precision == "fp32":
            assert abs(a - b).max() <= 1e-4 * abs(a).max()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_planted_faults_stand_out(name, written, precision):
    x = images(16)
    found = found_in(name, written[precision], x)[0]
    noise = abs(reference(network(), x)[0] - found).max()
    swapped, dropped = network(), network()
    swapped.head.weight.data[[0, 1]] = swapped.head.weight.data[[1, 0]]
    dropped.head.bias.data[0] = 0
    for faulty in (swapped, dropped):
        assert abs(reference(faulty, x)[0] - found).max() > 4 * noise
    turned = found_in(name, written[precision], x.flip(2, 3))[0]
    assert abs(reference(network(), x)[0] - turned).max() > 4 * noise


def test_artifacts_are_described(name, form, written):
    assert form.precisions == PRECISIONS
    for precision, one in written.items():
        assert (one.format, one.precision, one.layout) == (name, precision, LAYOUTS[name])
        assert one.input_shape == (1, 3, 16, 12)
        assert set(one.versions) == VERSIONS[name]
    assert len({one.sha256 for one in written.values()}) == len(PRECISIONS)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_same_bytes_and_no_paths(form, written, tmp_path, precision):
    again = form.write(network(), EXAMPLE, tmp_path / f"b{form.suffix}", precision, ExportPart(), calibration())
    assert again.sha256 == written[precision].sha256
    data = again.path.read_bytes()
    for secret in (str(Path.home()), str(Path(__file__).parents[2]), "site-packages", str(tmp_path)):
        assert secret.encode() not in data


@pytest.mark.parametrize(("precision", "off"), [("fp32", 1e-5), ("int8", 1e-4)])
def test_an_exported_module_in_channels_last(name, form, written, tmp_path, precision, off):
    x, net = images(4), network().to(memory_format=torch.channels_last)
    module = torch.export.export(net, (EXAMPLE,)).module()
    modern = EXAMPLE.to(memory_format=torch.channels_last)
    artifact = form.write(module, modern, tmp_path / f"g{form.suffix}", precision, ExportPart(), calibration())
    for a, b in zip(found_in(name, written[precision], x), found_in(name, artifact, x), strict=True):
        numpy.testing.assert_allclose(a, b, atol=off)


def test_train_mode_is_put_back(name, form, tmp_path):
    net = network().train()
    net.norm.eval()
    artifact = form.write(net, EXAMPLE, tmp_path / f"t{form.suffix}", "fp32", ExportPart())
    assert net.training
    assert net.drop.training
    assert not net.norm.training
    x = images(4)
    numpy.testing.assert_allclose(found_in(name, artifact, x)[0], reference(network(), x)[0], atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_batch_of_the_example(name, form, tmp_path, threads):
    artifact = form.write(network(), EXAMPLE.expand(2, -1, -1, -1), tmp_path / f"b{form.suffix}", "fp32", ExportPart())
    model = payload(name).Model(str(artifact.path), threads, artifact.layout)
    model.feed(images(2).numpy())
    numpy.testing.assert_allclose(model.run()[0], reference(network(), images(2))[0], atol=1e-5)
    with pytest.raises(ValueError, match="takes inputs"):
        model.feed(images(1).numpy())


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_truncated_file_is_refused(name, form, written, tmp_path, kept):
    """In a process of its own: what a runtime does with such a file is not known."""
    data = written["fp32"].path.read_bytes()
    path = tmp_path / f"cut{form.suffix}"
    path.write_bytes(data[: int(len(data) * kept)])
    spec = {"mode": "run", "threads": 1, "inputs": str(tmp_path / "x.npy"), "outputs": str(tmp_path)}
    numpy.save(tmp_path / "x.npy", numpy.zeros(tuple(EXAMPLE.shape), "float32"))
    model = {"runtime": name, "path": str(path), "layout": LAYOUTS[name], "input_shape": list(EXAMPLE.shape)}
    told = json.dumps({**spec, "models": [model]}).encode()
    done = subprocess.run(
        [sys.executable, "-I", str(SCRIPT)], input=told, capture_output=True, timeout=120, check=False
    )
    assert done.returncode != 0


def test_a_network_that_cannot_be_written(name, form, tmp_path):
    class Bad(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.svdvals(x)

    with pytest.raises(ExportError, match=REFUSED[name]) as caught:
        form.write(Bad(), EXAMPLE, tmp_path / f"bad{form.suffix}", "fp32", ExportPart())
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NEEDS)
def test_refusals(name, tmp_path, monkeypatch):
    """Here the packages may be missing."""
    form = FORMATS[name]
    path = tmp_path / f"no{form.suffix}"
    monkeypatch.setattr(artifact_module, "find_spec", lambda name: object())
    with pytest.raises(ExportError, match="bf16"):
        form.write(network(), EXAMPLE, path, "bf16", ExportPart())
    with pytest.raises(ExportError, match="dynamic_batch"):
        form.write(network(), EXAMPLE, path, "fp32", ExportPart(dynamic_batch=True))
    with pytest.raises(ExportError, match=r"calibration inputs.*none were given"):
        form.write(network(), EXAMPLE, path, "int8", ExportPart())
    with pytest.raises(ExportError, match=r"at least 4 .*2 were given"):
        form.write(network(), EXAMPLE.expand(4, -1, -1, -1), path, "int8", ExportPart(), images(2))
    monkeypatch.setattr(artifact_module, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=rf"pip install 'deploy-prune\[{name}\]'"):
        form.write(network(), EXAMPLE, path, "fp32", ExportPart())
    assert list(tmp_path.iterdir()) == []
