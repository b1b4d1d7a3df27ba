"""Core ML packages: written anywhere, their contents compared with the network's."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from export_networks import FAULTS, Attention, Small, Two, exported, images, network
from torch import nn

from deploy_prune.errors import ExportError, MissingDependencyError, ParityError
from deploy_prune.recipe.parts import ExportPart

pytestmark = [pytest.mark.coreml, pytest.mark.filterwarnings("ignore")]
EXAMPLE = images(1)


@pytest.fixture(scope="module")
def form():
    pytest.importorskip("coremltools")
    from deploy_prune.export import coreml

    return coreml


class Wide(Small):
    """With layers that are large enough to be quantised."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Sequential(nn.Linear(12, 300), nn.ReLU(), nn.Linear(300, 5))


@pytest.fixture(scope="module", params=["fp32", "fp16", "int8"])
def written(form, request, tmp_path_factory):
    net = network(Wide)
    path = tmp_path_factory.mktemp("written") / f"a{form.suffix}"
    return net, form.write(net, EXAMPLE, path, request.param, ExportPart())


def test_the_package_agrees_with_the_network(written, form):
    net, artifact = written
    found = form.compare(net, artifact, images(1))
    assert found.layers == 4
    bounds = {"fp32": (0, 1e-6, 1e-5), "fp16": (1e-5, 1e-3, 1e-2), "int8": (1e-3, 5e-3, 0.1)}
    least, most, output = bounds[artifact.precision]
    assert least <= found.weight <= most
    assert found.output <= output


def swapped(net):
    weight, bias = net.head[2].weight.data, net.head[2].bias.data
    weight[[0, 1]], bias[[0, 1]] = weight[[1, 0]], bias[[1, 0]]


def swapped_inside(net):
    weight = getattr(net, "0")[0].weight.data
    weight[[2, 5]] = weight[[5, 2]]


def statistics(net):
    getattr(net, "0")[1].running_mean[0] += 0.3


def one_weight(net):
    net.head[0].weight.data[3, 4] *= -1


@pytest.mark.parametrize("fault", [swapped, swapped_inside, FAULTS["unbiased"], statistics, one_weight])
def test_a_planted_fault_is_caught(written, form, fault):
    net, artifact = written
    damaged = copy.deepcopy(net)
    fault(damaged)
    with pytest.raises(ParityError, match="is off by"):
        form.compare(damaged, artifact)


def test_a_package_of_another_width_is_caught(written, form):
    _, artifact = written
    slim = network(Wide)
    slim.head = nn.Sequential(nn.Linear(12, 150), nn.ReLU(), nn.Linear(150, 5))
    with pytest.raises(ParityError, match=r"head.0 has weights \[300, 12\].* in the network \[150, 12\]"):
        form.compare(slim, artifact)
    slim.head = nn.Linear(12, 5)
    with pytest.raises(ParityError, match="has 4 layers"):
        form.compare(slim, artifact)


def test_wrong_connections_are_caught(written, form):
    """Same layers with the same weights, computed in another way."""

    class Other(Wide):
        def forward(self, x):
            x = getattr(self, "0")(x)
            x = nn.functional.hardswish(self.depth(x))  # the shortcut is missing
            x = nn.functional.pad(x[:, :, ::2, 1::3], (0, 0, 0, 0, 2, 2))
            return self.head(x.mean((2, 3)))

    net, artifact = written
    other = Other()
    other.load_state_dict(net.state_dict())
    with pytest.raises(ParityError, match="program's outputs differ"):
        form.compare(other, artifact, images(1))


def test_another_input_shape_is_caught(written, form):
    net, artifact = written
    with pytest.raises(ParityError, match=r"\[1, 8, 20, 20\]"):
        form.compare(net, replace(artifact, input_shape=(1, 3, 20, 20)))


@pytest.mark.parametrize("file", ["model.mlmodel", "weights/weight.bin", "Manifest.json"])
def test_a_truncated_package_is_refused(form, tmp_path, file):
    artifact = form.write(network(Wide), EXAMPLE, tmp_path / "t.mlpackage", "fp32", ExportPart())
    found = next(artifact.path.rglob(file))
    found.write_bytes(found.read_bytes()[: found.stat().st_size // 2])
    with pytest.raises((ExportError, ParityError)):
        form.compare(network(Wide), artifact)


@pytest.mark.parametrize("kind", [Attention, Two])
def test_graphs_and_several_outputs(form, kind, tmp_path):
    net = network(kind)
    for number, given in enumerate((net, exported(net))):
        artifact = form.write(given, EXAMPLE, tmp_path / f"{number}.mlpackage", "fp32", ExportPart())
        assert form.compare(net, artifact, images(1)).output < 1e-5


def test_a_parameter_of_no_layer_is_compared_too(form, tmp_path):
    net = network(Attention)
    artifact = form.write(net, EXAMPLE, tmp_path / "a.mlpackage", "fp32", ExportPart())
    net.position.data[0, 3] += 0.5
    with pytest.raises(ParityError, match="program's outputs differ"):
        form.compare(net, artifact)


def test_inputs_and_outputs_are_float32(written):
    from coremltools.models import MLModel
    from coremltools.proto import FeatureTypes_pb2

    _, artifact = written
    description = MLModel(str(artifact.path), skip_model_load=True).get_spec().description
    types = [(f.name, f.type.multiArrayType.dataType) for f in (*description.input, *description.output)]
    float32 = FeatureTypes_pb2.ArrayFeatureType.FLOAT32
    assert types == [("input", float32), ("out0", float32)]


def test_same_weights_same_bytes_and_no_paths(written, form, tmp_path):
    _, artifact = written
    again = form.write(network(Wide), EXAMPLE, tmp_path / "b.mlpackage", artifact.precision, ExportPart())
    other = form.write(network(Wide, seed=7), EXAMPLE, tmp_path / "c.mlpackage", artifact.precision, ExportPart())
    assert again.sha256 == artifact.sha256 != other.sha256
    data = b"".join(file.read_bytes() for file in artifact.path.rglob("*") if file.is_file())
    for secret in (str(Path.home()), str(Path(__file__).parents[2]), str(tmp_path.parent), "site-packages"):
        assert secret.encode() not in data


def test_sizes_follow_the_precision(form, tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 300))
    sizes = [form.write(net, EXAMPLE, tmp_path / f"{p}.mlpackage", p, ExportPart()).size_bytes for p in form.precisions]
    assert sizes[0] > 1.8 * sizes[1] > 1.8 * 1.8 * sizes[2]


def test_refusals_leave_nothing(form, tmp_path, monkeypatch):
    class Bad(nn.Module):
        def forward(self, x):
            return x * 2 if float(x.sum()) > 0 else x

    path = tmp_path / "p.mlpackage"
    with pytest.raises(ExportError, match="bf16"):
        form.write(network(), EXAMPLE, path, "bf16", ExportPart())
    with pytest.raises(ExportError, match="dynamic_batch"):
        form.write(network(), EXAMPLE, path, "fp32", ExportPart(dynamic_batch=True))
    with pytest.raises(ExportError, match="can't export"):
        form.write(Bad(), EXAMPLE, path, "fp32", ExportPart())
    monkeypatch.setattr("deploy_prune.export.artifact.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"deploy-prune\[coreml\]"):
        form.write(network(), EXAMPLE, path, "fp32", ExportPart())
    assert list(tmp_path.iterdir()) == []


def test_an_operator_that_cannot_be_computed_is_named(form, tmp_path):
    class Rare(nn.Module):
        def forward(self, x):
            return torch.cumsum(x, 1)

    artifact = form.write(Rare(), EXAMPLE, tmp_path / "r.mlpackage", "fp32", ExportPart())
    with pytest.raises(ExportError, match="cumsum can't be computed here"):
        form.compare(Rare(), artifact)


class Pools(nn.Module):
    """Every kind of padding, pooling and reduction that has its own arithmetic in the check."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Conv2d(3, 6, 3, padding="same", dilation=2, groups=3)
        self.shift = nn.Parameter(torch.randn(6, 1, 1))
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x):
        x = nn.functional.max_pool2d(nn.functional.relu6(self.same(x) * 3 - self.shift), 3, 2, 1)
        x = self.norm(nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False))
        x = nn.functional.leaky_relu(nn.functional.avg_pool2d(x, 3, 1, 1), 0.1)
        x = nn.functional.pad(x, (1, 2, 0, 1), mode="reflect")
        x = torch.cat([x, torch.sigmoid(x).clamp(0.2, 0.7)], 1)
        a, b = x.chunk(2, 1)
        x = torch.stack([a.amax(1), (b / 2 - a.exp().sqrt()).sum(1)], 1)
        return x.squeeze(0).unsqueeze(0).softmax(-1) + torch.tanh(x)


def test_operators_with_arithmetic_of_their_own(form, tmp_path):
    net = network(Pools)
    artifact = form.write(net, EXAMPLE, tmp_path / "o.mlpackage", "fp32", ExportPart())
    assert form.compare(net, artifact, images(1)).output < 1e-5


class Larger(nn.Module):
    """Every way to more pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.ConvTranspose2d(3, 6, 2, 2)
        self.uneven = nn.ConvTranspose2d(6, 4, 3, 2, 1, output_padding=1, groups=2, bias=False)

    def forward(self, x):
        large = self.uneven(self.twice(nn.functional.interpolate(x, scale_factor=2, mode="nearest")))
        height, width = x.shape[2:]
        sizes = [(height * 3, width * 2), (height + 3, width + 5), (height // 2, width)]
        return large, *(
            nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=corners)
            for size in sizes
            for corners in (False, True)
        )


def test_larger_and_smaller_maps_are_compared(form, tmp_path):
    net = network(Larger)
    artifact = form.write(net, EXAMPLE, tmp_path / "l.mlpackage", "fp32", ExportPart())
    assert form.compare(net, artifact, images(1)).output < 1e-5


def test_nothing_is_said(form, tmp_path, capfd):
    form.write(network(), EXAMPLE, tmp_path / "q.mlpackage", "fp32", ExportPart())
    assert capfd.readouterr() == ("", "")


class Constants(nn.Module):
    """Constants on either side of what a convolution and a product give."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.matrix = nn.Conv2d(3, 4, 3), nn.Parameter(torch.randn(14, 7))
        self.c, self.m = nn.Parameter(torch.randn(4, 1, 1)), nn.Parameter(torch.randn(7))

    def forward(self, x):
        y = self.conv(x)
        product = ((self.conv(-x) - self.c) * (self.c - self.conv(x / 2))) @ self.matrix
        return self.m - product, self.c / (y * self.c + 40)


def test_constants_are_not_folded_with_the_wrong_sign(form, tmp_path):
    artifact = form.write(network(Constants), EXAMPLE, tmp_path / "c.mlpackage", "fp32", ExportPart())
    assert form.compare(network(Constants), artifact).output < 1e-5
