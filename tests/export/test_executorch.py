"""ExecuTorch files: what is ExecuTorch's own. test_mobile_files.py has what it shares with other formats."""

import warnings

import pytest
import torch
from export_networks import payload
from three_outputs import EXAMPLE, calibration, found_in, images, least_db, network, noise_db
from torch import Tensor, nn

from deploy_prune.errors import ExportError
from deploy_prune.export import executorch
from deploy_prune.recipe.parts import ExportPart

pytestmark = pytest.mark.executorch


@pytest.fixture(scope="module")
def runtime():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("executorch.runtime")
        pytest.importorskip("torchao")
        return payload("executorch")


def numbered() -> nn.Module:
    """Top-level modules whose names are numbers, one of them a batch norm after a convolution."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()


@pytest.mark.parametrize("precision", executorch.precisions)
def test_modules_named_by_numbers(runtime, tmp_path, precision):
    net, x = numbered(), images(8)
    artifact = executorch.write(net, EXAMPLE, tmp_path / "n.pte", precision, ExportPart(), calibration())
    (found,) = found_in("executorch", artifact, x)
    assert noise_db(net(x).detach().numpy(), found) > least_db("executorch", precision)
    assert next(net.parameters()).dtype == torch.float32


class Windows(nn.Module):
    """Maxima over windows, whose step the calls leave out."""

    def forward(self, x):
        return nn.functional.max_pool2d(x, 2), nn.functional.max_pool2d(x.relu(), (3, 2))


def test_a_pool_without_a_step_is_lowered(runtime, tmp_path):
    x = images(1)
    artifact = executorch.write(Windows(), EXAMPLE, tmp_path / "w.pte", "fp32", ExportPart())
    for ours, theirs in zip(Windows()(x), found_in("executorch", artifact, x), strict=True):
        assert torch.equal(ours, torch.as_tensor(theirs))


class Slopes(nn.Module):
    """PReLUs of a sequence, with one slope and with several, of a row, and of images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.wave, self.row = nn.Conv2d(3, 4, 3), nn.Conv1d(4, 4, 3), nn.Linear(4, 5)
        self.slopes = nn.ModuleList(nn.PReLU(n, init=0.1 + n / 8) for n in (4, 1, 4, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.slopes[0](self.image(x)).flatten(2)
        x = self.slopes[2](self.wave(self.slopes[1](x))).mean(2)
        return self.slopes[3](self.row(x))


@pytest.mark.parametrize("precision", executorch.precisions)
def test_slopes_of_what_is_no_image(runtime, tmp_path, precision):
    net, x = Slopes().eval(), images(8)
    artifact = executorch.write(net, EXAMPLE, tmp_path / "s.pte", precision, ExportPart(), calibration())
    (found,) = found_in("executorch", artifact, x)
    assert noise_db(net(x).detach().numpy(), found) > least_db("executorch", precision)


@pytest.mark.parametrize("layer", [nn.Conv3d(3, 2, 1), nn.Conv3d(3, 2, 3, padding="same"), nn.ConvTranspose3d(3, 2, 1)])
def test_a_3d_convolution_is_refused_by_name(runtime, tmp_path, layer):
    class Volume(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.deep = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.deep(torch.stack([x, x], 2)).sum(2)

    with pytest.raises(ExportError, match="no 3-D convolutions, as the network's deep is one"):
        executorch.write(Volume().eval(), EXAMPLE, tmp_path / "v.pte", "fp32", ExportPart())


def test_threads_are_set(runtime, tmp_path):
    from executorch.extension.pybindings import portable_lib

    artifact = executorch.write(network(), EXAMPLE, tmp_path / "a.pte", "fp32", ExportPart())
    for threads in (2, 1):
        runtime.Model(str(artifact.path), threads, "NCHW")
        assert portable_lib._threadpool_get_thread_count() == threads


class Layer(nn.Module):
    """A transformer's layer and a residual convolution: norms read all sums but the convolution's."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.convolution = nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 16, 1)
        self.first, self.last = nn.LayerNorm(16), nn.LayerNorm(16)
        self.linear, self.head = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        x = self.convolution(x + x.relu()).flatten(2).transpose(1, 2)
        x = x + x.square()
        x = x + self.linear(self.first(x))
        return self.head(self.last(x).mean(1))


def test_sums_that_norms_read_stay_in_float(runtime):
    program = torch.export.export(Layer().eval(), (EXAMPLE,))
    quantized = executorch._quantize(program, (EXAMPLE,), calibration())
    sums = [node for node in quantized.graph.nodes if node.target is torch.ops.aten.add.Tensor]
    assert [any("quantize" in user.name for user in node.users) for node in sums] == [True, False, False]


class Weighed(nn.Module):
    """A sum with a factor, and a mean over positions; the outputs move little beside their bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Conv2d(3, 8, 4, padding="same"), nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.add(self.a(x), self.b(x), alpha=10)
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def test_sums_with_a_factor_means_and_outputs_keep_their_precision_in_int8(runtime, tmp_path):
    net, x = Weighed().eval(), images(64)
    artifact = executorch.write(net, x[:1], tmp_path / "w.pte", "int8", ExportPart(), x)
    (found,) = found_in("executorch", artifact, x)
    assert noise_db(net(x).detach().numpy(), found) > 20


class Small(nn.Module):
    """Values of about 1e-3, and weights of 1e-4, that a norm makes large again."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, eps=1e-16), nn.Linear(8, 4)
        with torch.no_grad():
            self.a.weight.mul_(1e-3)
            self.a.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.a(x * 1e-3)).relu().mean((2, 3)))


def test_small_values_and_weights_have_all_steps_of_8_bits(runtime, tmp_path):
    net, x = Small().eval(), images(32)
    artifact = executorch.write(net, x[:1], tmp_path / "s.pte", "int8", ExportPart(), x)
    (found,) = found_in("executorch", artifact, x)
    assert noise_db(net(x).detach().numpy(), found) > 25
