"""architecture.json: small, stable, rebuilds the slim network, and refuses everything odd."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from surgery_networks import build, groups_of, half
from torch import Tensor, nn

from deploy_prune.architecture import json_file, strict
from deploy_prune.errors import ArchitectureError
from deploy_prune.networks.build import build_network
from deploy_prune.networks.cifar_resnet import CifarResNet
from deploy_prune.recipe.parts import ModelPart, PrunePart
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.groups import find_groups, with_blueprint


@pytest.fixture(scope="module")
def resnet20() -> json_file.Architecture:
    network, x = build("resnet20", 32)
    structure = groups_of(network, x)
    keep = {name: mask for name, mask in half(structure).items() if name.endswith("conv1") and name != "conv1"}
    slim = cut(network, structure, keep)
    return json_file.describe(ModelPart(source="resnet20"), 10, (x,), keep, network, slim)


def test_text_is_stable_and_rebuilds_the_same_network(resnet20: json_file.Architecture) -> None:
    text = json_file.dumps(resnet20)
    again = json_file.loads(text)
    assert json_file.dumps(again) == text
    torch.manual_seed(0)
    dense = build_network(again.model, again.num_classes)
    slim = json_file.build_slim(again, dense)
    assert {n: tuple(t.shape) for n, t in slim.state_dict().items()} == {n: s for n, (_, s) in resnet20.shapes.items()}
    x = torch.randn(2, 3, 32, 32)
    direct = cut(dense, groups_of(dense, x), resnet20.keep)
    assert torch.equal(direct.eval()(x), slim.eval()(x))


def test_a_graph_is_rebuilt_as_a_graph() -> None:
    network, x = build("resnet20", 32)
    structure = with_blueprint(network, (x,), PrunePart())
    keep = half(structure)
    slim = cut(network, structure, keep)
    described = json_file.describe(ModelPart(source="resnet20"), 10, (x,), keep, network, slim)
    again = json_file.loads(json_file.dumps(described))
    assert again.form == "graph"
    rebuilt = json_file.build_slim(again, network).eval()
    with torch.no_grad():
        assert torch.equal(rebuilt(x[:5]), slim.eval()(x[:5]))


@pytest.mark.parametrize(
    ("source", "form"),
    [("torchvision:resnet50", "module"), ("torchvision:shufflenet_v2_x1_0", "graph"), ("timm:mixnet_s", "module")],
)
def test_a_large_network_takes_less_than_100_kb(source: str, form: str, tmp_path: Path) -> None:
    """A random half of every group: the longest ranges that a mask can have, or nearly. Saved again, the same bytes."""
    network, x = build_network(ModelPart(source=source), 1000), torch.zeros(1, 3, 64, 64)
    structure = (find_groups if form == "module" else with_blueprint)(network, (x,), PrunePart())
    keep = half(structure)
    described = json_file.describe(ModelPart(source=source), 1000, (x,), keep, network, cut(network, structure, keep))
    path = tmp_path / "architecture.json"
    path.write_text(json_file.dumps(described))
    assert path.stat().st_size < 100_000
    again = json_file.load(path)
    assert again.form == form
    assert json_file.dumps(again).encode() == path.read_bytes()
    assert all(torch.equal(again.keep[name], mask) for name, mask in keep.items())


def test_ranges() -> None:
    mask = torch.tensor([True, True, True, False, True, False, True, True])
    assert json_file.ranges(mask) == "0-2,4,6-7"


def test_a_weights_path_does_not_travel(resnet20: json_file.Architecture) -> None:
    network, _ = build("resnet20", 32)
    model = ModelPart(source="resnet20", weights="/home/me/secret.safetensors")
    text = json_file.dumps(json_file.describe(model, 10, (torch.zeros(1, 3, 32, 32),), resnet20.keep, network, network))
    assert "secret" not in text


def changed(change: Callable[[Any], Any]) -> Callable[[str], str]:
    def apply(text: str) -> str:
        raw = json.loads(text)
        change(raw)
        return json.dumps(raw)

    return apply


def first_group(raw: Any) -> Any:
    return raw["groups"]["layer1.0.conv1"]


HOSTILE: dict[str, tuple[Callable[[str], str], str]] = {
    "truncated": (lambda t: t[: len(t) // 2], "not JSON"),
    "empty": (lambda t: "", "not JSON"),
    "a list": (lambda t: "[]", "must be a mapping"),
    "deep": (lambda t: "[" * 200_000, "not JSON"),
    "duplicate key": (lambda t: t.replace('"version": 1', '"version": 1, "version": 1'), "appears twice"),
    "other format": (changed(lambda r: r.update(format="pickle")), "this program reads"),
    "newer version": (changed(lambda r: r.update(version=2)), "version 2"),
    "unknown key": (changed(lambda r: r.update(code="os.system")), "'code'"),
    "missing key": (changed(lambda r: r.pop("groups")), "'groups'"),
    "NaN": (lambda t: t.replace('"num_classes": 10', '"num_classes": NaN'), "NaN is no number"),
    "huge channels": (changed(lambda r: first_group(r).update(channels=10**12)), "whole number"),
    "negative size": (changed(lambda r: r["inputs"][0].update(shape=[1, -3])), "whole number"),
    "many dimensions": (changed(lambda r: r["inputs"][0].update(shape=[1] * 99)), "at most 8"),
    "boolean size": (changed(lambda r: r["inputs"][0].update(shape=[True])), "whole number"),
    "words as ranges": (changed(lambda r: first_group(r).update(keep="all")), "ranges such as"),
    "range backwards": (changed(lambda r: first_group(r).update(keep="5-3")), "out of order"),
    "range beyond": (changed(lambda r: first_group(r).update(keep="0-99")), "beyond the 16 units"),
    "overlapping": (changed(lambda r: first_group(r).update(keep="0-4,3-7")), "out of order"),
    "giant number": (changed(lambda r: first_group(r).update(keep="0-" + "9" * 5000)), "beyond"),
    "wrong count": (changed(lambda r: first_group(r).update(kept=3)), "kept says 3"),
    "nothing kept": (changed(lambda r: first_group(r).update(keep="")), "keep names 0"),
    "none of many": (changed(lambda r: first_group(r).update(keep="", kept=0)), "from 1 to"),
    "gone with no branch": (changed(lambda r: r["layers"]["conv1.weight"].__setitem__(1, 3)), "list of at most"),
    "source a number": (changed(lambda r: r["model"].update(source=7)), "must be text"),
    "source unknown": (changed(lambda r: r["model"].update(source="resnet21")), "resnet20"),
    "path as source": (changed(lambda r: r["model"].update(source="../../etc/passwd")), "source"),
    "other form": (changed(lambda r: r.update(form="pickle")), "'module' or 'graph'"),
    "giant whole number": (lambda t: t.replace('"num_classes": 10', f'"num_classes": {"9" * 5000}'), "not JSON"),
    "infinity": (lambda t: t.replace('"num_classes": 10', '"num_classes": Infinity'), "Infinity is no number"),
    "overflowing": (lambda t: t.replace('"args": {}', '"args": {"a": 1e999}'), "1e999 is no number"),
    "version true": (changed(lambda r: r.update(version=True)), "version True"),
    "version 1.0": (changed(lambda r: r.update(version=1.0)), r"version 1\.0"),
    "version a list": (changed(lambda r: r.update(version=[1])), "version"),
    "kept true": (changed(lambda r: first_group(r).update(kept=True)), "kept must be a whole number"),
    "digits of other scripts": (changed(lambda r: first_group(r).update(keep="0-\u0663")), "ranges such as"),
    "too many units": (
        changed(lambda r: r.update(groups={f"g{i}": {"channels": 2**20, "kept": 1, "keep": "0"} for i in range(9999)})),
        "units together",
    ),
    "huge input": (changed(lambda r: r["inputs"][0].update(shape=[1, 3, 10**4, 10**4])), "inputs.0..shape"),
    "no batch": (changed(lambda r: r["inputs"][0].update(shape=[])), "inputs.0..shape"),
    "huge layer": (changed(lambda r: r["layers"].update(a=[[2**20, 2**20], [1, 1]])), "more than"),
    "huge layers": (changed(lambda r: r["layers"].update({str(i): [[2**29], [1]] for i in range(9)})), "together"),
    "slim wider than dense": (
        changed(lambda r: r["layers"].update({"conv1.weight": [[16, 3, 3, 3], [17, 3, 3, 3]]})),
        "does not fit into the dense",
    ),
    "other rank": (changed(lambda r: r["layers"].update({"conv1.weight": [[16, 3], [16]]})), "does not fit into"),
    "a shape as a mapping": (changed(lambda r: r["layers"].update({"a": [{}, {}]})), "list of at most 8"),
    "fractional size": (changed(lambda r: r["layers"].update({"a": [[1.5], [1]]})), "whole number"),
    "deep arguments": (changed(lambda r: r["model"].update(args={"a": [[[[[[[[[[1]]]]]]]]]]})), "too deep"),
    "long arguments": (changed(lambda r: r["model"].update(args={"a": [1] * 5000})), "too long"),
    "arguments a list": (changed(lambda r: r["model"].update(args=[1])), "model.args must be a mapping"),
    "terminal codes": (changed(lambda r: r["groups"].update({"\x1b[2J": first_group(r)})), "no module can have"),
    "half a character": (lambda t: t.replace('"layer1.0.conv1"', '"\\ud800"', 1), "no module can have"),
    "endless name": (changed(lambda r: r["groups"].update({"a" * 10**6: first_group(r)})), "no module can have"),
    "groups a list": (changed(lambda r: r.update(groups=[])), "groups must be a mapping"),
    "layer not a pair": (changed(lambda r: r["layers"].update({"conv1.weight": [1]})), "dense shape, slim shape"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_give_a_clear_error(name: str, resnet20: json_file.Architecture, tmp_path: Path) -> None:
    change, cause = HOSTILE[name]
    path = tmp_path / "architecture.json"
    path.write_text(change(json_file.dumps(resnet20)))
    with pytest.raises(ArchitectureError, match=cause) as caught:
        json_file.load(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "architecture.json"
    with path.open("wb") as file:
        file.truncate(strict.MAX_BYTES + 1)
    with pytest.raises(ArchitectureError, match="larger than"):
        json_file.load(path)


def test_bytes_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "architecture.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArchitectureError, match="can't be read"):
        json_file.load(path)
    with pytest.raises(ArchitectureError, match="can't be read"):
        json_file.load(tmp_path / "none.json")


def test_a_device_is_not_read() -> None:
    with pytest.raises(ArchitectureError, match="no file"):
        json_file.load(Path("/dev/zero"))


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "layer1.0.conv1/../x", "__class__"])
@pytest.mark.parametrize("where", ["groups", "layers"])
def test_names_are_never_paths(name: str, where: str, resnet20: json_file.Architecture) -> None:
    raw = json.loads(json_file.dumps(resnet20))
    raw[where] = {name: next(iter(raw[where].values())), **raw[where]}
    described = json_file.loads(json.dumps(raw))
    network = build_network(ModelPart(source="resnet20"), 10)
    with pytest.raises(ArchitectureError, match=re.escape(name)):
        json_file.build_slim(described, network)


class Renamed(CifarResNet):
    """The same network with another name for its classifier."""

    def __init__(self) -> None:
        super().__init__(20, num_classes=10)
        self.classifier = self.linear
        del self.linear


@pytest.mark.parametrize(
    ("dense", "cause"),
    [
        (lambda: built("resnet32"), "layer1.3.conv1.weight"),
        (lambda: built("resnet20", 7), r"linear.weight is \[7, 64\]"),
        (lambda: built("torchvision:resnet18"), "conv1.weight is"),
        (lambda: built("torchvision:mobilenet_v2"), "has no 'conv1.weight'"),
        (lambda: Renamed(), "has no 'linear.weight'"),
    ],
    ids=["depth", "classes", "other network", "another other", "renamed"],
)
def test_another_definition_is_named_by_its_first_difference(
    dense: Callable[[], nn.Module], cause: str, resnet20: json_file.Architecture
) -> None:
    with pytest.raises(ArchitectureError, match=cause):
        json_file.build_slim(resnet20, dense())


def built(source: str, num_classes: int = 10, **args: Any) -> nn.Module:
    return build_network(ModelPart(source=source, args=args), num_classes)


def described_by(source: str, **args: Any) -> json_file.Architecture:
    """The architecture of a network that nothing was cut from."""
    network = built(source, **args)
    return json_file.describe(
        ModelPart(source=source, args=args), 10, (torch.zeros(1, 3, 32, 32),), {}, network, network
    )


def test_another_width_is_named_by_its_first_layer() -> None:
    described = described_by("torchvision:mobilenet_v2", width_mult=0.5)
    with pytest.raises(ArchitectureError, match=r"features.0.0.weight is \[32, 3, 3, 3\] .* but \[16, 3, 3, 3\]"):
        json_file.build_slim(described, built("torchvision:mobilenet_v2"))


def test_an_older_and_shallower_definition_is_named_by_what_it_lacks() -> None:
    with pytest.raises(ArchitectureError, match=r"has no 'layer1.3.conv1.weight'"):
        json_file.build_slim(described_by("resnet32"), built("resnet20"))


@pytest.mark.parametrize(
    "args", [{"width_per_group": 2**16}, {"groups": 1, "width_per_group": 2**12}], ids=["enormous", "large"]
)
def test_a_hostile_argument_does_not_get_memory(args: dict[str, int]) -> None:
    raw = json.loads(json_file.dumps(described_by("torchvision:resnet18")))
    raw["model"] = {"source": "torchvision:resnet50", "args": args, "num_classes": 10}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ArchitectureError, match="far larger than its layers say"):
        json_file.dense_network(json_file.loads(json.dumps(raw)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, "kB"


def test_a_hostile_depth_ends_early() -> None:
    raw = json.loads(json_file.dumps(described_by("torchvision:mobilenet_v2")))
    raw["model"]["args"] = {"inverted_residual_setting": [[1, 8, 2**20, 1]]}
    with pytest.raises(ArchitectureError, match="far larger than its layers say"):
        json_file.dense_network(json_file.loads(json.dumps(raw)))


def test_the_dense_network_draws_from_the_global_generator_once(resnet20: json_file.Architecture) -> None:
    torch.manual_seed(3)
    wanted = built("resnet20").state_dict()
    torch.manual_seed(3)
    found = json_file.dense_network(resnet20).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


class Tied(nn.Module):
    """Two layers with one weight, a buffer that is saved, and one that isn't."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.ones(8))
        self.register_buffer("table", torch.arange(8.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * self.scale) + self.table


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_keep_their_precision_and_ties(dtype: torch.dtype) -> None:
    saved = Tied().to(dtype)
    saved.scale.uniform_()
    network = Tied()
    json_file.load_weights(network, state_of(saved), Path("here"))
    assert network.second.weight is network.first.weight
    assert {t.dtype for t in network.state_dict().values()} == {dtype}
    assert all(torch.equal(t, saved.state_dict()[name]) for name, t in network.state_dict().items())
    assert torch.equal(network.table, torch.arange(8.0).to(dtype)), "not saved, and cast all the same"
    x = torch.randn(2, 8).to(dtype)
    assert torch.equal(network(x), saved(x))
    assert all(p.requires_grad for p in network.parameters())


def test_mixed_precision_stays_mixed() -> None:
    saved = Tied().to(torch.bfloat16)
    saved.scale = saved.scale.float()
    network = Tied()
    json_file.load_weights(network, state_of(saved), Path("here"))
    assert (network.scale.dtype, network.first.weight.dtype) == (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_weights_of_another_kind_are_refused(dtype: torch.dtype) -> None:
    network = Tied()
    wrong = {**state_of(network), "scale": torch.ones(8).to(dtype)}
    with pytest.raises(ArchitectureError, match=rf"{dtype} for scale"):
        json_file.load_weights(network, wrong, Path("here"))
    assert network.scale.dtype == torch.float32, "untouched"


def test_code_of_the_users_own_needs_trust(resnet20: json_file.Architecture) -> None:
    text = json_file.dumps(resnet20).replace('"source": "resnet20"', '"source": "os:system"')
    described = json_file.loads(text)
    with pytest.raises(ArchitectureError, match="trust=True"):
        json_file.require_trust(described.model, trust=False)
    json_file.require_trust(described.model, trust=True)
