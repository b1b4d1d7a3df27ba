"""`deploy-prune show`: an architecture's channels and costs, against the networks themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from click.testing import CliRunner
from surgery_networks import half
from tiny_run import arithmetic_device
from torch import nn

from deploy_prune.api.export import export_saved
from deploy_prune.architecture import json_file
from deploy_prune.cli import main
from deploy_prune.commands.given_inputs import parse_inputs
from deploy_prune.commands.show import overview
from deploy_prune.errors import ArchitectureError, RunFolderError, TargetError
from deploy_prune.networks import build
from deploy_prune.recipe.parts import ModelPart, PrunePart
from deploy_prune.run.folder import save_tensors
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.groups import find_groups, with_blueprint
from deploy_prune.types import Input

SHAPE = (1, 3, 32, 32)
PICTURE = (Input(shape=SHAPE, type="float32"),)
SOURCES = [
    ("resnet20", "module"),
    ("torchvision:mobilenet_v3_small", "module"),
    ("torchvision:shufflenet_v2_x0_5", "graph"),
]


def written(folder: Path, source: str, form: str = "module", shape: tuple[int, ...] = SHAPE) -> Path:
    """An architecture.json with a random half of every group that the form can cut."""
    network, x = build.build_network(ModelPart(source=source), 10), torch.zeros(shape)
    structure = (find_groups if form == "module" else with_blueprint)(network, (x,), PrunePart())
    keep = half(structure)
    if source == "resnet20":  # its shortcuts have sizes written in them
        keep = {name: mask for name, mask in keep.items() if name.endswith("conv1") and name != "conv1"}
    described = json_file.describe(ModelPart(source=source), 10, (x,), keep, network, cut(network, structure, keep))
    path = folder / "architecture.json"
    path.write_text(json_file.dumps(described))
    return path


def counted_macs(network: nn.Module) -> int:
    """Multiply-accumulates of one example, counted where the operators run."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(SHAPE))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(("source", "form"), SOURCES)
def test_totals_are_those_of_the_networks(source: str, form: str, tmp_path: Path) -> None:
    path = written(tmp_path, source, form)
    found = overview(path)
    described = json_file.load(path)
    dense = build.build_network(described.model, 10)
    slim = json_file.build_slim(described, dense)
    assert (found.source, found.form, found.num_classes, found.inputs) == (source, form, 10, PICTURE)
    assert (found.macs.dense, found.macs.slim) == (counted_macs(dense), counted_macs(slim))
    assert found.params.dense == sum(p.numel() for p in dense.parameters())
    assert found.params.slim == sum(p.numel() for p in slim.parameters())
    assert sum(line.macs.slim for line in found.layers) == found.macs.slim < found.macs.dense
    assert {g.name: g.kept for g in found.groups} == {n: int(m.sum()) for n, m in described.keep.items()}
    assert found.latency is None


def test_layers_come_in_order_with_their_channels(tmp_path: Path) -> None:
    described = json_file.load(written(tmp_path, "torchvision:mobilenet_v3_small"))
    found = overview(tmp_path)
    modules = dict(build.build_network(described.model, 10).named_modules())
    slim = dict(json_file.build_slim(described, build.build_network(described.model, 10)).named_modules())
    convolutions = [line for line in found.layers if isinstance(modules[line.name], nn.Conv2d)]
    assert [line.name for line in found.layers] == [
        name for name, module in modules.items() if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    for line in convolutions:
        assert line.outputs == (modules[line.name].out_channels, slim[line.name].out_channels)
        assert line.inputs == tuple(m[line.name].in_channels // m[line.name].groups for m in (modules, slim))


def test_latency_of_a_device_that_is_not_attached_is_the_rooflines(tmp_path: Path) -> None:
    found = overview(written(tmp_path, "resnet20"), "pixel-8")
    assert found.target == "pixel-8"
    assert found.latency is not None
    parts = [line.latency.slim for line in found.layers if line.latency]
    assert len(parts) == len(found.layers)
    assert 0 < sum(parts) < found.latency.slim < found.latency.dense, "the overheads belong to no layer"


def test_latency_of_the_host_is_measured_once(tmp_path: Path) -> None:
    path = written(tmp_path, "resnet20")
    with arithmetic_device(tmp_path / "cache") as device:
        first = overview(path, "host")
        asked = device.asked.total()
        assert asked > 0
        assert overview(path, "host") == first
        assert device.asked.total() == asked
    assert first.latency is not None
    assert first.latency.slim < first.latency.dense


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/NAME/host/50%, with nothing in it but the architecture."""
    folder = tmp_path_factory.mktemp("runs") / "tiny" / "host" / "50%"
    folder.mkdir(parents=True)
    written(folder, "torchvision:mobilenet_v3_small")
    return folder


def call(*args: str) -> Any:
    return CliRunner().invoke(main, ["show", *args])


def test_the_command_draws_layers_totals_and_groups(place: Path) -> None:
    result = call(str(place), "--target", "pixel-8")
    assert result.exit_code == 0, result.stderr
    for words in ("features.0.0", "16 → 8", "share of latency", "latency on pixel-8, predicted", "rest", "50.0%"):
        assert words in result.stdout
    assert "share of latency" not in call(str(place)).stdout
    assert max(map(len, result.stdout.splitlines())) <= 160


def test_the_command_reads_no_weights_and_writes_nothing(place: Path) -> None:
    assert call(str(place / "architecture.json")).exit_code == 0
    assert [p.name for p in place.iterdir()] == ["architecture.json"]


def test_json_has_the_same(place: Path) -> None:
    result = call(str(place), "--json", "--target", "pixel-8")
    assert json.loads(result.stdout) == json.loads(json.dumps(overview(place, "pixel-8").as_json()))


@pytest.mark.parametrize(
    ("below", "error", "words"),
    [
        ("../..", RunFolderError, "host/50%"),
        ("none", RunFolderError, "There is no"),
        ("..", RunFolderError, "give a run"),
    ],
)
def test_where_there_is_no_architecture_the_error_says_where_there_are(
    place: Path, below: str, error: type[RunFolderError], words: str
) -> None:
    result = call(str(place / below))
    assert result.exit_code == error.exit_code
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_unknown_target_and_a_damaged_file_are_one_sentence(place: Path, tmp_path: Path) -> None:
    assert call(str(place), "--target", "pixle-8").exit_code == TargetError.exit_code
    (tmp_path / "architecture.json").write_text("{")
    result = call(str(tmp_path))
    assert result.exit_code == ArchitectureError.exit_code
    assert result.stderr.count("\n") == 1


def test_code_of_the_users_own_is_run_only_with_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny_run.network(3)
    described = json_file.describe(
        ModelPart(source="tiny_run:network"), 3, (torch.zeros(1, 1, 16, 16),), {}, network, network
    )
    path = tmp_path / "architecture.json"
    path.write_text(json_file.dumps(described))
    built = tiny_run.network
    calls: list[int] = []
    monkeypatch.setattr(tiny_run, "network", lambda num_classes: calls.append(num_classes) or built(num_classes))
    result = call(str(path))
    assert result.exit_code == ArchitectureError.exit_code
    assert "--trust" in result.stderr
    assert calls == []
    assert call(str(path), "--trust").exit_code == 0
    assert calls == [3]


def test_the_global_generator_is_left_as_it_was(place: Path) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    overview(place)
    assert torch.equal(torch.rand(3), wanted)


# --- inputs of any number, rank and type ------------------------------------------------------------------------------


def of_kind(folder: Path, source: str, *example: torch.Tensor) -> Path:
    """An architecture.json, and weights, with half of every group."""
    part = ModelPart(source=source)
    network = build.build_network(part, 4 if build.takes_classes(part) else 0).eval()
    structure = find_groups(network, example, PrunePart())
    keep = {g.name: torch.arange(g.channels) < g.channels // 2 for g in structure.groups}
    slim = cut(network, structure, keep)
    described = json_file.describe(part, 4 if build.takes_classes(part) else 0, example, keep, network, slim)
    (folder / "architecture.json").write_text(json_file.dumps(described))
    save_tensors(folder / "weights.safetensors", slim.state_dict())
    return folder


TWO = ("input_kinds:two_inputs_network", torch.zeros(1, 3, 8, 8), torch.zeros(1, 4))
TOKENS = ("input_kinds:tokens_network", torch.zeros(1, 12, dtype=torch.int64))
WIDE = ("unet", torch.zeros(1, 3, 16, 32))


def test_a_network_of_several_inputs_is_drawn(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["show", str(of_kind(tmp_path, *TWO)), "--trust", "--target", "pixel-8"])
    assert result.exit_code == 0, result.stderr
    assert "input_kinds:two_inputs_network, input 1x3x8x8, 1x4; cut: its own modules" in result.stdout


def test_another_size_has_other_macs(tmp_path: Path) -> None:
    folder = str(of_kind(tmp_path, *WIDE))
    small, wide = (
        json.loads(CliRunner().invoke(main, ["show", folder, "--json", *words]).stdout)
        for words in ((), ("--input", "3x32x32"))
    )
    assert [x["inputs"][0]["shape"] for x in (small, wide)] == [[1, 3, 16, 32], [1, 3, 32, 32]]
    assert wide["macs"]["slim"] == 2 * small["macs"]["slim"]


@pytest.mark.parametrize("command", ["show", "predict", "export"])
def test_inputs_of_another_kind_are_refused(command: str, tmp_path: Path) -> None:
    more = {"show": [], "predict": ["--target", "pixel-8"], "export": ["--target", "host", "--out", "never.onnx"]}
    place = str(of_kind(tmp_path, *TWO))
    result = CliRunner().invoke(main, [command, place, "--trust", "--input", "3x8x8", *more[command]])
    assert result.exit_code > 1
    assert "of another kind than --input 3x8x8: they are as in --input 3x8x8 --input 4." in result.stderr


@pytest.mark.parametrize(("kind", "inputs", "shapes"), [(TOKENS, [], [(1, 12)]), (WIDE, ["3x32x48"], [(1, 3, 32, 48)])])
def test_an_artifact_is_written_for_its_own_inputs_or_others(
    kind: Any, inputs: Any, shapes: Any, tmp_path: Path
) -> None:
    made = export_saved(of_kind(tmp_path, *kind), "host", tmp_path / "a.onnx", True, parse_inputs(inputs))
    assert list(made.shapes) == shapes
    assert made.unchecked is None
