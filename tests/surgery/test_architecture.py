"""architecture.json: small, stable, rebuilds the slim network, and refuses everything odd."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from surgery_networks import build, groups_of, half

from deploy_prune import models
from deploy_prune.errors import ArchitectureError
from deploy_prune.recipe import ModelPart, PrunePart
from deploy_prune.surgery import architecture
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.graph import with_blueprint


@pytest.fixture(scope="module")
def resnet20() -> architecture.Architecture:
    network, x = build("resnet20", 32)
    structure = groups_of(network, x)
    keep = {name: mask for name, mask in half(structure).items() if name.endswith("conv1") and name != "conv1"}
    slim = cut(network, structure, keep)
    return architecture.describe(ModelPart(source="resnet20"), 10, (1, 3, 32, 32), keep, network, slim)


def test_text_is_stable_and_rebuilds_the_same_network(resnet20: architecture.Architecture) -> None:
    text = architecture.dumps(resnet20)
    again = architecture.loads(text)
    assert architecture.dumps(again) == text
    torch.manual_seed(0)
    dense = models.build(again.model, again.num_classes)
    slim = architecture.build(again, dense)
    assert {n: tuple(t.shape) for n, t in slim.state_dict().items()} == {n: s for n, (_, s) in resnet20.shapes.items()}
    x = torch.randn(2, 3, 32, 32)
    direct = cut(dense, groups_of(dense, x), resnet20.keep)
    assert torch.equal(direct.eval()(x), slim.eval()(x))


def test_a_graph_is_rebuilt_as_a_graph() -> None:
    network, x = build("resnet20", 32)
    structure = with_blueprint(network, (x,), PrunePart())
    keep = half(structure)
    slim = cut(network, structure, keep)
    described = architecture.describe(ModelPart(source="resnet20"), 10, tuple(x.shape), keep, network, slim)
    again = architecture.loads(architecture.dumps(described))
    assert again.form == "graph"
    rebuilt = architecture.build(again, network).eval()
    with torch.no_grad():
        assert torch.equal(rebuilt(x[:5]), slim.eval()(x[:5]))


def test_resnet50_takes_less_than_100_kb() -> None:
    network = models.build(ModelPart(source="torchvision:resnet50"), 1000)
    structure = groups_of(network, torch.zeros(1, 3, 64, 64))
    keep = half(structure)
    described = architecture.describe(
        ModelPart(source="torchvision:resnet50"), 1000, (1, 3, 64, 64), keep, network, cut(network, structure, keep)
    )
    assert len(architecture.dumps(described).encode()) < 100_000


def test_ranges() -> None:
    mask = torch.tensor([True, True, True, False, True, False, True, True])
    assert architecture.ranges(mask) == "0-2,4,6-7"


def test_a_weights_path_does_not_travel(resnet20: architecture.Architecture) -> None:
    network, _ = build("resnet20", 32)
    model = ModelPart(source="resnet20", weights="/home/me/secret.safetensors")
    text = architecture.dumps(architecture.describe(model, 10, (1, 3, 32, 32), resnet20.keep, network, network))
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
    "negative size": (changed(lambda r: r["input"].update(shape=[1, -3])), "whole number"),
    "many dimensions": (changed(lambda r: r["input"].update(shape=[1] * 99)), "at most 8"),
    "boolean size": (changed(lambda r: r["input"].update(shape=[True])), "whole number"),
    "words as ranges": (changed(lambda r: first_group(r).update(keep="all")), "ranges such as"),
    "range backwards": (changed(lambda r: first_group(r).update(keep="5-3")), "out of order"),
    "range beyond": (changed(lambda r: first_group(r).update(keep="0-99")), "beyond the 16 units"),
    "overlapping": (changed(lambda r: first_group(r).update(keep="0-4,3-7")), "out of order"),
    "giant number": (changed(lambda r: first_group(r).update(keep="0-" + "9" * 5000)), "beyond"),
    "wrong count": (changed(lambda r: first_group(r).update(kept=3)), "kept says 3"),
    "nothing kept": (changed(lambda r: first_group(r).update(keep="")), "ranges such as"),
    "source a number": (changed(lambda r: r["model"].update(source=7)), "must be text"),
    "source unknown": (changed(lambda r: r["model"].update(source="resnet21")), "resnet20"),
    "path as source": (changed(lambda r: r["model"].update(source="../../etc/passwd")), "source"),
    "other form": (changed(lambda r: r.update(form="pickle")), "'module' or 'graph'"),
    "layer not a pair": (changed(lambda r: r["layers"].update({"conv1.weight": [1]})), "dense shape, slim shape"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_give_a_clear_error(name: str, resnet20: architecture.Architecture, tmp_path: Path) -> None:
    change, cause = HOSTILE[name]
    path = tmp_path / "architecture.json"
    path.write_text(change(architecture.dumps(resnet20)))
    with pytest.raises(ArchitectureError, match=cause) as caught:
        architecture.load(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "architecture.json"
    with path.open("wb") as file:
        file.truncate(architecture.MAX_BYTES + 1)
    with pytest.raises(ArchitectureError, match="larger than"):
        architecture.load(path)


def test_bytes_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "architecture.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArchitectureError, match="can't be read"):
        architecture.load(path)
    with pytest.raises(ArchitectureError, match="can't be read"):
        architecture.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("dense", "cause"),
    [
        (("resnet32", 10), "layer1.3.conv1.weight"),
        (("resnet20", 7), r"linear.weight is \[7, 64\]"),
        (("torchvision:resnet18", 10), "conv1.weight is"),
    ],
)
def test_another_definition_is_named_by_its_first_difference(
    dense: tuple[str, int], cause: str, resnet20: architecture.Architecture
) -> None:
    network = models.build(ModelPart(source=dense[0]), dense[1])
    with pytest.raises(ArchitectureError, match=cause):
        architecture.build(resnet20, network)


def test_code_of_the_users_own_needs_trust(resnet20: architecture.Architecture) -> None:
    text = architecture.dumps(resnet20).replace('"source": "resnet20"', '"source": "os:system"')
    described = architecture.loads(text)
    with pytest.raises(ArchitectureError, match="trust=True"):
        architecture.require_trust(described, trust=False)
    architecture.require_trust(described, trust=True)
