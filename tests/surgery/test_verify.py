"""masked == cut on the networks people use, and checks that can fail."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from surgery_networks import build, groups_of, half
from torch import Tensor, nn

from deploy_prune.errors import VerificationError
from deploy_prune.recipe.parts import PrunePart
from deploy_prune.search.gated_network import gates_of
from deploy_prune.surgery import verify as verify_module
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.groups import find_groups
from deploy_prune.surgery.try_groups import Trials, keep_cuttable, sound
from deploy_prune.surgery.verify import TOLERANCE, gates, prove, verify, without_strongest
from deploy_prune.types import Axis, ChannelGroup, Keep, Structure

NETWORKS = [
    ("resnet20", 32),
    ("torchvision:resnet18", 64),
    ("torchvision:mobilenet_v2", 64),
    ("torchvision:mobilenet_v3_small", 64),
    ("torchvision:vgg11_bn", 64),
]


@pytest.mark.parametrize(("source", "size"), NETWORKS)
def test_masked_equals_cut(source: str, size: int) -> None:
    network, x = build(source, size)
    structure = keep_cuttable(network, groups_of(network, x), (x[:2],), gates_of, PrunePart())
    keep = half(structure)
    before = {k: v.clone() for k, v in network.state_dict().items()}

    slim = cut(network, structure, keep)
    proof = verify(network, slim, structure, keep, (x[:8],), gates_of(structure))

    assert proof.precision == "float32"
    assert proof.difference <= TOLERANCE
    assert proof.moved_by_input > 100 * proof.difference
    assert proof.moved_by_channel > 100 * proof.difference
    assert sum(p.numel() for p in slim.parameters()) < 0.75 * sum(p.numel() for p in network.parameters())
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_a_wrong_cut_is_caught() -> None:
    network, x = build("torchvision:resnet18", 64)
    structure = groups_of(network, x)
    keep = half(structure)
    slim = cut(network, structure, keep)
    with torch.no_grad():
        slim.layer1[0].conv2.weight[0] *= 1.5
    with pytest.raises(VerificationError, match="differs from the masked"):
        verify(network, slim, structure, keep, (x[:4],), gates_of(structure))


def test_keeping_the_wrong_channels_is_caught() -> None:
    network, x = build("resnet20", 32)
    structure = groups_of(network, x)
    name = "layer1.0.conv1"
    keep = {g.name: torch.ones(g.channels, dtype=torch.bool) for g in structure.groups}
    keep[name] = torch.arange(16) < 8
    slim = cut(network, structure, {**keep, name: ~keep[name]})
    with pytest.raises(VerificationError, match="differs"):
        verify(network, slim, structure, keep, (x[:4],), gates_of(structure))


def test_a_blind_network_proves_nothing() -> None:
    network, x = build("torchvision:mobilenet_v2", 64)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(1e12)
    structure = groups_of(network, x)
    keep = half(structure)
    with pytest.raises(VerificationError, match="proves nothing"):
        verify(network, cut(network, structure, keep), structure, keep, (x[:4],), gates_of(structure))


def test_a_network_made_blind_by_the_cut_is_proven_on_a_copy_that_sees() -> None:
    network, x = build("torchvision:mobilenet_v2", 64)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(1e12)
    state = {k: v.clone() for k, v in network.state_dict().items()}
    structure = groups_of(network, x)
    proof = prove(network, structure, half(structure), (x[:8],), gates_of(structure))
    assert proof.calibrated
    assert proof.difference <= proof.tolerance
    assert min(proof.moved_by_input, proof.moved_by_channel) > 1e-3
    assert all(torch.equal(state[k], v) for k, v in network.state_dict().items())
    assert not network.training


def test_sizes_written_in_the_code_are_cut_through_the_exported_graph() -> None:
    """CIFAR ResNets pad their shortcuts by numbers written in the code."""
    network, x = build("resnet20", 32)
    found = groups_of(network, x)
    settled = keep_cuttable(network, found, (x[:2],), gates_of, PrunePart())
    assert settled.blueprint is not None
    assert {g.name for g in settled.groups} == {g.name for g in found.groups}


class Counted(nn.Module):
    """Python that counts channels, and does something else when some are gone: no graph shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = self.second(x * torch.ones(8).view(8, 1, 1))
        return self.head(x.mean((2, 3)))


def test_what_no_form_can_cut_is_left_whole_with_the_reason() -> None:
    network = Counted().eval()
    x = torch.randn(4, 3, 8, 8)
    found = groups_of(network, x)
    settled = keep_cuttable(network, found, (x,), gates_of, PrunePart())
    assert "first" not in {g.name for g in settled.groups}
    assert next(w.reason for w in settled.whole if w.name == "first")
    dense = {g.name: g.channels for g in found.groups}
    for before, after in zip(found.layers, settled.layers, strict=True):
        assert before.inputs.at(dense) == after.inputs.at(dense)


def test_settle_keeps_a_sound_structure_as_it_is() -> None:
    network, x = build("torchvision:resnet18", 64)
    structure = groups_of(network, x)
    assert keep_cuttable(network, structure, (x[:2],), gates_of, PrunePart()) is structure


def test_settle_finds_a_group_whose_cut_is_wrong() -> None:
    network, x = build("torchvision:resnet18", 64)
    structure = groups_of(network, x)
    first = structure.groups[1]
    forgets_consumers = replace(first, consumers=())
    broken = replace(structure, groups=(structure.groups[0], forgets_consumers, *structure.groups[2:]))
    trials = Trials(network=network, inputs=(x[:2],), gates_of=gates_of)
    failure = trials.failure(broken, [forgets_consumers])
    assert failure is not None
    assert "differ by" in failure.why or "RuntimeError" in failure.why
    left = sound(trials, broken, failure, broken.groups)
    assert [w.name for w in left.whole if "differ by" in w.reason or "RuntimeError" in w.reason] == [first.name]


@pytest.fixture(scope="module")
def proven() -> tuple[nn.Module, Structure, Keep, Tensor]:
    """A network, its structure, what is kept, and inputs."""
    network, x = build("torchvision:resnet18", 64)
    structure = groups_of(network, x)
    return network, structure, half(structure), x[:4]


def not_a_number(slim: nn.Module) -> None:
    slim.layer3[0].conv1.weight.data[1, 0, 0, 0] = float("nan")


def infinite(slim: nn.Module) -> None:
    slim.fc.bias.data[3] = float("inf")


def wrong_channel(slim: nn.Module) -> None:
    weight = slim.layer2[0].conv2.weight.data
    weight[:, [0, 1]] = weight[:, [1, 0]].clone()


def half_the_outputs(slim: nn.Module) -> None:
    slim.fc = nn.Linear(slim.fc.in_features, slim.fc.out_features // 2)


def half_the_resolution(slim: nn.Module) -> None:
    slim.conv1.register_forward_pre_hook(lambda module, args: nn.functional.avg_pool2d(args[0], 2))


def two_outputs(slim: nn.Module) -> None:
    slim.fc.register_forward_hook(lambda module, args, y: (y, y))


PLANTED = {
    not_a_number: "The cut network's output has values that are not finite.*layer3.0.conv1.weight has such values",
    infinite: "The cut network's output has values that are not finite.*fc.bias has such values",
    wrong_channel: "differs from the masked",
    half_the_outputs: "differs from the masked one's by inf",
    half_the_resolution: "differs from the masked",
    two_outputs: "differs from the masked one's by inf",
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_refused(
    proven: tuple[nn.Module, Structure, Keep, Tensor], plant: Callable[..., None]
) -> None:
    network, structure, keep, x = proven
    slim = cut(network, structure, keep)
    verify(network, slim, structure, keep, (x,), gates_of(structure))
    plant(slim)
    with pytest.raises(VerificationError, match=PLANTED[plant]):
        verify(network, slim, structure, keep, (x,), gates_of(structure))


def test_a_slim_network_of_half_the_width_it_should_have_is_refused(
    proven: tuple[nn.Module, Structure, Keep, Tensor],
) -> None:
    network, structure, keep, x = proven
    dense = {name: torch.ones_like(mask) for name, mask in keep.items()}
    with pytest.raises(VerificationError, match="differs from the masked"):
        verify(network, cut(network, structure, keep), structure, dense, (x,), gates_of(structure))


def test_a_dense_network_that_is_not_finite_proves_nothing(
    proven: tuple[nn.Module, Structure, Keep, Tensor],
) -> None:
    network, structure, keep, x = proven
    broken = copy.deepcopy(network)
    broken.bn1.running_var.fill_(float("nan"))
    with pytest.raises(VerificationError, match="The masked network's output has values that are not finite.*bn1"):
        prove(broken, structure, keep, (x,), gates_of(structure))


def test_dropping_a_groups_only_kept_unit_is_no_proof_of_sight() -> None:
    """Without any kept channel, a layer norm's statistics are 0 / 0."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.head = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.first(x)))

    torch.manual_seed(0)
    network, x = Normed().eval(), torch.randn(4, 6)
    structure = groups_of(network, x)
    keep = {"first": torch.arange(8) == 3}
    with pytest.raises(VerificationError, match="proves nothing"):
        verify(network, cut(network, structure, keep), structure, keep, (x,), gates_of(structure))


# --- how near, and whether it would notice ----------------------------------------------------------------------------


class Cancelling(nn.Module):
    """Its output is what is left of two large sums, so float32 loses some of it."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.size = size
        self.first, self.head = nn.Linear(6, 96), nn.Linear(96, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.head(x + self.size) - self.head(torch.full_like(x, self.size))


def cancelling(size: float) -> tuple[nn.Module, nn.Module, Structure, Keep, Tensor]:
    """A network, its cut, its structure, what is kept, and inputs."""
    torch.manual_seed(0)
    network, x = Cancelling(size).eval(), torch.randn(8, 6)
    structure = groups_of(network, x)
    keep = half(structure)
    return network, cut(network, structure, keep), structure, keep, x


@pytest.mark.parametrize(("size", "precision"), [(0.0, "float32"), (3000.0, "float64")])
@pytest.mark.parametrize(("off", "refused"), [(0.0, False), (1e-4, True)])
def test_a_cut_that_is_off_by_a_ten_thousandth_is_refused(
    size: float, precision: str, off: float, refused: bool
) -> None:
    network, slim, structure, keep, x = cancelling(size)
    with torch.no_grad():
        slim.head.weight[0] *= 1 + off
    if refused:
        with pytest.raises(
            VerificationError, match=r"differs from the masked one's by \d.\de-0[45] \(relative, float64\)"
        ):
            verify(network, slim, structure, keep, (x,), gates_of(structure))
    else:
        proof = verify(network, slim, structure, keep, (x,), gates_of(structure))
        assert (proof.precision, proof.difference <= proof.tolerance) == (precision, True)
        assert not proof.calibrated
        assert proof.num_inputs == 8


def test_where_float32_is_too_noisy_float64_sees_weights_that_are_off_by_one_unit_in_the_last_place() -> None:
    network, slim, structure, keep, x = cancelling(3000.0)
    with torch.no_grad():
        slim.head.weight.copy_(slim.head.weight.nextafter(torch.tensor(torch.inf)))
    with pytest.raises(VerificationError, match=r"by \d.\de-0[78] \(relative, float64\); allowed is 1e-09"):
        verify(network, slim, structure, keep, (x,), gates_of(structure))


class Skipped(nn.Module):
    """Its channels do next to nothing beside what skips them."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.share * self.second(self.first(x).relu())


@pytest.mark.parametrize("share", [1.0, 1e-7])
def test_an_output_that_no_channel_moves_proves_nothing(share: float) -> None:
    """It moves with the input all the same; any cut of these channels would pass."""
    torch.manual_seed(0)
    network, x = Skipped(share).eval(), torch.randn(8, 6)
    structure = groups_of(network, x)
    assert [g.name for g in structure.groups] == ["first"]
    keep = half(structure)
    if share == 1:
        proof = verify(network, cut(network, structure, keep), structure, keep, (x,), gates_of(structure))
        assert min(proof.moved_by_input, proof.moved_by_channel) > 0.01
        return
    with pytest.raises(VerificationError, match="proves nothing.*when a kept channel of every group changes"):
        verify(network, cut(network, structure, keep), structure, keep, (x,), gates_of(structure))


# --- what the proof is made of ----------------------------------------------------------------------------------------


def one_group(*consumers: Axis, channels: int = 4) -> Structure:
    group = ChannelGroup(name="a", channels=channels, period=1, consumers=consumers, members=consumers)
    return Structure(groups=(group,), layers=(), whole=())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_gates_are_one_for_what_stays_in_the_inputs_type(dtype: torch.dtype) -> None:
    structure = one_group()
    found = gates(structure, {"a": torch.tensor([True, False, False, True])}, torch.zeros(2, dtype=dtype))
    assert (found["a"].tolist(), found["a"].dtype) == ([1, 0, 0, 1], dtype)
    assert gates(structure, {}, torch.zeros(2, dtype=dtype))["a"].tolist() == [1, 1, 1, 1]
    assert gates(structure, {}, torch.zeros(2, dtype=torch.int64))["a"].dtype == torch.float32, "of whole numbers"


class Read(nn.Module):
    """Two weights that read the same four units; the second reads each twice, and something else besides."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor([[1.0, -4.0, 2.0, 0.5], [1.0, 1.0, 0.0, 0.5]]))
        self.second = nn.Parameter(torch.tensor([[0.0, 0.0, 9.0, 0.0, 0.0, 2.0, -2.0, 7.0, 7.0]]))

    def axes(self) -> tuple[Axis, Axis]:
        twice = torch.tensor([0, 0, -1, 1, 1, 2, 2, 3, 3])
        return Axis(tensor="first", axis=1, unit_of=torch.arange(4)), Axis(tensor="second", axis=1, unit_of=twice)


@pytest.mark.parametrize(
    ("readers", "kept", "fewer"),
    [
        ((0,), [1, 1, 1, 1], [1, 0, 1, 1]),  # 2, 5, 2, 1
        ((0,), [1, 0, 0, 1], [0, 0, 0, 1]),
        ((1,), [1, 1, 1, 1], [1, 1, 1, 0]),  # 0, 0, 4, 14
        ((0, 1), [1, 1, 1, 0], [1, 1, 0, 0]),  # 2, 5, 6, 15, of which the last is gone
        ((1, 0), [1, 1, 1, 0], [1, 1, 0, 0]),
        ((0, 1), [0, 1, 0, 0], [0, 0.5, 0, 0]),  # without its only unit a norm would divide by 0
        ((), [0, 1, 1, 0], [0, 0, 1, 0]),  # read by nothing that is known
    ],
)
def test_the_unit_that_is_read_most_of_those_kept_is_dropped(
    readers: tuple[int, ...], kept: list[float], fewer: list[float]
) -> None:
    network = Read()
    (group,) = one_group(*(network.axes()[i] for i in readers)).groups
    gate = torch.tensor(kept, dtype=torch.float32)
    assert without_strongest(network, group, gate).tolist() == fewer
    assert gate.tolist() == kept


class Two(nn.Module):
    """The second input does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.first(x) + 0 * self.second(y))


@pytest.mark.parametrize("same", [0, 1])
def test_all_inputs_change_when_the_output_is_to_move(same: int) -> None:
    torch.manual_seed(0)
    network = Two().eval()
    inputs = [torch.randn(4, 6), torch.randn(4, 6)]
    structure = find_groups(network, tuple(x[:1] for x in inputs), PrunePart())
    keep = half(structure)
    slim = cut(network, structure, keep)
    inputs[same] = inputs[same][:1].expand(4, -1)
    if same == 1:
        verify(network, slim, structure, keep, inputs, gates_of(structure))
    else:
        with pytest.raises(VerificationError, match="when its input changes"):
            verify(network, slim, structure, keep, inputs, gates_of(structure))


def test_a_network_without_groups_is_proven_by_its_input() -> None:
    torch.manual_seed(0)
    network, x = nn.Linear(6, 3).eval(), torch.randn(4, 6)
    structure = Structure(groups=(), layers=(), whole=())
    proof = verify(network, copy.deepcopy(network), structure, {}, (x,), gates_of(structure))
    assert (proof.difference, proof.num_inputs) == (0, 4)
    assert proof.moved_by_channel == proof.moved_by_input > 0.1


@pytest.mark.parametrize("training", [True, False])
def test_the_proof_leaves_both_networks_in_their_mode(training: bool) -> None:
    network, slim, structure, keep, x = cancelling(3000.0)
    network.train(training), slim.train(training)
    weights = [p.clone() for p in (*network.parameters(), *slim.parameters())]
    verify(network, slim, structure, keep, (x,), gates_of(structure))
    assert {m.training for m in (*network.modules(), *slim.modules())} == {training}
    after = (*network.parameters(), *slim.parameters())
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(after, weights, strict=True))


def test_strengths_of_a_group_of_two_units_add_up() -> None:
    network = nn.ParameterDict({"a": torch.tensor([[5.0, 1.0]]), "b": torch.tensor([[1.0, 3.0]])})
    axes = tuple(Axis(tensor=name, axis=1, unit_of=torch.arange(2)) for name in ("a", "b"))
    (group,) = one_group(*axes, channels=2).groups
    assert without_strongest(network, group, torch.ones(2)).tolist() == [0, 1], "6 and 4"


def test_an_output_that_is_lost_with_a_channel_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    network, slim, structure, keep, x = cancelling(0.0)
    monkeypatch.setattr(verify_module, "_sensitivity", lambda *args: (0.5, torch.inf))
    with pytest.raises(VerificationError, match="proves nothing"):
        verify(network, slim, structure, keep, (x,), gates_of(structure))


def test_a_small_network_with_stale_statistics_is_proven_on_a_copy() -> None:
    """Quickly, what the larger one above shows."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    network[1].running_var.fill_(1e12)
    network[1].momentum = 0.1
    x = torch.randn(8, 6)
    structure = groups_of(network, x)
    keep = half(structure)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(VerificationError, match="proves nothing"):
        verify(network, cut(network, structure, keep), structure, keep, (x,), gates_of(structure))
    proof = prove(network, structure, keep, (x,), gates_of(structure))
    assert proof.calibrated
    assert proof.difference <= proof.tolerance
    assert min(proof.moved_by_input, proof.moved_by_channel) > 0.1
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert (network[1].momentum, network.training) == (0.1, False)
