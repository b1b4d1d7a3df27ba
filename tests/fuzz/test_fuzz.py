"""Hostile input of every kind that comes from outside: read, or refused with a documented error; nothing else happens.

`make fuzz` tries 20,000 inputs and tells what came of them; the tests' usual run tries a few.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final
from unittest import mock

import numpy
import onnx
import picture_sets
import pytest
import torch
from fuzzing import Watch, damaged, files, watching
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from safetensors.torch import save

from deploy_prune import device as devices
from deploy_prune.architecture import json_file
from deploy_prune.commands import bench, export, transfer
from deploy_prune.data.boxes import load_boxes
from deploy_prune.data.masks import load_masks
from deploy_prune.device import host, new_target
from deploy_prune.device.address import Address
from deploy_prune.device.payload import verify as verifying
from deploy_prune.device.programs import run_program
from deploy_prune.device.remote import run_there
from deploy_prune.device.targets import load_target, targets_folder
from deploy_prune.errors import (
    ArchitectureError,
    BudgetError,
    BundleError,
    CommandError,
    DataError,
    DeployPruneError,
    MeasurementError,
    MissingDependencyError,
    ModelError,
    ParityError,
    RecipeError,
    RunFolderError,
    TargetError,
    WeightsError,
)
from deploy_prune.latency import measure as measure_module
from deploy_prune.networks import build, weights
from deploy_prune.recipe import file
from deploy_prune.recipe.data import BoxesPart, MasksPart
from deploy_prune.recipe.parts import ModelPart, PrunePart
from deploy_prune.report.page import write_page
from deploy_prune.report.row import Row
from deploy_prune.run.folder import RunFolder, load_tensors
from deploy_prune.run.stages import artifact_of
from deploy_prune.surgery.groups import find_groups
from deploy_prune.system import cache
from deploy_prune.system.guard import scratch
from deploy_prune.system.shell import Finished
from deploy_prune.system.strict_yaml import plain
from deploy_prune.types import Artifact, Latency

COUNTS: Final = {
    "recipe": 2000,
    "target": 2000,
    "annotations": 1000,
    "architecture": 3000,
    "weights": 3000,
    "bundle": 2000,
    "zip": 1500,
    "answer": 3500,
    "run_folder": 2000,
}
SHARE: Final = float(os.environ.get("DEPLOY_PRUNE_FUZZ", "0"))
"""Of COUNTS: 1 is what `make fuzz` tries."""
FEW: Final = 12
pytestmark = pytest.mark.timeout(1200 if SHARE else 120)


def inputs(kind: str) -> Callable[..., Any]:
    """So many inputs of a kind."""
    return settings(
        max_examples=round(SHARE * COUNTS[kind]) or FEW,
        deadline=None,
        database=None,
        derandomize=not SHARE,
        suppress_health_check=list(HealthCheck),
    )


def test_there_are_20000_inputs() -> None:
    assert sum(COUNTS.values()) == 20_000


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder that may be written, and the current one; code in it leaves a mark if it is imported."""
    (tmp_path / "evil.py").write_text("raise SystemExit(0)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEPLOY_PRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    return tmp_path


@pytest.fixture
def watch(
    place: Path, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> Iterator[Watch]:
    with scratch():  # the process that stands by to clean up is started by the first, and stays
        pass
    with watching(place) as watch:
        yield watch
    record_property("fuzz", (request.node.name.removeprefix("test_"), dict(watch.outcomes)))


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# --- recipe, target, architecture, weights ----------------------------------------------------------------------------


def described(text: bytes) -> dict[str, Any]:
    """A YAML file's values."""
    from ruamel.yaml import YAML

    return dict(plain(YAML(typ="rt", pure=True).load(text.decode())))


@st.composite
def yaml_files(draw: st.DrawFn, honest: bytes, values: dict[str, Any]) -> bytes:
    """Hostile in its structure (written as JSON, which YAML can read), or in its bytes."""
    return draw(files(values)) if draw(st.booleans()) else draw(damaged(honest, 4))


def test_recipe(watch: Watch, place: Path) -> None:
    honest = file.dump(file.load_recipe("quickstart")).encode()

    @inputs("recipe")
    @given(yaml_files(honest, described(honest)))
    def check(data: bytes) -> None:
        watch(lambda: file.load_recipe(str(written(place / "r.yaml", data))), (RecipeError,))

    check()


def test_target(watch: Watch, place: Path) -> None:
    honest = (targets_folder() / "pixel-8.yaml").read_bytes()

    @inputs("target")
    @given(yaml_files(honest, described(honest)))
    def check(data: bytes) -> None:
        watch(lambda: load_target(str(written(place / "t.yaml", data))), (TargetError,))

    check()


def small() -> str:
    """architecture.json of a small network."""
    part, x = ModelPart(source="conv2"), torch.zeros(1, 3, 32, 32)
    network = build.build_network(part, 10)
    keep = {g.name: torch.arange(g.channels) % 3 > 0 for g in find_groups(network, (x,), PrunePart()).groups}
    return json_file.dumps(json_file.describe(part, 10, (x,), keep, network, network))


def layer() -> torch.nn.Module:
    """A network whose weights are few: each hostile copy of them stays in memory as long as the test."""
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))


def test_architecture(watch: Watch, place: Path) -> None:
    honest = small()
    build.build_network(ModelPart(source="torchvision:resnet18"), 10)

    def read(data: bytes) -> None:
        json_file.dense_network(json_file.load(written(place / "a.json", data)))

    @inputs("architecture")
    @given(st.one_of(files(json.loads(honest)), damaged(honest.encode())))
    def check(data: bytes) -> None:
        watch(lambda: read(data), (ArchitectureError, ModelError, MissingDependencyError))

    check()


@st.composite
def tensors(draw: st.DrawFn, honest: bytes) -> bytes:
    """A .safetensors file: a length, a header in JSON, and numbers."""
    if draw(st.booleans()):
        return draw(damaged(honest, 3))
    length = struct.unpack("<Q", honest[:8])[0]
    header = draw(files(json.loads(honest[8 : 8 + length])))
    told = draw(st.sampled_from((len(header), len(header), len(header), 0, 2**31, 2**63, len(header) + 1)))
    return struct.pack("<Q", told) + header + honest[8 + length :]


def test_weights(watch: Watch, place: Path) -> None:
    network = layer()
    honest = save(network.state_dict())
    torch.save(network.state_dict(), place / "w.pt")
    pickled = (place / "w.pt").read_bytes()
    reads: dict[str, Callable[[Path], Any]] = {
        "w.safetensors": load_tensors,
        "m.safetensors": lambda path: weights.load_weights(network, path),
        "w.pt": lambda path: weights.load_weights(network, path),
    }

    @inputs("weights")
    @given(st.sampled_from(sorted(reads)), st.data())
    def check(name: str, data: st.DataObject) -> None:
        content = data.draw(damaged(pickled, 3) if name == "w.pt" else tensors(honest))
        watch(lambda: reads[name](written(place / name, content)), (RunFolderError, WeightsError))

    check()


# --- pictures and their annotations -----------------------------------------------------------------------------------


def test_annotations(watch: Watch, place: Path) -> None:
    """One file of a data set is hostile; what is broken in it is left out, or the error says what can't be read."""
    sets = {
        name: write(place / name, train=3, test=1)
        for name, write in (("coco", picture_sets.coco), ("voc", picture_sets.voc), ("yolo", picture_sets.yolo))
    }
    sets["folders"] = picture_sets.masks(place / "folders", train=3, test=1)
    for path in sets["coco"].glob("annotations/*.json"):
        told = json.loads(path.read_text())
        for one in told["annotations"]:
            left, top, wide, high = one["bbox"]
            one["segmentation"] = [[left, top, left + wide, top, left, top + high]]
            one["keypoints"] = [left, top, 2, left + wide, top, 1]
        told["categories"] = [one | {"keypoints": ["left_eye", "right_eye"]} for one in told["categories"]]
        path.write_text(json.dumps(told))
    honest = {path: path.read_bytes() for root in sets.values() for path in sorted(root.rglob("*")) if path.is_file()}
    keys = {"broken": "skip", "image_size": 16, "classes": ["red", "green", "blue", "pink"]}
    parts = {name: BoxesPart(source=name, root=str(sets[name]), **keys) for name in ("coco", "voc", "yolo")}
    parts["points"] = BoxesPart(source="coco", root=str(sets["coco"]), objects="keypoints", **keys)
    parts["outlines"] = BoxesPart(source="coco", root=str(sets["coco"]), objects="masks", augment="mosaic", **keys)
    parts["folders"] = MasksPart(source="folders", root=str(sets["folders"]), **keys)

    def read(name: str) -> None:
        part = parts[name]
        data = load_masks(part, 0) if isinstance(part, MasksPart) else load_boxes(part, 0)
        for examples in (data.source_train, data.source_test):
            examples.take(torch.arange(len(examples)))
            examples.varied(torch.arange(len(examples)), torch.Generator().manual_seed(0))

    for name in parts:  # what is imported late is imported now
        read(name)

    @inputs("annotations")
    @given(st.sampled_from(sorted(honest)), st.data())
    def check(path: Path, data: st.DataObject) -> None:
        told = json.loads(honest[path]) if path.suffix == ".json" else None
        content = data.draw(damaged(honest[path], 3) if told is None else files(told))
        name = path.relative_to(place).parts[0]
        name = data.draw(st.sampled_from(("coco", "points", "outlines"))) if name == "coco" else name
        try:
            written(path, content)
            watch(lambda: read(name), (DataError,))
        finally:
            path.write_bytes(honest[path])

    check()


# --- bundles ----------------------------------------------------------------------------------------------------------


def bundle(folder: Path) -> Path:
    """A bundle of a network that sums each colour."""
    (folder / "sample").mkdir(parents=True)
    images = numpy.arange(2 * 8 * 8 * 3, dtype="uint8").reshape(2, 8, 8, 3)
    x = (images.astype("float32") / 255).transpose(0, 3, 1, 2)
    for name, array in {"images": images, "input": x, "expected_0": x.sum((2, 3))}.items():
        numpy.save(folder / "sample" / f"{name}.npy", array)
    node = helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 3, 8, 8]), ("y", [1, 3]))]
    graph = helper.make_graph([node], "g", values[:1], values[1:], [axes])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx"
    )
    told: dict[str, Any] = {
        "bundle.json": {
            "bundle": 1,
            "name": "b",
            "format": "onnx",
            "precision": "fp32",
            "runtime": "onnxruntime",
            "artifact": "model.onnx",
            "images": "sample/images.npy",
            "input": "sample/input.npy",
            "expected": ["sample/expected_0.npy"],
        },
        "preprocessing.json": {
            "divide_by": 255,
            "mean": [0.0, 0.0, 0.0],
            "std": [1.0, 1.0, 1.0],
            "colour": "RGB",
            "height": 8,
            "width": 8,
            "layout": "NCHW",
            "input_shape": [1, 3, 8, 8],
            "fit": "cut",
            "pad": None,
        },
        "postprocessing.json": {"kind": "classes", "about": "the largest score"},
        "parity.json": {"allowed": {"tolerance": 1e-4, "least_db": None}},
        "labels.json": {"labels": ["a", "b", "c"]},
    }
    for name, content in told.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "provenance.json").write_text(json.dumps({"files": sums(folder)}))
    return folder


def sums(folder: Path) -> dict[str, str]:
    names = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file()]
    return {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in names if n != "provenance.json"}


@st.composite
def changes(draw: st.DrawFn, contents: dict[str, bytes]) -> dict[str, bytes]:
    """A bundle's files with some of them hostile; most often its sums are right, as those who made it would see to."""
    names = [n for n in sorted(contents) if n not in ("model.onnx", "provenance.json")]
    made = dict(contents)
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)):
        content = contents[name]
        made[name] = draw(damaged(content, 3) if name.endswith(".npy") else files(json.loads(content)))
    told = {n: hashlib.sha256(c).hexdigest() for n, c in made.items() if n != "provenance.json"}
    manifest = {"files": told}
    if draw(st.integers(0, 5)) == 0:
        made["provenance.json"] = draw(files(manifest))
    else:
        made["provenance.json"] = json.dumps(manifest).encode()
    return made


def verified(path: Path) -> None:
    """The check of a bundle, in this process; its failures as the package's errors.

    In a thread: ONNX Runtime leaves denormal numbers flushed to 0 where it ran, which other tests would see.
    """
    try:
        with ThreadPoolExecutor(1) as apart:
            apart.submit(lambda: list(verifying.checked(path))).result()
    except verifying.FailureError as failure:
        raise KINDS[failure.kind](str(failure)) from failure


KINDS: Final[dict[str, type[DeployPruneError]]] = {
    "BundleError": BundleError,
    "MeasurementError": MeasurementError,
    "ParityError": ParityError,
    "MissingDependencyError": MissingDependencyError,
}


def contents_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of numbers that are none
def test_bundle(watch: Watch, place: Path) -> None:
    contents = contents_of(bundle(place / "b"))
    verified(place / "b")

    @inputs("bundle")
    @given(changes(contents))
    def check(made: dict[str, bytes]) -> None:
        for name, content in made.items():
            (place / "b" / name).write_bytes(content)
        watch(lambda: verified(place / "b"), tuple(KINDS.values()))

    check()


NAMES: Final = (
    "../x",
    "/x",
    "b/../../x",
    "b\\x",
    "c:x",
    "b/con",
    "b/\x1b[31m",
    "b/x/" * 30,
    "b/" + "n" * 300,
    "B/bundle.json",
    "b/.",
    "x",
)


@st.composite
def zips(draw: st.DrawFn, contents: dict[str, bytes], path: Path) -> bytes:
    """A zip of a bundle with members of odd names and kinds, and with bytes that lie."""
    made = draw(changes(contents)) if draw(st.booleans()) else contents
    with zipfile.ZipFile(path, "w") as packed:
        for name, content in made.items():
            entry = zipfile.ZipInfo(f"b/{name}")
            entry.compress_type = draw(st.sampled_from((0, 0, 0, 8, 12, 14)))
            packed.writestr(entry, content)
        for name in draw(st.lists(st.sampled_from(NAMES), max_size=2, unique=True)):
            entry = zipfile.ZipInfo(name)
            entry.external_attr = draw(st.sampled_from((0, 0o120777, 0o020666, 0o100644))) << 16
            packed.writestr(entry, bytes(draw(st.sampled_from((0, 1, 10**6)))), draw(st.sampled_from((0, 8))))
    data = bytearray(path.read_bytes())
    for signature, shift in draw(
        st.lists(st.sampled_from(((b"PK\1\2", 24), (b"PK\1\2", 10), (b"PK\5\6", 8), (b"PK\5\6", 12))), max_size=2)
    ):
        at = data.rfind(signature) + shift
        data[at : at + 4] = struct.pack("<I", draw(st.sampled_from((0, 1, 12, 10**6, 2**32 - 1))))
    return draw(damaged(bytes(data), 1)) if draw(st.booleans()) else bytes(data)


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:Duplicate name")
def test_zip(watch: Watch, place: Path) -> None:
    contents = contents_of(bundle(place / "b"))

    @inputs("zip")
    @given(zips(contents, place / "made.zip"))
    def check(data: bytes) -> None:
        watch(lambda: verified(written(place / "b.zip", data)), tuple(KINDS.values()))

    check()


# --- devices' answers -------------------------------------------------------------------------------------------------

BENCH: Final = {
    "samples_ms": [[1.0, 1.5, 1.25]],
    "device": "a board",
    "versions": {"onnxruntime": "1.2"},
    "runs_per_sample": 1,
    "conditions": {
        "before": {"clock_mhz": 1800.0, "temperatures_c": {"cpu": 40.0}},
        "after": {"clock_mhz": 1700.0, "temperatures_c": {"cpu": 45.0}},
    },
}
PROFILE: Final = {"nodes": [{"Conv_0": 0.5, "Gemm_1": 0.25}], "device": "a board", "versions": {}}
OUTPUTS: Final = {"outputs": [["0.0.npy"]], "device": "a board", "versions": {}}
ABOUT: Final = {
    "device": "a board",
    "about": {
        "board": "a board",
        "system": "Linux",
        "cores": 4,
        "clock_max_mhz": 1800,
        "governors": ["performance"],
        "python": "3.11",
        "packages": {"onnxruntime": "1.20", "numpy": "2.0"},
    },
}
PRINTED: Final = (
    "/data/local/tmp/deploy-prune\nrun.abc123",
    "none\nnone",
    "Inference (avg): 345.6\n",
    "Inference (avg): 1e999\n",
    "Inference (avg): e+.\n",
    "clock 1800000\nthermal_zone0 40000\n",
    "clock " + "9" * 5000 + "\n",
    "cores=²\nmemory_kib=" + "9" * 5000 + "\n",
    "board=\x1b[31m\n",
    "",
    json.dumps(BENCH),
    json.dumps(OUTPUTS),
    "0" * 64,
    "/\nrun.x",
    "[" * 5000,
    "P50 Latency: 1 s",
)


class Talker:
    """A device that says what it likes."""

    def __init__(self, say: Callable[[], str]) -> None:
        self.say, self.address, self.root = say, Address(scheme="ssh", host="board"), "~/x"

    def shell(self, *how: Any) -> Finished:
        return Finished(code=0, output=self.say(), errors="")

    def send(self, *how: Any) -> Finished:
        return Finished(code=0, output="", errors="")

    def fetch(self, path: str, target: Path, timeout_s: float) -> Finished:
        target.write_bytes(b"\x93NUMPY")
        return Finished(code=0, output="", errors="")


def listened(place: Path, artifact: Artifact) -> dict[str, Callable[[dict[str, Any]], Any]]:
    """What is made of an answer, and by whom."""
    target = load_target("host")

    def told(answer: dict[str, Any]) -> Any:
        return mock.patch.multiple(measure_module, reach=lambda *a: lambda *b: answer)

    def measure(answer: dict[str, Any]) -> None:
        with told(answer):
            found = measure_module.measure(target, [artifact], 3, 1)
        assert all(isinstance(each, Latency) and each.p99_ms > 0 for each in found)
        json.dumps([asdict(each) for each in found], allow_nan=False)

    def profile(answer: dict[str, Any]) -> None:
        with told(answer):
            json.dumps(measure_module.profile(target, [artifact]), allow_nan=False)

    def run(answer: dict[str, Any]) -> None:
        with mock.patch.multiple(devices, reach=lambda *a: lambda *b: answer):
            devices.run(artifact, torch.zeros(1, 3, 8, 8), "onnxruntime")

    def new(answer: dict[str, Any]) -> None:
        (place / "new.yaml").unlink(missing_ok=True)
        with mock.patch.multiple(new_target, reach=lambda *a: lambda *b: answer):
            new_target.new_target("new", "ssh://board", place / "new.yaml")

    return {"measure": measure, "profile": profile, "run": run, "new": new}


def test_answer(watch: Watch, place: Path) -> None:
    path = bundle(place / "b") / "model.onnx"
    artifact = Artifact(
        path=path,
        format="onnx",
        precision="fp32",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        input_shape=(1, 3, 8, 8),
        versions={},
    )
    (place / "benchmark_model").write_bytes(b"x")
    uses = listened(place, artifact)
    honest: dict[str, Any] = {"measure": BENCH, "profile": PROFILE, "run": OUTPUTS, "new": ABOUT}
    allowed = (CommandError, MeasurementError, TargetError)
    spec = {"mode": "bench", "models": [devices.entry(artifact, "onnxruntime")], "threads": 1, "runs": 3, "warmup": 1}

    def talk(words: list[str], payload: Path) -> None:
        said = iter(words * 50)
        talker = Talker(lambda: next(said))
        if payload.suffix == ".py":
            run_there(talker, devices.ABOUT, {}, 5.0)
        else:
            run_program(talker, payload, devices.SCRIPT, spec, 5.0)

    @inputs("answer")
    @given(st.data())
    def check(data: st.DataObject) -> None:
        if data.draw(st.integers(0, 4)) == 0:
            words = data.draw(st.lists(st.sampled_from(PRINTED), min_size=4, max_size=8))
            payload = data.draw(st.sampled_from((place / "benchmark_model", devices.ABOUT)))
            watch(lambda: talk([PRINTED[0], *words], payload), allowed)
            return
        use = data.draw(st.sampled_from(sorted(uses)))
        text = data.draw(files(honest[use])).decode("utf-8", "replace")
        watch(lambda: uses[use](host.as_object(text, "device.py")), allowed)

    check()


# --- a run's folder ---------------------------------------------------------------------------------------------------


def run(folder: Path) -> Path:
    """A finished run's folder."""
    place, target = folder / "pixel-8" / "50%", load_target("pixel-8")
    text, weights = small(), save(layer().state_dict())
    row = Row(
        target="pixel-8",
        runtime=target.runtime,
        precision="fp32",
        budget="50%",
        metric="latency",
        asked=1.0,
        predicted=0.9,
        predicted_ms=0.9,
        measured_p50_ms=None,
        measured_p90_ms=None,
        dense_p50_ms=None,
        measured_on=None,
        macs=1000,
        params=100,
        size_bytes=400,
        score=0.5,
        score_dense=0.6,
        score_artifact=None,
        parity_max_abs=1e-7,
        status="ok",
        error=None,
    )
    dense = {**asdict(row), "budget": "dense", "asked": None, "predicted": None, "macs": 2000}
    step = {
        "step": 0,
        "limit": 1.0,
        "predicted": 0.9,
        "observed": None,
        "asked": 1.0,
        "chosen": True,
        "counts": {},
        "scale": 1.0,
    }
    artifact = {
        "path": "model.tflite",
        "format": "litert",
        "precision": "fp32",
        "sha256": "0" * 64,
        "input_shape": [1, 3, 32, 32],
        "versions": {},
        "layout": "NHWC",
    }
    recipe = "name: run\nmodel: {source: conv2}\ndata: {source: digits}\ntargets: [pixel-8]\nbudgets: [50%]\n"
    told: dict[str, Any] = {
        "results.json": [dense, asdict(row)],
        "search/trace.json": [{"step": 1, "loss": 1.0, "kept": 0.5}, {"step": 2, "loss": 0.5, "kept": 0.25}],
        "dense/training.json": {"source_score": 0.5, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        "pixel-8/50%/artifact.json": artifact,
        "pixel-8/50%/loop.json": {"metric": "latency", "tolerance": 0.03, "steps": [step]},
        "pixel-8/50%/latency.json": {"ms": 0.9, "method": "roofline", "error": None},
        "pixel-8/50%/parity.json": {"max_abs": 1e-7, "tolerance": 1e-4},
        ".stages/search.json": {"digest": "0", "files": {}, "stage": "search", "seconds": 1.0},
    }
    for name, content in told.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    (place / "architecture.json").write_text(text)
    (place / "weights.safetensors").write_bytes(weights)
    (folder / "recipe.yaml").write_text(recipe)
    sha256 = hashlib.sha256(recipe.encode()).hexdigest()
    versions = {"torch": torch.__version__, "deploy-prune": "0"}
    (folder / "provenance.json").write_text(
        json.dumps(
            {
                "recipe_sha256": sha256,
                "files": {},
                "versions": versions,
                "seconds": {"search": 1.0},
                "command": "x",
                "cpu": "x",
                "python": "3",
                "platform": "x",
                "seed": 0,
                "finished": "2026-01-01T00:00:00+00:00",
            }
        )
    )
    return folder


def read_again(folder: Path) -> dict[str, Callable[[], Any]]:
    """What is done with a run's folder."""
    here, place = RunFolder(path=folder), "pixel-8/50%"

    def export_one() -> None:
        finished = export._finished(folder, trust=False)
        for row in export._rows(finished, "pixel-8", None):
            export._refuse_changed(finished, export._place(row, finished.recipe))
            assert artifact_of(here, place).path.resolve().is_relative_to((folder / place).resolve())

    def move() -> None:
        transfer.transfer_recipe(transfer.gather(folder / place, None), ["data.shots=3"])

    return {
        "bench": lambda: bench.bench(folder, 10),
        "export": export_one,
        "marks": lambda: (here.seconds(), here.stage("search", {}, [], lambda: None)),
        "report": lambda: write_page(folder),
        "results": lambda: here.write_results(here.read_results()),
        "transfer": move,
    }


READ_BY: Final = {
    "bench": ("results.json", "recipe.yaml"),
    "export": ("results.json", "recipe.yaml", "provenance.json", "pixel-8/50%/artifact.json"),
    "marks": (".stages/search.json",),
    "report": (
        "results.json",
        "search/trace.json",
        "provenance.json",
        "pixel-8/50%/loop.json",
        "pixel-8/50%/latency.json",
        "pixel-8/50%/architecture.json",
    ),
    "results": ("results.json",),
    "transfer": (
        "dense/training.json",
        "recipe.yaml",
        "pixel-8/50%/architecture.json",
        "pixel-8/50%/weights.safetensors",
    ),
}
"""Use -> the files that it reads."""
RUN_ERRORS: Final = (
    ArchitectureError,
    BudgetError,
    DataError,
    MeasurementError,
    RecipeError,
    RunFolderError,
    TargetError,
    WeightsError,
)


def test_run_folder(watch: Watch, place: Path) -> None:
    made = run(place / "run")
    contents, uses = contents_of(made), read_again(made)
    for use in uses.values():
        use()
    honest = json.dumps({"key": {"a": 1}, "value": {"b": [1.0]}})
    store = place / "cache" / "x"
    cache.store_json("x", {"a": 1}, {"b": [1.0]})

    @inputs("run_folder")
    @given(st.sampled_from(sorted([*uses, "cache", "results", "marks", "export"])), st.data())
    def check(use: str, data: st.DataObject) -> None:
        if use == "cache":
            content = data.draw(files(json.loads(honest)))
            for path in store.iterdir():
                path.write_bytes(content)
            watch(lambda: cache.kept_json("x", {"a": 1}), ())
            return
        name = data.draw(st.sampled_from(READ_BY[use]))
        content = contents[name]
        if name.endswith(".json"):
            content = data.draw(files(json.loads(content)))
        elif name.endswith(".yaml"):
            content = data.draw(yaml_files(content, described(content)))
        else:
            content = data.draw(tensors(content))
        (made / name).write_bytes(content)
        if use == "export" and name == "recipe.yaml":
            told = json.loads(contents["provenance.json"]) | {"recipe_sha256": hashlib.sha256(content).hexdigest()}
            (made / "provenance.json").write_text(json.dumps(told))
        try:
            watch(uses[use], RUN_ERRORS)
        finally:
            for restored in (name, "provenance.json", "results.json", ".stages/search.json"):
                (made / restored).write_bytes(contents[restored])

    check()
