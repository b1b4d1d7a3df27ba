"""ncnn models: what is ncnn's own. test_model_folders.py has what it shares with other formats."""

import pytest
import torch
from export_networks import distance, images, network, outputs, payload
from torch import nn
from torch.nn import functional

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


class Volumes(nn.Module):
    """Volumes made larger, by neighbours and by interpolation, and normalised over all axes."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm((3, 4, 4, 16))
        nn.init.normal_(self.norm.weight, generator=torch.Generator().manual_seed(0))

    def forward(self, x):
        x = self.norm(x.unflatten(2, (4, 4)))
        near = functional.interpolate(x, size=(7, 9, 16))
        return near + functional.interpolate(x, scale_factor=(1.75, 2.25, 1.0), mode="trilinear", align_corners=False)


class Masked(nn.Module):
    """Attention under a constant of booleans, all of them true, and under none, that may not look ahead."""

    def forward(self, x):
        q = x.flatten(2).reshape(len(x), 3, 32, 8)
        seen = torch.arange(32).view(-1, 1) % 3 <= torch.arange(32) % 5
        one = functional.scaled_dot_product_attention(q, q, q, attn_mask=seen)
        two = functional.scaled_dot_product_attention(q, q, q, attn_mask=torch.ones(32, 32, dtype=torch.bool))
        return one + two + functional.scaled_dot_product_attention(q, q, q, is_causal=True, scale=0.3)


class Counted(nn.Module):
    """Arithmetic with constants that are whole numbers and booleans."""

    def forward(self, x):
        x = x.minimum(torch.arange(16))
        return (x * torch.arange(16) + torch.arange(16).view(16, 1)) * torch.ops.aten.alias(torch.arange(16) > 3)


class Channels(nn.Module):
    """Nothing before the mean over channels shows which axis is the batch; one of two parts isn't used."""

    def forward(self, x):
        return torch.cat([x.mean(1, keepdim=True), x.chunk(2, 3)[1].repeat(1, 1, 1, 2)], 1).softmax(1)


class Recurrent(nn.Module):
    """Two layers in both directions, one that is read at its end, and how far their results spread."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.GRU(16, 6, num_layers=2, bidirectional=True, batch_first=True)
        self.second = nn.LSTM(12, 5, batch_first=True, bias=False)

    def forward(self, x):
        y = self.second(self.first(x[:, 0])[0])[0]
        return torch.cat([y.std(1), y.var((1,), correction=0), y[:, -1]], 1)


@pytest.mark.filterwarnings("ignore:The tensor attributes")
@pytest.mark.parametrize("kind", [Steps, Heads, Volumes, Masked, Counted, Channels, Recurrent])
def test_what_pnnx_cannot_say_is_said_otherwise(form, kind, tmp_path):
    graph = torch.export.export(kind(), (EXAMPLE,)).module(check_guards=False)
    torch.testing.assert_close(form.rewrite(graph)(EXAMPLE), kind()(EXAMPLE), rtol=0, atol=2e-6)
    artifact = form.write(kind(), EXAMPLE, tmp_path / "s", "fp32", ExportPart())
    assert distance(kind(), outputs("ncnn", artifact, images())[0], images()) < 1e-6
    assert kind is Steps or "Pooling" not in (artifact.path / "model.param").read_text()


class Written(nn.Module):
    """A constant of booleans that isn't one for all time."""

    def forward(self, x):
        seen = torch.arange(16) > 3
        return x * seen.mul_(torch.arange(16) > 5)


class Total(nn.Module):
    def forward(self, x):
        return x.sum((1, 2, 3))


@pytest.mark.parametrize(("kind", "why"), [(Written, "no booleans"), (Total, "Output 0 is one number per input")])
def test_what_ncnn_would_crash_at_or_give_in_another_shape_is_refused(form, kind, why, tmp_path):
    with pytest.raises(ExportError, match=why):
        form.write(kind(), EXAMPLE, tmp_path / "x", "fp32", ExportPart())
    assert list(tmp_path.iterdir()) == []
