"""From a run to bundles: which rows, under which names, and how a run that gives none is told."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from bundles import edit, rehash, script
from click.testing import CliRunner
from tiny_run import tiny_recipe

from deploy_prune.api import load
from deploy_prune.bundle import write
from deploy_prune.bundle.verify import verify
from deploy_prune.cli import main
from deploy_prune.commands import export
from deploy_prune.data import splits
from deploy_prune.data.examples import spread
from deploy_prune.device.targets import targets_folder
from deploy_prune.errors import ArchitectureError, BundleError, MeasurementError, ParityError, RunFolderError
from deploy_prune.recipe.file import resolve
from deploy_prune.run import pipeline
from deploy_prune.run.folder import RunFolder
from deploy_prune.run.pipeline import Run

PLACE = "tiny-pixel-8-50pct-macs"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run for two devices that are not attached, one of them with .ort files, and two budgets. Not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    text = (targets_folder() / "pixel-8.yaml").read_text().replace("name: pixel-8", "name: my-phone")
    assert "format: onnx" in text
    (folder / "my-phone.yaml").write_text(text.replace("format: onnx", "format: ort"))
    targets = ["pixel-8", str(folder / "my-phone.yaml")]
    return pipeline.run(tiny_recipe(targets=targets, budgets=["50% macs", "70% macs"]), folder)


@pytest.fixture
def copy(finished: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.folder, tmp_path / "tiny"))


def call(*args: object) -> Any:
    return CliRunner().invoke(main, ["export", *map(str, args), "--trust"])


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_one_budget_is_one_folder_and_its_zip(finished: Run, tmp_path: Path) -> None:
    result = call(finished.folder, "--target", "pixel-8", "--budget", "50% macs", "--out", tmp_path / "b")
    assert result.exit_code == 0, result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "b.zip"]
    first, *checked = result.stdout.splitlines()
    assert first == f"{tmp_path / 'b'} and {tmp_path / 'b.zip'}"
    assert [line.split(":")[0].strip() for line in checked] == ["files", "preprocessing", "parity"]
    assert len(verify(tmp_path / "b.zip")) == 3


@pytest.mark.parametrize(("target", "suffix"), [("pixel-8", ".onnx"), ("my-phone", ".ort")])
def test_without_a_budget_every_budget_gets_its_bundle(finished: Run, target: str, suffix: str, tmp_path: Path) -> None:
    result = call(finished.folder, "--target", target, "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    names = {f"tiny-{target}-{share}pct-macs" for share in (50, 70)}
    assert {p.name for p in tmp_path.iterdir()} == names | {f"{name}.zip" for name in names}
    for name in names:
        assert (tmp_path / name / f"model{suffix}").is_file()
        assert script(tmp_path / name, "verify").returncode == 0


def test_where_they_go_by_default(finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(finished.folder, "--target", "pixel-8", "--budget", "50%macs").exit_code == 15
    assert call(finished.folder, "--target", "pixel-8", "--budget", " 50 %  macs").exit_code == 0
    assert {p.name for p in (tmp_path / "bundles").iterdir()} == {PLACE, f"{PLACE}.zip"}


def test_what_it_tells_is_the_runs(finished: Run, tmp_path: Path) -> None:
    (made,) = export.bundles(finished.folder, "pixel-8", "50% macs", tmp_path / "b", trust=True).bundles
    row = next(r for r in finished.rows if (r.target, r.budget) == ("pixel-8", "50% macs"))
    latency = read(made.folder / "latency.json")
    assert latency.keys() == {"in_words", "row", "latency"}, "a dense row of another run can't stand beside it"
    assert latency["row"] == asdict(row)
    assert latency["in_words"].startswith("predicted to be ")
    assert f"- Latency: {latency['in_words']}." in (made.folder / "README.md").read_text()
    assert latency["latency"]["predicted_ms"] == row.predicted_ms
    provenance = read(made.folder / "provenance.json")
    recipe = RunFolder(path=finished.folder).read_json("provenance.json")
    assert provenance["run"] == {key: value for key, value in recipe.items() if key != "files"}
    assert provenance["recipe"]["budgets"] == ["50% macs", "70% macs"]
    assert provenance["seed"] == 0
    assert read(made.folder / "parity.json")["run"]["max_abs"] == row.parity_max_abs
    assert read(made.folder / "labels.json") == {"labels": ["3", "4", "5"], "about": "the data set's names"}


def test_the_sample_is_of_the_test_set_and_the_slim_networks(finished: Run, tmp_path: Path) -> None:
    (made,) = export.bundles(finished.folder, "pixel-8", "70% macs", tmp_path / "b", trust=True).bundles
    examples = splits.load(tiny_recipe().data, 0).target_test
    x = torch.from_numpy(numpy.load(made.folder / "sample" / "input.npy"))
    (wanted,), labels = examples.take(spread(examples.strata, len(x)))
    assert len(x) < 3 or set(labels.tolist()) == {0, 1, 2}
    assert (x - wanted).abs().max() <= 0.51 / 255 / float(examples.std.min()), "but for the rounding to bytes"
    network = load.load(finished.folder / "pixel-8" / "70% macs", trust=True)
    with torch.no_grad():
        expected = network(x)
    assert numpy.abs(numpy.load(made.folder / "sample" / "expected_0.npy") - expected.numpy()).max() < 1e-5


def test_the_dense_network_can_be_handed_over_too(finished: Run, tmp_path: Path) -> None:
    (made,) = export.bundles(finished.folder, "pixel-8", "dense", tmp_path / "b", trust=True).bundles
    assert (made.folder / "model.onnx").read_bytes() == (finished.folder / "dense/pixel-8/model.onnx").read_bytes()
    assert len(verify(made.packed)) == 3


def test_the_same_run_gives_the_same_bytes(finished: Run, tmp_path: Path) -> None:
    packed = []
    for name in ("a", "b"):
        (made,) = export.bundles(finished.folder, "pixel-8", "50% macs", tmp_path / name / PLACE, trust=True).bundles
        packed.append(made.packed.read_bytes())
    assert packed[0] == packed[1]


# --- runs that give none ----------------------------------------------------------------------------------------------


def test_an_unfinished_run_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "provenance.json").unlink()
    result = call(copy, "--target", "pixel-8", "--out", tmp_path / "b")
    assert result.exit_code == RunFolderError.exit_code
    assert "is not finished" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_run_of_another_recipe_is_refused(copy: Path, tmp_path: Path) -> None:
    recipe = copy / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("seed: 0", "seed: 1"))
    result = call(copy, "--target", "pixel-8", "--out", tmp_path / "b")
    assert result.exit_code == RunFolderError.exit_code
    assert "is not the recipe that" in result.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--target", "pixle-8"), "it has pixel-8, my-phone. Perhaps you meant 'pixel-8'?"),
        (("--target", "pixel-8", "--budget", "10%"), "it has 'dense', '50% macs', '70% macs'."),
    ],
)
def test_what_the_run_does_not_have_is_told_with_what_it_has(
    finished: Run, args: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    result = call(finished.folder, *args, "--out", tmp_path / "b")
    assert result.exit_code == RunFolderError.exit_code
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def failed(folder: Path, *budgets: str) -> None:
    run = RunFolder(path=folder)
    rows = run.read_results()
    run.write_results([replace(r, status="failed", error="Too slow.") if r.budget in budgets else r for r in rows])


def test_a_failed_row_is_refused_with_its_error(copy: Path, tmp_path: Path) -> None:
    failed(copy, "50% macs")
    result = call(copy, "--target", "pixel-8", "--budget", "50% macs", "--out", tmp_path / "b")
    assert result.exit_code == MeasurementError.exit_code
    assert "50% macs failed" in result.stderr
    assert "Too slow." in result.stderr
    assert not (tmp_path / "b").exists()


def test_failed_rows_are_left_out_and_named(copy: Path, tmp_path: Path) -> None:
    failed(copy, "50% macs")
    result = call(copy, "--target", "pixel-8", "--out", tmp_path / "b")
    assert result.exit_code == 0
    assert result.stderr == "left out: pixel-8 50% macs failed: Too slow.\n"
    assert {p.name for p in (tmp_path / "b").iterdir()} == {"tiny-pixel-8-70pct-macs", "tiny-pixel-8-70pct-macs.zip"}
    failed(copy, "70% macs")
    assert call(copy, "--target", "pixel-8", "--out", tmp_path / "c").exit_code == MeasurementError.exit_code


@pytest.mark.parametrize("name", ["pixel-8/50% macs/weights.safetensors", "pixel-8/50% macs/model.onnx"])
@pytest.mark.parametrize("damage", ["changed", "deleted"])
def test_a_run_that_was_changed_is_refused(copy: Path, name: str, damage: str, tmp_path: Path) -> None:
    path = copy / name
    path.unlink() if damage == "deleted" else path.write_bytes(path.read_bytes() + b" ")
    result = call(copy, "--target", "pixel-8", "--budget", "50% macs", "--out", tmp_path / "b")
    assert result.exit_code == RunFolderError.exit_code
    assert "is missing or was changed after the run" in result.stderr


@pytest.mark.parametrize("budget", ["50% macs", "dense"])
def test_code_of_the_users_own_is_run_only_with_trust(finished: Run, budget: str, tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match="--trust"):
        export.bundles(finished.folder, "pixel-8", budget, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_what_stops_in_the_middle_leaves_nothing(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(write, "pack", interrupted)
    result = call(finished.folder, "--target", "pixel-8", "--out", tmp_path)
    assert result.exit_code == 130
    assert list(tmp_path.iterdir()) == []


def test_an_architecture_gives_an_artifact_as_before(finished: Run, tmp_path: Path) -> None:
    place = finished.folder / "pixel-8" / "50% macs"
    for wrong in ((), ("--out", tmp_path / "a.onnx", "--budget", "50%")):
        result = call(place, "--target", "pixel-8", *wrong)
        assert result.exit_code == 2
        assert "is no run folder" in result.stderr
    assert call(place, "--target", "pixel-8", "--out", tmp_path / "a.onnx").exit_code == 0
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]


def finished_pictures(task: str, model: str, folder: Path) -> Path:
    """A short run on scenes, from a recipe as users write it: its folder."""
    return pipeline.run(
        resolve({
            "name": task, "task": task, "model": {"source": model},
            "data": {"source": "scenes", "image_size": [32, 48], "fit": "letterbox"},
            "train": {"steps": 30, "batch_size": 16, "lr": 0.02}, "search": {"steps": 4, "batch_size": 16},
            "retrain": {"steps": 10, "batch_size": 16}, "measure": {"runs": 20, "warmup": 2},
            "targets": ["pixel-8"], "budgets": ["60% macs"], "device": "cpu", "threads": 1,
        }), folder,
    ).folder  # fmt: skip


def bundled_pictures(task: str, model: str, folder: Path) -> tuple[Path, list[str]]:
    """The bundle of a short run, and what the last two lines of the command are about."""
    bundle = folder / "b"
    result = call(
        finished_pictures(task, model, folder), "--target", "pixel-8", "--budget", "60% macs", "--out", bundle
    )
    assert result.exit_code == 0, result.stderr
    return bundle, [line.split(":")[0].strip() for line in result.stdout.splitlines()][-2:]


@pytest.mark.slow
def test_a_detectors_bundle_from_a_recipe(tmp_path: Path) -> None:
    """The artifact's boxes are compared with the slim network's; others are refused."""
    bundle, told_last = bundled_pictures("detection", "grid_detector", tmp_path)
    assert told_last == ["parity", "boxes"]
    told, post = read(bundle / "preprocessing.json"), read(bundle / "postprocessing.json")
    assert (told["fit"], told["height"], told["width"]) == ("letterbox", 32, 48)
    assert (post["kind"], post["program"], post["settings"]["size"]) == ("boxes", "decode_grid", [32, 48])
    expected = read(bundle / "sample" / "expected_boxes.json")
    assert sum(len(one["boxes"]) for one in expected) > 0
    for name in ("cpp/main.cpp", "cpp/preprocess.hpp", "cpp/decode.hpp", "kotlin/Network.kt", "kotlin/Decode.kt"):
        assert (bundle / name).is_file()
    assert "constexpr Codes kCodes = Codes::deltas" in (bundle / "cpp" / "decode.hpp").read_text()
    assert "constexpr Fit kFit = Fit::letterbox" in (bundle / "cpp" / "preprocess.hpp").read_text()
    assert script(bundle, "run").stdout.count("boxes") == len(expected)
    moved = [{**one, "boxes": [[x + 9 for x in box] for box in one["boxes"]]} for one in expected]
    (bundle / "sample" / "expected_boxes.json").write_text(json.dumps(moved))
    rehash(bundle)
    with pytest.raises(ParityError, match="boxes that are made of the network's outputs are not those of sample"):
        verify(bundle)


@pytest.mark.slow
def test_a_segmenters_bundle_from_a_recipe(tmp_path: Path) -> None:
    bundle, told_last = bundled_pictures("segmentation", "unet", tmp_path)
    assert told_last == ["parity", "pixels"]
    assert len(read(bundle / "labels.json")["labels"]) == 11
    expected = numpy.load(bundle / "sample" / "expected_classes.npy")
    assert expected.shape[1:] == (32, 48)
    assert "constexpr std::int64_t kClasses = 11, kMapHeight = 32" in (bundle / "cpp" / "decode.hpp").read_text()
    edit(bundle / "postprocessing.json", settings={"size": [32, 47]})
    rehash(bundle)
    with pytest.raises(BundleError, match="for inputs of"):
        verify(bundle)
