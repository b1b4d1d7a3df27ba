"""`deploy-prune predict`: one number with its band, for a library's network or an architecture of one's own."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from deploy_prune.architecture import json_file
from deploy_prune.budget.candidates import CandidateCosts, identity_of
from deploy_prune.cli import main
from deploy_prune.commands import predict
from deploy_prune.commands.given_inputs import parse_inputs
from deploy_prune.device.targets import load_target
from deploy_prune.errors import ModelError
from deploy_prune.recipe.parts import ModelPart, PrunePart
from deploy_prune.surgery.groups import find_groups
from deploy_prune.types import Input

PICTURE = (Input(shape=(1, 3, 32, 32), type="float32"),)


def call(*arguments):
    return CliRunner().invoke(main, ["predict", *map(str, arguments)])


def slim_conv4(folder: Path) -> Path:
    """An architecture.json with half of every group."""
    from deploy_prune.networks import build
    from deploy_prune.surgery.cut import cut

    part, x = ModelPart(source="conv4"), torch.zeros(1, 3, 32, 32)
    dense = build.build_network(part, 10).eval()
    structure = find_groups(dense, (x,), PrunePart())
    keep = {g.name: torch.arange(g.channels) < g.channels // 2 for g in structure.groups}
    slim = cut(dense, structure, keep)
    path = folder / "architecture.json"
    path.write_text(json_file.dumps(json_file.describe(part, 10, (x,), keep, dense, slim)))
    return path


def test_one_line_with_the_band_of_left_out_networks():
    error = load_target("raspberry-pi-5").error
    assert error.networks >= 6
    result = call("resnet20", "--target", "raspberry-pi-5", "--input", "3,32,32")
    assert result.exit_code == 0
    told = json.loads(call("resnet20", "--target", "raspberry-pi-5", "--input", "3,32,32", "--json").stdout)
    stages = 6 * 1024 * 9 * 16 * 16 + 256 * 9 * (16 * 32 + 5 * 32 * 32) + 64 * 9 * (32 * 64 + 5 * 64 * 64)
    assert told["macs"] == 1024 * 9 * 3 * 16 + stages + 64 * 1000
    assert told["low_ms"] == pytest.approx(told["ms"] * error.low)
    assert told["high_ms"] == pytest.approx(told["ms"] * error.high)
    band = f"({told['low_ms']:.3g} to {told['high_ms']:.3g}; 80% of {error.networks} left-out networks were within)"
    assert result.stdout == f"{told['ms']:.3g} ms predicted on raspberry-pi-5 {band}\n"


def test_an_architecture_knows_its_input_and_is_faster_than_dense(tmp_path):
    path = slim_conv4(tmp_path)
    slim = predict.predicted(str(path), "pixel-8")
    dense = predict.predicted("conv4", "pixel-8", PICTURE)
    assert slim.inputs == PICTURE
    assert slim.macs < 0.35 * dense.macs
    assert slim.prediction.ms < dense.prediction.ms


def test_what_budgets_are_held_to_is_what_is_predicted(tmp_path):
    from deploy_prune.networks import build

    part, x = ModelPart(source="resnet20"), torch.zeros(1, 3, 32, 32)
    network = build.build_network(part, 1000).eval()
    structure = find_groups(network, (x,), PrunePart())
    costs = CandidateCosts(
        network=network, structure=structure, inputs=(x,), identity=identity_of(part), scratch=tmp_path
    )
    for name in ("pixel-8", "jetson-nano", "galaxy-s24", "jetson-agx-orin"):
        target = load_target(name)
        cost = costs.cost(target, "latency")
        told = predict.predicted("resnet20", name, PICTURE).prediction.ms
        assert cost(structure.dense_counts) == pytest.approx(told)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("resnet20", "--target", "pixel-8"), "add --input, as in --input 3x224x224"),
        (
            ("resnet20", "--target", "pixel-8", "--input", "3,many"),
            "'3,many' is not the size of one example: write",
        ),
        (
            ("os:system", "--target", "pixel-8", "--input", "3,8,8"),
            "is none of torchvision:NAME, timm:NAME, ultralytics:NAME",
        ),
        (("resnet20", "--target", "pixl-8", "--input", "3,8,8"), "Perhaps you meant 'pixel-8'?"),
        (("resnet20", "--target", "host", "--input", "3,32,32"), "can't be predicted: its file needs 'roofline:'"),
        (
            ("no/such.json", "--target", "pixel-8", "--input", "3,8,8"),
            "There is no no/such.json; give torchvision:NAME",
        ),
    ],
)
def test_errors_say_what_to_change(arguments, words):
    result = call(*arguments)
    assert result.exit_code > 1
    assert words in result.stderr


def test_a_file_without_error_says_so():
    target = replace(load_target("pixel-8"), error=None)
    found = predict.predicted("resnet20", "pixel-8", PICTURE)
    plain = replace(found, target=target, prediction=replace(found.prediction, error=None))
    assert "its file states no error" in str(plain)
    assert "low_ms" not in plain.as_json()


@pytest.mark.parametrize("inputs", [(), PICTURE])
def test_a_typo_in_a_network_s_name_says_so(inputs):
    with pytest.raises(ModelError, match=r"no network 'resnet21'; known: resnet20, .*Perhaps you meant 'resnet20'\?"):
        predict.predicted("resnet21", "pixel-8", inputs)


# --- every task's networks ---


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        ("torchvision:ssdlite320_mobilenet_v3_large", ["3x320x320"]),
        ("torchvision:lraspp_mobilenet_v3_large", ["3x64x96"]),
        ("unet", ["3x32x48"]),
        ("input_kinds:audio_network", ["1x400"]),
        ("input_kinds:two_inputs_network", ["3x8x8", "4"]),
        ("input_kinds:tokens_network", ["int64:12"]),
    ],
)
def test_networks_of_any_task_are_predicted(model, inputs):
    given = [word for text in inputs for word in ("--input", text)]
    result = call(model, "--target", "pixel-8", *given, "--trust", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["ms"] > 0
    assert told["inputs"] == [
        {"shape": [1, *map(int, text.split(":")[-1].split("x"))], "type": "int64" if ":" in text else "float32"}
        for text in inputs
    ]


def test_twice_the_pixels_are_twice_the_macs():
    square, wide = (predict.predicted("unet", "pixel-8", parse_inputs([s])) for s in ("3x32x32", "3x32x64"))
    assert wide.macs == 2 * square.macs


def test_code_of_ones_own_needs_trust():
    result = call("input_kinds:audio_network", "--target", "pixel-8", "--input", "1x400")
    assert result.exit_code > 1
    assert "If it is a function of your own (module:callable), add --trust" in result.stderr
