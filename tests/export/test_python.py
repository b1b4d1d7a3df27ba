"""``deploy_prune.export``: one call, checked."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import deploy_prune
from deploy_prune.errors import ExportError, ParityError
from deploy_prune.export import python
from deploy_prune.export.noise import agreement, snr_db

EXAMPLE = torch.zeros(2, 3, 8, 8)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))


@pytest.mark.parametrize(("format", "precision"), [("onnx", "fp16"), ("ort", "fp32"), ("onnx", "int8")])
def test_a_network_becomes_a_file_in_one_call(network, tmp_path, format, precision):
    path = tmp_path / f"model.{format}"
    calibration = torch.randn(33, 3, 8, 8) if precision == "int8" else None
    artifact = deploy_prune.export(network, EXAMPLE, format, precision, path=path, calibration=calibration)
    assert (artifact.path, artifact.format, artifact.precision) == (path, format, precision)
    assert artifact.input_shape == (2, 3, 8, 8)
    assert network.training


def test_what_fails_the_check_is_removed(network, tmp_path, monkeypatch):
    def differs(*args):
        message = "it differs"
        raise ParityError(message)

    monkeypatch.setattr(python, "check_parity", differs)
    with pytest.raises(ParityError):
        deploy_prune.export(network, EXAMPLE, path=tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_unknown_names_are_refused(network, tmp_path):
    with pytest.raises(ExportError, match="no format 'onyx'; known: onnx, .* Perhaps you meant 'onnx'"):
        deploy_prune.export(network, EXAMPLE, "onyx", path=tmp_path / "a")
    with pytest.raises(ExportError, match=r"A file of the format ort ends in \.ort; .*a\.onnx doesn't"):
        deploy_prune.export(network, EXAMPLE, "ort", path=tmp_path / "a.onnx")
    with pytest.raises(ExportError, match="can't be written in int4"):
        deploy_prune.export(network, EXAMPLE, "onnx", "int4", path=tmp_path / "a")
    with pytest.raises(ExportError, match="int8 needs calibration inputs"):
        deploy_prune.export(network, EXAMPLE, "onnx", "int8", path=tmp_path / "a.onnx")


def test_importing_the_package_loads_no_torch_for_it():
    code = "import sys, deploy_prune; assert 'torch' not in sys.modules; assert callable(deploy_prune.export)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'exprt'"):
        deploy_prune.exprt  # noqa: B018


def test_signal_is_what_changes_from_input_to_input():
    a = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert snr_db(a, a * 1.1) == pytest.approx(20, abs=1e-4)
    assert snr_db(a + 100, a + 100.1) == pytest.approx(10 * torch.log10(torch.tensor(2 / 0.04)).item(), abs=1e-2)
    assert snr_db(a, a) == float("inf")
    assert agreement(a, torch.tensor([[1.0, 0.0], [1.0, 0.0]])) == 0.5
