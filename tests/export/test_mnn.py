"""MNN models: what is MNN's own. The contract tests have what it shares with other formats."""

import os
from pathlib import Path

import pytest
import torch
from export_networks import Attention, Small, Two, distance, exported, images, network, outputs
from torch import nn

from deploy_prune.errors import ExportError, MissingDependencyError
from deploy_prune.recipe.parts import ExportPart

pytestmark = pytest.mark.mnn
EXAMPLE = images(1)


@pytest.fixture(scope="module", autouse=True)
def form():
    pytest.importorskip("MNN")
    from deploy_prune.export import mnn

    return mnn


def test_half_precision_is_half_the_size_and_no_more_exact(form, tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 100))
    whole, half = (form.write(net, EXAMPLE, tmp_path / p, p, ExportPart()) for p in ("fp32", "fp16"))
    assert 0.45 < half.size_bytes / whole.size_bytes < 0.6
    errors = [distance(net, outputs("mnn", a, images())[0], images()) for a in (whole, half)]
    assert errors[0] < 1e-5 < errors[1] < 1e-2


@pytest.mark.parametrize("kind", [Small, Attention])
def test_a_graph_of_torch_export_gives_the_same_at_any_batch(form, kind, tmp_path):
    net = network(kind)
    for number, given in enumerate((net, exported(net))):
        artifact = form.write(given, EXAMPLE, tmp_path / str(number), "fp32", ExportPart())
        assert distance(net, outputs("mnn", artifact, images())[0], images()) <= 1e-4
    pair = form.write(net, images(2), tmp_path / "pair", "fp32", ExportPart())
    assert distance(net, outputs("mnn", pair, images())[0], images()) <= 1e-4


def test_all_outputs_in_order(form, tmp_path):
    net = network(Two)
    artifact = form.write(net, EXAMPLE, tmp_path / "two", "fp32", ExportPart())
    with torch.no_grad():
        expected = net.eval()(images())
    for a, b in zip([expected["scores"], *expected["more"]], outputs("mnn", artifact, images()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_same_weights_give_the_same_bytes_without_this_machines_paths(form, tmp_path):
    first, again = (form.write(network(), EXAMPLE, tmp_path / name, "fp32", ExportPart()) for name in "ab")
    other = form.write(network(seed=7), EXAMPLE, tmp_path / "c", "fp32", ExportPart())
    assert first.sha256 == again.sha256 != other.sha256
    data = first.path.read_bytes()
    assert not any(str(place).encode() in data for place in (Path.home(), tmp_path.parent, "site-packages"))


def test_a_truncated_file_is_refused(form, tmp_path):
    artifact = form.write(network(), EXAMPLE, tmp_path / "t", "fp32", ExportPart())
    artifact.path.write_bytes(artifact.path.read_bytes()[: -artifact.size_bytes // 3])
    with pytest.raises(RuntimeError, match="MNN can't load"):
        outputs("mnn", artifact, images())


def test_refusals_leave_nothing(form, tmp_path, monkeypatch):
    with pytest.raises(ExportError, match="only in fp32, fp16"):
        form.write(network(), EXAMPLE, tmp_path / "p", "int8", ExportPart(), images())
    with pytest.raises(ExportError, match="fixed batch size"):
        form.write(network(), EXAMPLE, tmp_path / "p", "fp32", ExportPart(dynamic_batch=True))
    monkeypatch.setattr(form, "CONVERT", "print('no such operator')")
    with pytest.raises(ExportError, match="MNN can't convert the network.*no such operator"):
        form.write(network(), EXAMPLE, tmp_path / "p", "fp32", ExportPart())
    monkeypatch.setattr("deploy_prune.export.artifact.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'deploy-prune\[mnn\]'"):
        form.write(network(), EXAMPLE, tmp_path / "p", "fp32", ExportPart())
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_said_and_nothing_installed(form, tmp_path, capfd, monkeypatch):
    """MNN's own program for this starts pip."""
    programs, canary = tmp_path / "bin", tmp_path / "canary"
    programs.mkdir()
    (programs / "pip").write_text(f"#!/bin/sh\n: > {canary}\n")
    (programs / "pip").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    form.write(network(), EXAMPLE, tmp_path / "q", "fp32", ExportPart())
    assert capfd.readouterr() == ("", "")
    assert not canary.exists()
