"""ncnn models: what is ncnn's own. test_model_folders.py has what it shares with other formats."""

import pytest
import torch
from export_networks import distance, images, network, outputs, payload
from torch import nn

from deploy_prune.errors import ExportError
from deploy_prune.recipe.parts import ExportPart

pytestmark = pytest.mark.ncnn
EXAMPLE = images(1)


@pytest.fixture(scope="module")
def form():
    for module in ("ncnn", "pnnx"):
        pytest.importorskip(module)
    from deploy_prune.export import ncnn

    return ncnn


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_weights_tell_the_precision(form, tmp_path, precision):
    artifact = form.write(network(), EXAMPLE, tmp_path / "w", precision, ExportPart())
    assert payload("ncnn").is_half(artifact.path / "model.bin") == (precision == "fp16")


def test_more_than_one_input_is_refused(form, tmp_path):
    with pytest.raises(ExportError, match="no batch axis"):
        form.write(network(), images(2), tmp_path / "b", "fp32", ExportPart())


def test_an_operator_that_ncnn_lacks_is_named(form, tmp_path):
    class Rare(nn.Module):
        def forward(self, x):
            return torch.special.i0(x)

    with pytest.raises(ExportError, match="no operator for .*i0"):
        form.write(Rare(), EXAMPLE, tmp_path / "r", "fp32", ExportPart())
    assert list(tmp_path.iterdir()) == []


class Steps(nn.Module):
    """Slices with steps and offsets, on both axes."""

    def forward(self, x):
        return x[:, :, 1:14:3, ::2] * 2 + 1


class Heads(nn.Module):
    """One of three, chosen by select after the batch was moved."""

    def forward(self, x):
        y = x.flatten(2).reshape(len(x), 3, 4, 2, 32).permute(3, 0, 2, 1, 4)
        return y[1] - y.select(0, -2)


@pytest.mark.parametrize("kind", [Steps, Heads])
def test_what_pnnx_cannot_say_is_said_otherwise(form, kind, tmp_path):
    graph = torch.export.export(kind(), (EXAMPLE,)).module(check_guards=False)
    torch.testing.assert_close(form.rewrite(graph)(EXAMPLE), kind()(EXAMPLE), rtol=0, atol=0)
    artifact = form.write(kind(), EXAMPLE, tmp_path / "s", "fp32", ExportPart())
    assert distance(kind(), outputs("ncnn", artifact, images())[0], images()) < 1e-6
