"""``deploy_prune.export``: one call, checked."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import deploy_prune
from deploy_prune.api import export
from deploy_prune.errors import ExportError, ParityError
from deploy_prune.export.noise import agreement, snr_db
from deploy_prune.export.parity import UncheckedWarning

EXAMPLE = torch.zeros(2, 3, 8, 8)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))


@pytest.mark.parametrize(("format", "precision"), [("onnx", "fp16"), ("ort", "fp32"), ("onnx", "int8")])
def test_a_network_becomes_a_file_in_one_call(network, tmp_path, format, precision):
    path = tmp_path / f"model.{format}"
    calibration = torch.randn(33, 3, 8, 8) if precision == "int8" else None
    artifact = deploy_prune.export_network(network, EXAMPLE, format, precision, path=path, calibration=calibration)
    assert (artifact.path, artifact.format, artifact.precision) == (path, format, precision)
    assert artifact.input_shape == (2, 3, 8, 8)
    assert network.training


def test_what_fails_the_check_is_removed(network, tmp_path, monkeypatch):
    def differs(*args):
        message = "it differs"
        raise ParityError(message)

    monkeypatch.setattr(export, "check_parity", differs)
    with pytest.raises(ParityError):
        deploy_prune.export_network(network, EXAMPLE, path=tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_unknown_names_are_refused(network, tmp_path):
    with pytest.raises(ExportError, match="no format 'onyx'; known: onnx, .* Perhaps you meant 'onnx'"):
        deploy_prune.export_network(network, EXAMPLE, "onyx", path=tmp_path / "a")
    with pytest.raises(ExportError, match=r"A file of the format ort ends in \.ort; .*a\.onnx doesn't"):
        deploy_prune.export_network(network, EXAMPLE, "ort", path=tmp_path / "a.onnx")
    with pytest.raises(ExportError, match="can't be written in int4"):
        deploy_prune.export_network(network, EXAMPLE, "onnx", "int4", path=tmp_path / "a")
    with pytest.raises(ExportError, match="int8 needs calibration inputs"):
        deploy_prune.export_network(network, EXAMPLE, "onnx", "int8", path=tmp_path / "a.onnx")


def test_importing_the_package_loads_no_torch_for_it():
    code = "import sys, deploy_prune; assert 'torch' not in sys.modules; assert callable(deploy_prune.export_network)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'exprt'"):
        deploy_prune.exprt  # noqa: B018


def test_signal_is_what_changes_from_input_to_input():
    a = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert snr_db(a, a * 1.1) == pytest.approx(20, abs=1e-4)
    assert snr_db(a + 100, a + 100.1) == pytest.approx(10 * torch.log10(torch.tensor(2 / 0.04)).item(), abs=1e-2)
    assert snr_db(a, a) == float("inf")
    assert agreement(a, torch.tensor([[1.0, 0.0], [1.0, 0.0]])) == 0.5


def test_an_artifact_that_cant_run_here_says_so(network, tmp_path, monkeypatch):
    compared = []
    monkeypatch.setattr(export, "can_run", lambda artifact: False)
    monkeypatch.setattr(export, "compare_contents", lambda *given: compared.append(given[2].shape))
    path = tmp_path / "model.tensorrt"
    with pytest.warns(UncheckedWarning, match=r"model\.tensorrt was not compared with the network: .*can't run"):
        artifact = deploy_prune.export_network(network, EXAMPLE, "tensorrt", path=path)
    assert "its engine has to be built first" in artifact.unchecked
    assert compared == [(16, 3, 8, 8)]
    assert path.exists()


def test_contents_that_differ_are_removed(network, tmp_path, monkeypatch):
    def differs(*args):
        message = "it differs"
        raise ParityError(message)

    monkeypatch.setattr(export, "can_run", lambda artifact: False)
    monkeypatch.setattr(export, "compare_contents", differs)
    with pytest.raises(ParityError):
        deploy_prune.export_network(network, EXAMPLE, path=tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_checked_artifact_is_not_called_unchecked(network, tmp_path):
    assert deploy_prune.export_network(network, EXAMPLE, path=tmp_path / "a.onnx").unchecked is None


def test_what_is_compared_on_is_the_same_each_time_and_spread(network, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(export, "check_parity", lambda model, artifact, inputs: seen.append(inputs))
    for seed in (1, 2):
        torch.manual_seed(seed)
        deploy_prune.export_network(network, EXAMPLE, path=tmp_path / "a.onnx")
        assert torch.equal(torch.randn(3), torch.randn(3, generator=torch.Generator().manual_seed(seed)))
    assert torch.equal(seen[0], seen[1])
    sorted_inputs = torch.arange(640.0).view(640, 1, 1, 1).expand(640, 3, 8, 8).contiguous()
    deploy_prune.export_network(network, EXAMPLE, path=tmp_path / "a.onnx", calibration=sorted_inputs)
    taken = seen[2][:, 0, 0, 0]
    assert len(taken) == 64
    assert min(int(((taken >= low) & (taken < low + 160)).sum()) for low in (0, 160, 320, 480)) > 5
