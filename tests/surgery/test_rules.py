"""Label rules: labels survive every type, and weights that are computed from weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from surgery_networks import cut_right, groups_of, tried
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


class Autocast(nn.Module):
    """A residual block whose inside runs in another type."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv, self.dtype = nn.Conv2d(600, 600, 1, groups=600), dtype

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", self.dtype):
            return (self.conv(x).relu() + x).float()


CASTS = {
    **{f"to {d}": Of(lambda x, d=d: x.to(d).float()) for d in (torch.bfloat16, torch.half, torch.int8, torch.uint8)},
    "to another type, moved there": Of(lambda x: x.bfloat16().flip(1).transpose(1, 2).transpose(1, 2).float()),
    "float8": Of(lambda x: x.to(torch.float8_e4m3fn).float()),
    "bool": Of(lambda x: x.bool().float()),
    "like another": Of(lambda x: x.type_as(torch.ones(1, dtype=torch.half)).float()),
    "to what another is": Of(lambda x: x.to(torch.ones(1, dtype=torch.bfloat16)).float()),
    "a copy": Of(lambda x: torch.ops.aten._to_copy(x, dtype=torch.bfloat16).float()),
    "its bits": Of(lambda x: x.view(torch.int32).view(torch.float32)),
    "its bytes": Of(lambda x: x.view(torch.uint8).view(torch.float32)),
    "autocast": Autocast(torch.bfloat16),
    "quantised and back": Of(lambda x: (x * 16).round().clamp(-128, 127).to(torch.int8).to(x.dtype) / 16),
    "fake quantised": Of(lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127)),
    "lower triangle": Of(lambda x: x.flatten(2).tril().unflatten(2, (2, 2))),
}


@pytest.mark.parametrize("name", CASTS)
def test_labels_survive_every_type(name: str) -> None:
    """Above 256, numbers of one label are no longer whole in bfloat16, above 2048 in half."""
    network = nn.Sequential(nn.Conv2d(3, 600, 1), CASTS[name], nn.Conv2d(600, 2, 1), nn.Conv2d(2, 3, 1)).eval()
    structure = groups_of(network, torch.randn(1, 3, 2, 2))
    assert {g.name: g.channels for g in structure.groups} == {"0": 600, "2": 2}


class Delta(nn.Module):
    """W + B A, which is how PEFT adapts a weight that is not a layer's own (LoRA: Hu et al., arXiv 2106.09685)."""

    def __init__(self, weight: Tensor, rank: int = 4) -> None:
        super().__init__()
        out, inner = weight.flatten(1).shape
        self.A, self.B = nn.Parameter(torch.randn(rank, inner) * 0.1), nn.Parameter(torch.randn(out, rank) * 0.1)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.B @ self.A).view(weight.shape) * 2.0


class Product(Delta):
    """W + (B A) * (D C) (LoHa: Hyeon-Woo et al., arXiv 2108.06098)."""

    def __init__(self, weight: Tensor, rank: int = 4) -> None:
        super().__init__(weight, rank)
        self.C, self.D = nn.Parameter(torch.randn_like(self.A)), nn.Parameter(torch.randn_like(self.B))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + ((self.B @ self.A) * torch.einsum("or,ri->oi", self.D, self.C)).view(weight.shape)


class Kronecker(nn.Module):
    """W + A x B (LoKr: Yeh et al., arXiv 2309.14859)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.randn([size // 2 for size in weight.shape]) * 0.1)
        self.B = nn.Parameter(torch.randn(2, 2))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + torch.kron(self.A, self.B)


class Magnitude(Delta):
    """m (W + B A) / |W + B A| (DoRA: Liu et al., arXiv 2402.09353)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        self.m = nn.Parameter(torch.rand(len(weight), 1) + 0.5)

    def forward(self, weight: Tensor) -> Tensor:
        adapted = super().forward(weight)
        return self.m * adapted / adapted.norm(dim=1, keepdim=True)


class LoRA(nn.Module):
    """The same as a layer beside the frozen one."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.A = nn.Linear(base.in_features, 4, bias=False)
        self.B = nn.Linear(4, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2 * self.B(self.A(x))


def by(kind: type[nn.Module]) -> Callable[[nn.Module], nn.Module]:
    def wrap(layer: nn.Module) -> nn.Module:
        parametrize.register_parametrization(layer.requires_grad_(False), "weight", kind(layer.weight))
        return layer

    return wrap


def mlp(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    layers = (wrap(nn.Linear(8, 12)), nn.ReLU(), wrap(nn.Linear(12, 16)), nn.ReLU(), wrap(nn.Linear(16, 8)))
    return nn.Sequential(*layers)


def convolutions(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    layers = (wrap(nn.Conv2d(8, 12, 3)), nn.ReLU(), wrap(nn.Conv2d(12, 16, 1)), nn.ReLU(), wrap(nn.Conv2d(16, 8, 1)))
    return nn.Sequential(nn.Unflatten(1, (8, 1, 1)), nn.ZeroPad2d(1), *layers, nn.Flatten())


class Quantised(nn.Module):
    """The weight in 8 bits, with the gradient of the weight (Bengio et al., arXiv 1308.3432)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.per_channel = weight.shape[0] % 8 == 0

    def forward(self, weight: Tensor) -> Tensor:
        largest = weight.abs().amax(1, keepdim=True) if self.per_channel else weight.abs().max()
        scale = largest / 127
        return weight + ((weight / scale).round().clamp(-128, 127) * scale - weight).detach()


class Joined(nn.Module):
    """Queries, keys and values by one matrix, joined of three weights."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.parts = nn.ParameterList(torch.randn(4, layer.in_features) for _ in range(layer.out_features // 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, torch.cat(list(self.parts)))


ADAPTED = {
    "layers": (lambda: mlp(lambda layer: LoRA(layer.requires_grad_(False))), {12, 16}),
    "parametrised": (lambda: mlp(by(Delta)), {12, 16}),
    "parametrised convolutions": (lambda: convolutions(by(Delta)), {12, 16}),
    "product of two": (lambda: mlp(by(Product)), {12, 16}),
    "with a magnitude": (lambda: mlp(by(Magnitude)), {12, 16}),
    "Kronecker": (lambda: mlp(by(Kronecker)), {6, 8}),
    "quantised": (lambda: mlp(by(Quantised)), {12, 16}),
    "joined": (lambda: nn.Sequential(nn.Linear(8, 12), nn.ReLU(), Joined(nn.Linear(12, 8)), nn.Linear(8, 3)), {12, 4}),
    "weight norm": (lambda: mlp(parametrizations.weight_norm), {12, 16}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ADAPTED)
def test_weights_computed_from_weights_are_cut_right(name: str) -> None:
    torch.manual_seed(0)
    make, widths = ADAPTED[name]
    network, x = make().eval(), torch.randn(6, 8)
    structure = tried(network, x)
    found = {g.channels for g in structure.groups}
    assert widths <= found, structure.whole
    slim = cut_right(network, structure, x)
    assert name == "joined" or structure.blueprint is None, "the network's own modules can be cut"
    frozen = [p.requires_grad for p in network.parameters()]
    assert [p.requires_grad for p in slim.parameters()] == frozen
    assert sum(p.numel() for p in slim.parameters()) < 0.8 * sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("wrap", "reason"),
    [(parametrizations.orthogonal, "depends on all channels"), (parametrizations.spectral_norm, "vdot sums over it")],
)
def test_weights_that_depend_on_all_outputs_stay_whole(wrap: Callable[[nn.Module], nn.Module], reason: str) -> None:
    structure = groups_of(mlp(wrap).eval(), torch.randn(6, 8))
    assert not structure.groups
    assert any(reason in w.reason for w in structure.whole), structure.whole


def test_a_sum_with_what_no_gate_reaches_stays_whole() -> None:
    """W + 1 isn't 0 where the gate on W is."""

    class Shifted(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight + 1.0

    network = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))
    parametrize.register_parametrization(network[2], "weight", Shifted())
    structure = groups_of(network.eval(), torch.randn(2, 8))
    assert [w.reason for w in structure.whole if w.name == "0"] == ["the weight of 2 is computed, not stored"]


def test_labels_of_a_masked_weight() -> None:
    """Causal weights (tril) keep the labels of both axes."""

    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(12, 12))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight.tril())

    network = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), Causal(), nn.Linear(12, 4)).eval()
    assert {(g.name, g.channels) for g in groups_of(network, torch.randn(2, 8)).groups} == {("0", 12), ("2", 12)}
