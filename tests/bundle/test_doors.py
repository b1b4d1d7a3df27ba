"""Every way to a network ends in the same verified bundle: a run, a transfer, a loop of one's own, Python's prune."""

from __future__ import annotations

import json

import numpy
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tiny_run import network, tiny_recipe

import deploy_prune
from deploy_prune.bundle.verify import verify
from deploy_prune.cli import main
from deploy_prune.commands.export import bundles
from deploy_prune.commands.export_folder import folder_bundle
from deploy_prune.commands.transfer import transfer
from deploy_prune.errors import (
    ArchitectureError,
    BundleError,
    DeployPruneError,
    ExportError,
    RunFolderError,
    WeightsError,
)
from deploy_prune.run import pipeline

PLACE = "tiny/pixel-8/50% macs"
DOORS = ("run", "another target", "transfer", "trained on", "prune")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    pipeline.run(tiny_recipe(targets=["pixel-8@onnx"]), out)
    (folder,) = (out / "tiny").glob("pixel-8*/50% macs")
    return folder


def trained_on(place):
    """The network after a few steps of a loop of one's own."""
    slim = deploy_prune.load(place, trust=True)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(16, 1, 16, 16, generator=generator), torch.arange(16) % 3
    optimizer = torch.optim.SGD(slim.parameters(), 0.1)
    slim.train()
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(slim(x), y).backward()
        optimizer.step()
    return slim


def images(num=16):
    return torch.randint(0, 256, (num, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def by(door, place, path):
    """The bundle that a door leads to."""
    out = path / "bundle"
    if door == "run":
        return bundles(place.parents[1], place.parent.name, "50% macs", out, trust=True).bundles[0]
    if door == "another target":
        return folder_bundle(place, "jetson-orin-nano@onnx", out, trust=True)
    if door == "transfer":
        settings = ["data.source=digits", "data.target_classes=[1,2,7]", "data.shots=3", "retrain.steps=2"]
        transfer(place / "architecture.json", settings, out=path / "moved", trust=True)
        return folder_bundle(path / "moved", "pixel-8@onnx", out, trust=True)
    if door == "trained on":
        deploy_prune.save(trained_on(place), path / "mine", like=place)
        return folder_bundle(path / "mine", "pixel-8@onnx", out, trust=True)
    x, y = torch.randn(4, 1, 16, 16), torch.tensor([0, 1, 2, 0])

    def loss(forward, batch):
        return torch.nn.functional.cross_entropy(forward(batch[0]), batch[1])

    (pruned,) = deploy_prune.prune(network(3), x, loss, [(x, y)], budget="50% macs", method="magnitude")
    return deploy_prune.export_bundle(
        pruned.network, images(), out, target="pixel-8@onnx", mean=[0.5], std=[0.25], labels=("a", "b", "c")
    )


@pytest.mark.parametrize("door", DOORS)
def test_every_door_ends_in_a_bundle_that_verifies(door, runs, tmp_path):
    made = by(door, runs, tmp_path)
    assert len(verify(made.folder)) > 1
    assert verify(made.packed)
    there = {path.relative_to(made.folder).as_posix() for path in made.folder.rglob("*") if path.is_file()}
    assert {
        "README.md", "model.onnx", "bundle.json", "preprocessing.json", "labels.json", "parity.json", "latency.json",
        "sample/images.npy", "sample/input.npy", "sample/expected_0.npy", "python/run.py", "provenance.json",
    } <= there  # fmt: skip
    with (made.folder / "model.onnx").open("r+b") as file:
        file.seek(-200, 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 64]))
    with pytest.raises(BundleError):
        verify(made.folder)


def test_what_was_trained_on_is_what_is_bundled(runs, tmp_path):
    slim = trained_on(runs)
    place = deploy_prune.save(slim, tmp_path / "mine", like=runs)
    made = folder_bundle(place, "pixel-8@onnx", tmp_path / "bundle", trust=True)
    sample = torch.from_numpy(numpy.load(made.folder / "sample" / "input.npy"))
    expected = torch.from_numpy(numpy.load(made.folder / "sample" / "expected_0.npy"))
    with torch.no_grad():
        assert torch.allclose(slim.eval()(sample), expected, atol=1e-5)
        assert not torch.allclose(deploy_prune.load(runs, trust=True)(sample), expected, atol=1e-3)
    told = json.loads((made.folder / "parity.json").read_text())
    assert 0 <= told["run"]["score"] <= 1
    assert "accuracy" in (made.folder / "README.md").read_text()


def test_a_saved_network_is_loaded_and_saved_again(runs, tmp_path):
    slim = trained_on(runs)
    first = deploy_prune.save(slim, tmp_path / "first", like=runs)
    again = deploy_prune.load(first, trust=True)
    assert all(torch.equal(a, b) for a, b in zip(slim.state_dict().values(), again.state_dict().values(), strict=True))
    second = deploy_prune.save(again, tmp_path / "second", like=first)
    assert deploy_prune.save(again, tmp_path / "second", like=first) == second, "an earlier one is replaced"
    assert (second / "transfer.yaml").read_text() == (first / "transfer.yaml").read_text()
    wrapped = torch.nn.DataParallel(again)
    assert load_file(deploy_prune.save(wrapped, tmp_path / "third", like=first) / "weights.safetensors").keys() == (
        again.state_dict().keys()
    )


def test_what_does_not_fit_is_not_saved(runs, tmp_path):
    with pytest.raises(ArchitectureError, match=r"The network has \[16, .*\] for .*; the architecture has \["):
        deploy_prune.save(network(3), tmp_path / "mine", like=runs)
    slim = deploy_prune.load(runs, trust=True)
    with torch.no_grad():
        next(slim.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(WeightsError, match="aren't finite"):
        deploy_prune.save(slim, tmp_path / "mine", like=runs)
    with pytest.raises(RunFolderError, match=r"There is no .*nowhere"):
        deploy_prune.save(slim, tmp_path / "mine", like=tmp_path / "nowhere")
    assert not (tmp_path / "mine").exists()
    slim = deploy_prune.load(runs, trust=True)
    with pytest.raises(RunFolderError, match="is in the run folder"):
        deploy_prune.save(slim, runs, like=runs)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(RunFolderError, match=r"thesis.txt"):
        deploy_prune.save(slim, tmp_path / "mine", like=runs)


def test_what_no_bundle_can_be_made_of_is_told(runs, tmp_path):
    slim = deploy_prune.load(runs, trust=True)
    alone = deploy_prune.save(slim, tmp_path / "alone", like=_copied(runs / "architecture.json", tmp_path))
    with pytest.raises(RunFolderError, match="has no recipe"):
        folder_bundle(alone, "pixel-8@onnx", trust=True)
    with pytest.raises(RunFolderError, match=r"has no architecture.json and weights.safetensors"):
        folder_bundle(tmp_path, "pixel-8@onnx", trust=True)
    mine = deploy_prune.save(slim, tmp_path / "mine", like=runs)
    with pytest.raises(DeployPruneError, match="trust"):
        folder_bundle(mine, "pixel-8@onnx")
    text = (mine / "transfer.yaml").read_text()
    (mine / "transfer.yaml").write_text(text.replace("target_classes:\n  - 3\n", "target_classes:\n"))
    with pytest.raises(ExportError, match="3 classes, and its recipe's examples 2"):
        folder_bundle(mine, "pixel-8@onnx", trust=True)


def test_broken_weights_are_noticed(runs, tmp_path):
    mine = deploy_prune.save(trained_on(runs), tmp_path / "mine", like=runs)
    state = load_file(mine / "weights.safetensors")
    name = next(name for name, tensor in state.items() if tensor.dim() == 4)
    save_file({**state, name: state[name][:, :, :, :2].contiguous()}, mine / "weights.safetensors")
    with pytest.raises(ArchitectureError, match=name):
        folder_bundle(mine, "pixel-8@onnx", tmp_path / "bundle", trust=True)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"images": torch.zeros(4, 1, 16, 16)}, "give uint8"),
        ({"images": images(1)}, "two at least"),
        ({"mean": [0.5, 0.5]}, "2 and 1 values for 1 channels"),
        ({"std": [0.0]}, "above 0"),
        ({"fit": "crop"}, "give cut, letterbox, stretch"),
    ],
)
def test_what_is_no_sample_is_refused(changes, told, tmp_path):
    given = {"images": images(), "mean": [0.5], "std": [0.25]} | changes
    with pytest.raises(ExportError, match=told):
        deploy_prune.export_bundle(network(3), out=tmp_path / "bundle", target="pixel-8@onnx", **given)
    assert not (tmp_path / "bundle").exists()


def test_the_command(runs, tmp_path):
    mine = deploy_prune.save(trained_on(runs), tmp_path / "mine", like=runs)
    asked = ["export", str(mine), "--target", "pixel-8@onnx", "--bundle", "--trust", "--out", str(tmp_path / "made")]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 0, done.output
    assert str(tmp_path / "made.zip") in done.output
    refused = CliRunner().invoke(main, [*asked, "--input", "1x16x16"])
    assert refused.exit_code == 2
    assert "bundles are of a network's own inputs" in refused.output


def _copied(file, path):
    copied = path / "elsewhere" / file.name
    copied.parent.mkdir()
    copied.write_text(file.read_text())
    return copied
