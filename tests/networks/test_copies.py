"""Networks as people have them: compiled, in parallel, masked, with what they computed last."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune as masks
from torch import Tensor, nn

from deploy_prune.api.export import export_network
from deploy_prune.api.prune import prune
from deploy_prune.architecture import json_file
from deploy_prune.errors import DeployPruneError, ExportError, SurgeryError
from deploy_prune.export.artifact import export_program
from deploy_prune.networks.copies import copied, is_wrapped
from deploy_prune.networks.tensors import moved, tensors_held
from deploy_prune.recipe.parts import ExportPart, ModelPart, PrunePart
from deploy_prune.search.gated_network import gates_of
from deploy_prune.surgery import verify
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.groups import find_groups

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip


def half_of(network: nn.Module, method: str = "magnitude") -> Any:
    (made,) = prune(network, X, lambda forward, x: forward(x).square().mean(), [X], method=method)
    return made


def compiled() -> nn.Module:
    return torch.compile(plain(), backend="eager")  # type: ignore[return-value]


def compiled_block() -> nn.Module:
    network = plain()
    network[2] = torch.compile(network[2], backend="eager")
    return network


def compiled_in_place() -> nn.Module:
    network = plain()
    network.compile(backend="eager")
    network[2].compile(backend="eager")
    return network


def compiled_forward() -> nn.Module:
    network = plain()
    network.forward = torch.compile(network.forward, backend="eager")  # type: ignore[method-assign]
    return network


def parallel() -> nn.Module:
    return nn.DataParallel(plain())


def compiled_and_parallel() -> nn.Module:
    return torch.compile(nn.DataParallel(compiled_block()), backend="eager")  # type: ignore[return-value]


WRAPPED = (compiled, compiled_block, compiled_in_place, compiled_forward, parallel, compiled_and_parallel)


@pytest.mark.parametrize("wrap", WRAPPED)
def test_wrapped_networks_are_cut_as_what_they_wrap(wrap: Callable[[], nn.Module]) -> None:
    network, expected = wrap(), half_of(plain())
    assert is_wrapped(network)
    names = list(network.state_dict())
    made = half_of(network)
    assert type(made.network) is nn.Sequential
    assert not is_wrapped(made.network)
    assert made.keep.keys() == expected.keep.keys()
    assert made.macs == expected.macs
    assert torch.equal(made.network(X), expected.network(X))
    assert list(network.state_dict()) == names
    assert is_wrapped(network)


def test_distributed_data_parallel_is_taken_off(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        network = nn.parallel.DistributedDataParallel(plain())
        assert torch.equal(copied(network)(X), plain()(X))
        assert type(half_of(network).network) is nn.Sequential
    finally:
        torch.distributed.destroy_process_group()


def test_a_copy_shares_nothing_and_keeps_ties() -> None:
    network = compiled_block()
    network[6].weight = nn.Parameter(network[6].weight.detach().clone())
    network[0].other = network[6]
    network[0].library = math
    other = copied(network)
    assert other[0].other is other[6]
    assert other[0].library is math
    memory = {t.data_ptr() for t in network.state_dict().values()}
    assert not memory & {t.data_ptr() for t in other.state_dict().values()}


def weight_normed() -> nn.Module:
    network = plain()
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(network[2])
    return network


def masked() -> nn.Module:
    network = plain()
    masks.l1_unstructured(network[2], "weight", 0.5)
    return network


def hooked() -> nn.Module:
    network = plain()
    network.store = {}
    network[1].register_forward_hook(lambda module, args, output: network.store.__setitem__("features", output))
    network[0].register_forward_hook(lambda module, args, output: setattr(module, "map", [output, {"o": output}]))
    network(X)
    return network


@pytest.mark.parametrize("make", [weight_normed, masked, hooked])
def test_tensors_that_are_no_leaves_are_copied_detached(make: Callable[[], nn.Module]) -> None:
    network = make()
    other = copied(network)
    assert all(t.is_leaf for t in tensors_held(other).values())
    assert torch.equal(other(X), network(X))
    made = half_of(network)
    assert made.macs <= 0.5 * made.dense_macs
    assert torch.equal(made.network(X), made.network(X))


def test_functions_that_close_over_a_module_close_over_its_copy() -> None:
    network = plain()
    scale, before = torch.tensor(2.0), network[2].forward
    network[0].seen = []
    network[0].register_forward_hook(lambda module, args, output: network[0].seen.append(1))
    network[2].forward = lambda x: before(x) * scale
    other = copied(network)
    nn.init.zeros_(network[2].weight)
    nn.init.zeros_(network[2].bias)
    assert not torch.equal(other(X), network(X))
    assert len(network[0].seen) == len(other[0].seen) == 1
    assert half_of(plain()).keep.keys() == half_of(other).keep.keys()


class MakesALayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = plain()

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "late"):
            self.late = nn.Linear(5, 5)
        return self.late(self.body(x))


def test_a_network_that_makes_layers_while_it_runs_is_told_to_run_once() -> None:
    network = MakesALayer()
    with pytest.raises(SurgeryError, match=r"makes late\.bias in its first forward; call it on an example once"):
        half_of(network)
    assert not hasattr(network, "late")
    network(X)
    assert half_of(network).macs > 0


class Blur(nn.Module):
    """A depthwise kernel that isn't trained, kept in any way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        kernel = torch.tensor([1.0, 2.0, 1.0])
        kernel = (kernel[:, None] * kernel / 16).repeat(16, 1, 1, 1)
        if how == "attribute":
            self.kernel = kernel
        else:
            self.register_buffer("kernel", kernel, persistent=how == "buffer")

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, stride=2, padding=1, groups=x.shape[1])


class Fixed(nn.Module):
    """Reads the channels by a matrix that isn't trained and isn't saved (a cosine transform, a filter bank)."""

    def __init__(self, how: str) -> None:
        super().__init__()
        matrix = torch.randn(16, 16, generator=torch.Generator().manual_seed(1))
        self.register_buffer("matrix", matrix, persistent=False) if how != "attribute" else setattr(
            self, "matrix", matrix
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.movedim(1, 3), self.matrix).movedim(3, 1)


class Written(nn.Module):
    """Numbers written in the code, one for each channel."""

    def __init__(self, how: str) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tensor([1.0 + i for i in range(16)]).view(16, 1, 1)


UNTRAINED = (
    *((Blur, how, method) for how in ("buffer", "unsaved buffer", "attribute") for method in ("magnitude", "uniform")),
    *((kind, "attribute", method) for kind in (Blur, Fixed) for method in ("taylor", "gate")),
    *((kind, "unsaved buffer", "magnitude") for kind in (Fixed, Written)),
)


@pytest.mark.parametrize(("kind", "how", "method"), UNTRAINED)
def test_weights_that_are_not_trained_are_cut_with_the_rest(kind: type[nn.Module], how: str, method: str) -> None:
    network = plain()
    network.insert(2, kind(how))
    (made,) = prune(
        network, X, lambda forward, x: forward(x).square().mean(), [X], method=method, steps=2,
        options={"num_batches": 1} if method == "taylor" else {},
    )  # fmt: skip
    assert made.macs <= 0.5 * made.dense_macs
    assert {"0", "3"} & made.keep.keys()
    if kind is Blur:
        assert len(tensors_held(made.network)["2.kernel"]) == int(made.keep["0"].sum())


def test_attributes_go_with_the_network() -> None:
    network = plain()
    network.insert(2, Blur("attribute"))
    network[0].index = torch.arange(3)
    assert moved(network, torch.float64)(X.double()).dtype == torch.float64
    assert network[0].index.dtype == torch.int64
    assert {t.device.type for t in tensors_held(moved(network, torch.device("meta"))).values()} == {"meta"}


def test_what_is_compared_in_float64_may_have_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    network = plain().eval()
    network.insert(2, Blur("attribute"))
    structure = find_groups(network, (X,), PrunePart())
    keep = {g.name: torch.arange(g.channels) % 3 > 0 for g in structure.groups}
    monkeypatch.setattr(verify, "TOLERANCE", -1.0)  # some processors find no difference at all
    proof = verify.prove(network, structure, keep, (X,), gates_of(structure))
    assert proof.precision == "float64"


@pytest.mark.parametrize(
    "make", [lambda net: torch.jit.script(net), lambda net: nn.Sequential(torch.jit.trace(net, X))]
)
@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_refused_in_a_sentence(make: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    words = r"is TorchScript, whose code can't be changed; give the nn\.Module that it was made from"
    with pytest.raises(SurgeryError, match=words):
        half_of(make(plain().eval()))
    with pytest.raises(ExportError, match=words):
        export_network(make(plain().eval()), X[:1], path=tmp_path / "a.onnx")
    with pytest.raises(ExportError, match=words):
        export_program(make(plain().eval()), X[:1], ExportPart())


def test_layers_without_a_size_are_named() -> None:
    network = nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.Linear(8, 2))
    with pytest.raises(SurgeryError, match=r"1 \(LazyLinear\) has no weights before its first forward"):
        half_of(network)


def test_what_cannot_be_copied_is_named() -> None:
    network = plain()
    network[2].lock = threading.Lock()
    with pytest.raises(SurgeryError, match=r"2 \(Conv2d\) has such a thing in its attribute 'lock': TypeError: cannot"):
        half_of(network)


class FlattensTheBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(144, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.conv(x)))


def test_a_network_for_one_example_is_told_in_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DeployPruneError) as caught:
        half_of(FlattensTheBatch())
    message = str(caught.value)
    assert message.startswith("The network fails on inputs [4, 3, 8, 8]: RuntimeError: mat1 and mat2 shapes")
    assert "in head (Linear), " in message
    assert "test_copies.py:" in message
    assert "`return self.head(torch.flatten(self.conv(x)))`" in message
    assert "It takes one example; let it take several" in message
    assert capfd.readouterr() == ("", "")


class ByValues(nn.Module):
    """What runs depends on numbers, as in a detector's own selection of boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = plain()

    def forward(self, x: Tensor) -> Tensor:
        scores = self.body(x)
        return best(scores[scores > 0])


def best(scores: Tensor) -> Tensor:
    return scores.topk(min(3, len(scores))).values if len(scores) > 2 else scores


def test_code_that_depends_on_values_is_named_and_torch_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SurgeryError, match="can't be traced by torch.export: GuardOnDataDependent") as caught:
        half_of(ByValues())
    message = str(caught.value)
    assert "in the network (ByValues), " in message
    assert "`return best(scores[scores > 0])`" in message
    assert message.endswith("use torch.where, or do it outside the network.")
    assert capfd.readouterr() == ("", "")


def test_the_module_of_an_exported_program_is_told_what_fails() -> None:
    program = torch.export.export(plain().eval(), (X,)).module()
    with pytest.raises(ExportError, match=r"The network fails on inputs \[1, 3, 8, 8\]: AssertionError: Guard failed"):
        export_program(program, X[:1], ExportPart())


def test_a_cut_attribute_comes_back_from_the_file() -> None:
    def made(seed: int) -> nn.Sequential:
        network = plain()
        network.insert(2, Blur("attribute"))
        torch.manual_seed(seed)
        for parameter in network.parameters():
            nn.init.normal_(parameter)
        return network.eval()

    dense = made(1)
    structure = find_groups(dense, (X,), PrunePart())
    keep = {g.name: torch.arange(g.channels) % 3 > 0 for g in structure.groups}
    slim = cut(dense, structure, keep)
    told = json_file.describe(ModelPart(source="tests:blurred"), 5, (X[:1],), keep, dense, slim)
    again = json_file.build_slim(json_file.loads(json_file.dumps(told)), made(2), example=X[:1])
    json_file.load_weights(again, slim.state_dict(), Path("weights.safetensors"))
    assert torch.equal(again(X), slim(X))
