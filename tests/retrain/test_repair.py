"""Least squares after a cut: what the rest can make up for is made up for, to the last digits; nothing gets worse."""

import copy

import pytest
import torch
from torch import nn

from deploy_prune.data.examples import Batch
from deploy_prune.recipe.parts import PrunePart
from deploy_prune.retrain import repair as repair_module
from deploy_prune.retrain.features import match
from deploy_prune.retrain.repair import repair, some_inputs
from deploy_prune.search.gated_network import gates_of
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.groups import find_groups
from deploy_prune.surgery.try_groups import keep_cuttable


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


IMAGES, SOUNDS, VECTORS = drawn(128, 3, 8, 8), drawn(128, 3, 20), drawn(256, 6)


class Residual(nn.Module):
    """Two blocks that add to what they read."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
                nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8),
            )
            for _ in range(2)
        )  # fmt: skip
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.relu().mean((2, 3)))


def plain():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip


def depthwise():
    return nn.Sequential(
        nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.ReLU(), nn.Conv2d(8, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip


def sound():
    return nn.Sequential(
        nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)
    )


def perceptron():
    return nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 3))


NETWORKS = {
    "plain": (plain, IMAGES), "residual": (Residual, IMAGES), "depthwise": (depthwise, IMAGES),
    "sound": (sound, SOUNDS), "perceptron": (perceptron, VECTORS),
}  # fmt: skip


def trained_like(make, x):
    """A network whose batch norms have seen something."""
    torch.manual_seed(0)
    network = make()
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    return seen(network, x)


def seen(network, x):
    """Its batch norms know these inputs."""
    network.train()
    with torch.no_grad():
        for _ in range(150):
            network(x)
    return network.eval()


def halved(dense, x):
    """(the network with every other channel, how it was made)."""
    structure = keep_cuttable(dense, find_groups(dense, (x[:2],), PrunePart()), (x[:2],), gates_of, PrunePart())
    keep = {g.name: torch.arange(g.channels) % 2 == 0 for g in structure.groups}
    return cut(dense, structure, keep).eval(), match(structure, keep)


def error(slim, dense, x):
    with torch.no_grad():
        wanted = dense(x)
        return float((slim(x) - wanted).square().mean() / wanted.var())


@pytest.mark.parametrize("kind", NETWORKS)
def test_it_comes_nearer_to_the_dense_network_also_on_other_inputs(kind):
    make, x = NETWORKS[kind]
    dense = trained_like(make, x)
    slim, made = halved(dense, x)
    others = drawn(*x.shape, seed=2)
    before = error(slim, dense, others)
    found = repair(slim, dense, made, (x,))
    assert found.examples == len(x)
    assert found.layers == sum(isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d) for m in dense.modules())
    assert found.after < 0.9 * found.before
    assert error(slim, dense, others) < 0.9 * before


@pytest.mark.parametrize("kind", ["plain", "depthwise"])
def test_channels_that_say_what_others_say_are_made_up_for(kind):
    """Every second channel is twice the one before it (and its norm alike), so that nothing is lost with it."""
    make, x = NETWORKS[kind]
    torch.manual_seed(0)
    dense = make()
    for module in dense:
        if isinstance(module, nn.Conv2d):
            module.weight.data[1::2] = 2 * module.weight.data[::2]
            if module.bias is not None:
                module.bias.data[1::2] = 2 * module.bias.data[::2]
    dense = seen(dense, x)
    slim, made = halved(dense, x)
    before = error(slim, dense, x)
    repair(slim, dense, made, (x,))
    assert before > 0.1
    assert error(slim, dense, x) < 2e-3


def test_what_was_not_cut_stays_as_it_is():
    dense = trained_like(Residual, IMAGES)
    structure = find_groups(dense, (IMAGES[:2],), PrunePart())
    same = copy.deepcopy(dense)
    found = repair(same, dense, match(structure, {}), (IMAGES,))
    for (name, one), other in zip(same.named_parameters(), dense.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-4), name
    assert found.before < 1e-3


def test_other_weights_become_the_dense_ones():
    dense = trained_like(plain, IMAGES)
    structure = find_groups(dense, (IMAGES[:2],), PrunePart())
    other = copy.deepcopy(dense)
    other[0].weight.data += 0.3 * drawn(*other[0].weight.shape)
    other[8].bias.data += 1
    assert error(other, dense, IMAGES) > 1
    repair(other, dense, match(structure, {}), (IMAGES,))
    assert error(other, dense, IMAGES) < 1e-2


def test_it_sees_into_a_network_that_runs_as_its_graph():
    class Written(nn.Module):
        """Code with a size in it, so that a cut network is the exported graph."""

        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(6, 16), nn.Linear(16, 3)

        def forward(self, x):
            return self.two(self.one(x).relu().reshape(-1, 16))

    dense = trained_like(Written, VECTORS)
    slim, made = halved(dense, VECTORS)
    assert isinstance(slim, torch.fx.GraphModule)
    before = error(slim, dense, VECTORS)
    assert repair(slim, dense, made, (VECTORS,)).layers == 2
    assert error(slim, dense, VECTORS) < 0.9 * before


class Twice(nn.Module):
    """A layer that runs on pictures of two sizes, as heads of detectors do."""

    def __init__(self):
        super().__init__()
        self.one, self.again, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Linear(6, 3)

    def forward(self, x):
        x = self.one(x).relu()
        small = x.mean((2, 3), keepdim=True)
        return self.last((self.again(x).relu() + self.again(small)).mean((2, 3)))


def test_a_layer_that_runs_twice_stays_as_it_is():
    dense = trained_like(Twice, IMAGES)
    slim, made = halved(dense, IMAGES)
    before = slim.again.weight.clone()
    assert repair(slim, dense, made, (IMAGES,)).layers == 2
    assert torch.equal(slim.again.weight, before)


def test_both_networks_come_back_as_they_were():
    dense = trained_like(plain, IMAGES)
    slim, made = halved(dense, IMAGES)
    slim.train()
    slim[1].eval()
    modes = [m.training for m in slim.modules()]
    momenta = [m.momentum for m in slim.modules() if isinstance(m, nn.BatchNorm2d)]
    before = copy.deepcopy(dense.state_dict())
    repair(slim, dense, made, (IMAGES,))
    assert [m.training for m in slim.modules()] == modes
    assert [m.momentum for m in slim.modules() if isinstance(m, nn.BatchNorm2d)] == momenta
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in (*slim.parameters(), *dense.parameters()))


def test_it_comes_to_the_same_each_time():
    dense = trained_like(plain, IMAGES)
    found = []
    for _ in range(2):
        slim, made = halved(dense, IMAGES)
        state = torch.get_rng_state()
        repair(slim, dense, made, (IMAGES,))
        assert torch.equal(torch.get_rng_state(), state)
        found.append(slim.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("dead", [0.0, 1.0], ids=["nothing", "one number"])
def test_inputs_that_say_nothing_leave_finite_weights(dead):
    dense = trained_like(plain, IMAGES)
    slim, made = halved(dense, IMAGES)
    repair(slim, dense, made, (torch.full_like(IMAGES, dead),))
    assert all(bool(tensor.isfinite().all()) for tensor in slim.state_dict().values())


def test_it_looks_at_so_many_examples_and_no_more(monkeypatch):
    def batches(size, shape):
        while True:
            yield Batch((torch.zeros(size, *shape), torch.zeros(size, 2)), None)

    assert [len(x) for x in some_inputs(batches(48, (3, 8, 8)))] == [1024, 1024]
    monkeypatch.setattr(repair_module, "NUMBERS", 100 * (3 * 64 + 2))
    assert len(some_inputs(batches(48, (3, 8, 8)))[0]) == 100
    assert len(some_inputs(batches(128, (3, 8, 8)))[0]) == 128, "a batch, where that is more"


def with_constants(*behind):
    """Every second of eight channels is always 3, and the first one always 1; what the others see, ``behind`` them."""
    torch.manual_seed(0)
    first = nn.Linear(6, 8)
    first.weight.data[[0, 1, 3, 5, 7]] = 0
    first.bias.data[[0, 1, 3, 5, 7]] = torch.tensor([1.0, 3, 3, 3, 3])
    return seen(nn.Sequential(first, nn.ReLU(), *behind), VECTORS)


def errors_without_them(dense):
    """Before and after the repair of the network without every second channel of its first layer."""
    structure = find_groups(dense, (VECTORS[:2],), PrunePart())
    keep = {g.name: torch.arange(8) % 2 == 0 for g in structure.groups if g.channels == 8}
    slim = cut(dense, structure, keep).eval()
    before = error(slim, dense, VECTORS)
    repair(slim, dense, match(structure, keep), (VECTORS,))
    return before, error(slim, dense, VECTORS)


def test_a_norm_takes_away_what_was_always_the_same():
    dense = with_constants(nn.Linear(8, 6, bias=False), nn.BatchNorm1d(6), nn.Sigmoid(), nn.Linear(6, 3))
    before, after = errors_without_them(dense)
    assert before > 0.1
    assert after < 1e-4


def test_a_layer_with_nothing_that_shifts_it_uses_what_it_reads():
    before, after = errors_without_them(with_constants(nn.Linear(8, 3, bias=False)))
    assert before > 0.3
    assert after < 0.1 * before


class Turned(nn.Module):
    """Layers that see windows, or sequences before examples; the first and the last one don't."""

    def __init__(self):
        super().__init__()
        self.first, self.of_windows, self.of_turned = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x).relu()
        x = x + self.of_windows(x.flatten(0, 1)).unflatten(0, x.shape[:2]).relu()
        x = x + self.of_turned(x.transpose(0, 1)).transpose(0, 1).relu()
        return self.last(x.mean(1))


@pytest.mark.parametrize("length", [5, 32, 64])
def test_layers_whose_input_has_no_examples_first_stay_as_they_are(length):
    x = drawn(64, length, 6)
    dense = trained_like(Turned, x)
    slim, made = halved(dense, x)
    kept = [slim.of_windows.weight.clone(), slim.of_turned.weight.clone()]
    before = error(slim, dense, x)
    found = repair(slim, dense, made, (x,))
    assert found.layers >= 2
    assert torch.equal(slim.of_windows.weight, kept[0])
    assert torch.equal(slim.of_turned.weight, kept[1]) or length == 64
    assert error(slim, dense, x) < before


def test_half_precision():
    dense = trained_like(perceptron, VECTORS)
    slim, made = halved(dense, VECTORS)
    dense, slim = dense.to(torch.bfloat16), slim.to(torch.bfloat16)
    before = error(slim, dense, VECTORS.to(torch.bfloat16))
    repair(slim, dense, made, (VECTORS.to(torch.bfloat16),))
    assert error(slim, dense, VECTORS.to(torch.bfloat16)) < 0.9 * before
    assert {p.dtype for p in slim.parameters()} == {torch.bfloat16}
