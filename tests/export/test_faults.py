"""Every format in every precision: an honest artifact passes, and none with a fault in it does."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deploy_prune.errors import ExportError, MeasurementError, ParityError
from deploy_prune.export import FORMATS
from deploy_prune.export.artifact import describe
from deploy_prune.export.parity import check_parity
from deploy_prune.recipe.parts import ExportPart

SIZE = 16
EXAMPLE = torch.zeros(1, 3, SIZE, SIZE)
WRONG_MEAN, WRONG_STD = 0.4, 1.3


def kinds() -> Iterator[object]:
    """(format, precision) of all that run on a CPU; each with the marker of what it needs."""
    for name, kind in sorted(FORMATS.items()):
        marks = [getattr(pytest.mark, kind.extra.name)] if kind.extra else []
        for precision in kind.precisions if kind.runtime and name != "tensorrt" else ():
            yield pytest.param((name, precision), id=f"{name}-{precision}", marks=marks)


class Net(nn.Module):
    """A stem, a residual block with a depthwise layer, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(16)
        self.depth, self.norm2 = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16)
        self.point, self.norm3 = nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.norm3(self.point(F.relu(self.norm2(self.depth(x))))))
        return self.head(self.pool(x).flatten(1))


def images(count: int, seed: int = 1) -> Tensor:
    """Smooth images of different colours."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    colour = torch.randn(count, 3, 1, 1, generator=generator)
    return F.interpolate(coarse, SIZE, mode="bilinear") + colour


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    made = Net()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.5)
    made.train()
    with torch.no_grad():
        for step in range(20):
            made(images(64, seed=100 + step))
    return made.eval()


def write(kind: tuple[str, str], network: nn.Module, folder, inputs: Tensor | None = None):
    name, precision = kind
    form = FORMATS[name]
    calibration = images(64, seed=2) if inputs is None else inputs
    return form.write(network, EXAMPLE, folder / f"a{form.suffix}", precision, ExportPart(), calibration)


@pytest.fixture(scope="module", params=kinds())
def kind(request) -> tuple[str, str]:
    extra = FORMATS[request.param[0]].extra
    for module in extra.modules if extra else ():
        pytest.importorskip(module)
    return request.param


@pytest.fixture(scope="module")
def honest(kind, network, tmp_path_factory):
    return write(kind, network, tmp_path_factory.mktemp("honest"))


def test_an_honest_artifact_passes(network, honest):
    parity = check_parity(network, honest, images(64))
    assert parity.num_inputs == 64
    if honest.precision == "int8":
        assert parity.snr_db >= parity.least_db + 2, "not just so"
        assert parity.agreement > 0.85


class Before(nn.Module):
    """The network behind something else."""

    def __init__(self, network: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.change = network, change

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.change(x))


def swapped_channels(network: nn.Module) -> nn.Module:
    weight = network.point.weight.data
    weight[[2, 5]] = weight[[5, 2]].clone()
    return network


def swapped_inputs(network: nn.Module) -> nn.Module:
    network.stem.weight.data = network.stem.weight.data[:, [2, 1, 0]]
    return network


def no_bias(network: nn.Module) -> nn.Module:
    network.head.bias.data.zero_()
    return network


def no_norm_bias(network: nn.Module) -> nn.Module:
    network.norm3.bias.data.zero_()
    return network


def no_skip(network: nn.Module) -> nn.Module:
    return nn.Sequential(network.stem, network.norm, nn.ReLU(), network.depth, network.norm2, nn.ReLU(), network.point,
                         network.norm3, nn.ReLU(), network.pool, nn.Flatten(), network.head)  # fmt: skip


def wrong_mean_and_std(network: nn.Module) -> nn.Module:
    return Before(network, lambda x: (x - WRONG_MEAN) / WRONG_STD)


def transposed(network: nn.Module) -> nn.Module:
    return Before(network, lambda x: x.transpose(2, 3))


def mixed_up_layout(network: nn.Module) -> nn.Module:
    return Before(network, lambda x: x.permute(0, 2, 3, 1).reshape(x.shape))


def wrong_channels(network: nn.Module) -> nn.Module:
    """Two channels of the head's input in each other's place: a wrong channel kept."""
    weight = network.head.weight.data
    weight[:, [3, 9]] = weight[:, [9, 3]].clone()
    return network


def half_the_resolution(network: nn.Module) -> nn.Module:
    return Before(network, lambda x: F.avg_pool2d(x, 2))


def half_the_channels(network: nn.Module) -> nn.Module:
    """Half of the block's channels cut off, where none should be."""
    slim = copy.deepcopy(network)
    slim.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
    slim.depth.weight.data = network.depth.weight.data[:8]
    slim.norm2 = nn.BatchNorm2d(8)
    for mine, theirs in zip(slim.norm2.state_dict().values(), network.norm2.state_dict().values(), strict=True):
        mine.copy_(theirs[:8] if theirs.dim() else theirs)
    slim.point = nn.Conv2d(8, 16, 1, bias=False)
    slim.point.weight.data = network.point.weight.data[:, :8]
    return HalfBlock(slim)


class HalfBlock(nn.Module):
    """The network with half a block."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        n = self.network
        x = F.relu(n.norm(n.stem(x)))
        x = F.relu(x + n.norm3(n.point(F.relu(n.norm2(n.depth(x[:, :8]))))))
        return n.head(n.pool(x).flatten(1))


def other_weights(network: nn.Module) -> nn.Module:
    torch.manual_seed(5)
    return Net().eval()


FAULTS = (
    swapped_channels, swapped_inputs, no_bias, no_norm_bias, no_skip, wrong_mean_and_std, transposed, mixed_up_layout,
    other_weights, wrong_channels, half_the_resolution, half_the_channels,
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_caught(kind, network, fault, tmp_path):
    wrong = fault(copy.deepcopy(network)).eval()
    artifact = write(kind, wrong, tmp_path)
    if (kind, fault) == (("executorch", "int8"), half_the_channels):  # XNNPACK has no such slice in 8 bits
        with pytest.raises(MeasurementError, match="can't be run"):
            check_parity(network, artifact, images(64))
        return
    if (kind[0], fault) == ("mnn", mixed_up_layout):  # which MNN itself computes wrongly: that is seen, too
        with pytest.raises(ParityError, match="differs"):
            check_parity(wrong, artifact, images(64))
        return
    check_parity(wrong, artifact, images(64))
    with pytest.raises(ParityError, match="differs"):
        check_parity(network, artifact, images(64))


def not_a_number(network: nn.Module) -> None:
    network.point.weight.data[2, 3] = float("nan")


def infinite_bias(network: nn.Module) -> None:
    network.head.bias.data[1] = float("inf")


@pytest.mark.parametrize("damage", [not_a_number, infinite_bias], ids=lambda damage: damage.__name__)
def test_what_is_not_finite_is_refused_on_either_side(kind, network, honest, damage, tmp_path):
    broken = copy.deepcopy(network)
    damage(broken)
    with pytest.raises(ParityError, match="The network's output 0 is not finite"):
        check_parity(broken, honest, images(64))
    try:
        artifact = write(kind, copy.deepcopy(broken), tmp_path)  # litert clamps what it is given
    except (ExportError, AssertionError, RuntimeError, ValueError):  # some formats' libraries refuse to write it
        return
    with pytest.raises((ParityError, MeasurementError)):
        check_parity(network, artifact, images(64))
    with pytest.raises(ParityError, match="The network's output 0 is not finite"):
        check_parity(broken, artifact, images(64))


class HalfTheOutputs(nn.Module):
    """The first three of six."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[:, :3]


def test_half_the_outputs_are_refused(kind, network, tmp_path):
    artifact = write(kind, HalfTheOutputs(network).eval(), tmp_path)
    with pytest.raises(ParityError, match="differs: it has outputs 64x3, the network 64x6"):
        check_parity(network, artifact, images(64))


def test_an_artifact_for_inputs_of_half_the_size_is_refused(kind, network, tmp_path):
    name, precision = kind
    small = F.avg_pool2d(images(64, seed=2), 2)
    form = FORMATS[name]
    artifact = form.write(network, small[:1], tmp_path / f"a{form.suffix}", precision, ExportPart(), small)
    with pytest.raises(ParityError, match="differs: it is made for inputs 1x3x8x8, and compared on 64x3x16x16"):
        check_parity(network, artifact, images(64))


def test_an_output_that_never_changes_is_compared_in_int8_too(kind, network, tmp_path):
    if kind[1] != "int8":
        pytest.skip("in other precisions all outputs are compared alike")

    class Two(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.network, self.value = network, value

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.network(x)
            return y, F.relu(y * 0) + self.value

    artifact = write(kind, Two(1.0).eval(), tmp_path)
    check_parity(Two(1.0).eval(), artifact, images(64))
    with pytest.raises(ParityError, match="in an output that never changes"):
        check_parity(Two(1.2).eval(), artifact, images(64))


def test_the_dense_artifact_is_not_the_slim_one(kind, network, tmp_path):
    """Half of the block's channels are gone: their share of the next layer's sums is missing."""
    slim = copy.deepcopy(network)
    slim.norm2.weight.data[:8], slim.norm2.bias.data[:8] = 0, 0
    artifact = write(kind, network, tmp_path)
    with pytest.raises(ParityError, match="differs"):
        check_parity(slim, artifact, images(64))


def files(path):
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def test_an_edited_artifact_is_not_run(kind, network, tmp_path):
    artifact = write(kind, network, tmp_path)
    largest = max(files(artifact.path), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    with pytest.raises(MeasurementError, match="has changed since it was written"):
        check_parity(network, artifact, images(64))


def test_a_truncated_artifact_is_an_error(kind, network, tmp_path):
    artifact = write(kind, network, tmp_path)
    largest = max(files(artifact.path), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    cut = describe(
        artifact.path, format=artifact.format, precision=artifact.precision, input_shape=artifact.input_shape,
        versions={}, layout=artifact.layout,
    )  # fmt: skip
    with pytest.raises((MeasurementError, ParityError)):
        check_parity(network, cut, images(64))


def test_the_files_inputs_and_outputs_are_float32_and_smaller_precisions_smaller_files(kind, network, honest, tmp_path):
    if honest.precision == "fp32":
        pytest.skip("there is nothing to compare it with")
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    small, large = (write((kind[0], p), wide.eval(), folder(tmp_path, p)) for p in (kind[1], "fp32"))
    if kind == ("executorch", "fp16"):  # XNNPACK is given its weights in float32, and halves them when it starts
        assert small.size_bytes < 1.1 * large.size_bytes
    else:
        assert small.size_bytes < 0.75 * large.size_bytes
    check_parity(wide, small, images(64))


def folder(parent, name):
    (parent / name).mkdir()
    return parent / name


def test_int8_without_real_inputs_is_refused(kind, network, tmp_path):
    name, precision = kind
    if precision != "int8":
        pytest.skip("it needs none")
    for calibration in (None, images(0)):
        with pytest.raises(ExportError, match="calibration"):
            FORMATS[name].write(network, EXAMPLE, tmp_path / "a", precision, ExportPart(), calibration)
    assert list(tmp_path.iterdir()) == []


def test_same_weights_same_bytes(kind, network, honest, tmp_path):
    if kind[0] != "onnx":
        pytest.skip("other formats' libraries don't all promise it")
    assert write(kind, network, tmp_path).sha256 == honest.sha256
    assert replace(honest, path=tmp_path) != honest
