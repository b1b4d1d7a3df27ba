"""Bundles of a detector and of a segmenter: from a picture of any size to its boxes or its pixels' classes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import native
import numpy
import pytest
import torch
from bundles import edit, made, rehash, script
from PIL import Image

from deploy_prune.bundle import write
from deploy_prune.bundle.meaning import Meaning, words
from deploy_prune.bundle.verify import verify
from deploy_prune.bundle.write import Bundle, Contents
from deploy_prune.data.boxes import load_boxes
from deploy_prune.data.examples import spread
from deploy_prune.data.masks import load_masks
from deploy_prune.device import DECODERS
from deploy_prune.device.payload import answers, picture, run
from deploy_prune.errors import ParityError
from deploy_prune.export import FORMATS, isolated
from deploy_prune.families import Decode, raw_form
from deploy_prune.networks.grid_detector import GridDetector
from deploy_prune.networks.unet import UNet
from deploy_prune.recipe.data import BoxesPart, MasksPart
from deploy_prune.recipe.parts import ExportPart
from deploy_prune.tasks.segmentation import loss as pixel_loss

SIZE = [48, 64]
STEPS = 12


def trained(network, examples, loss):
    """In eval mode, after a few steps."""
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        batch = examples.take(torch.randint(len(examples), (8,), generator=generator))
        optimizer.zero_grad()
        loss(network(*batch.inputs), batch.targets).backward()
        optimizer.step()
    return network.eval()


def delivered(folder: Path, network, data, meaning, name="onnx") -> Bundle:
    (folder / "run").mkdir()
    test = data.target_test
    chosen = spread(test.strata, 4)
    images = (test.pixels(chosen) * 255).round().to(torch.uint8)
    inputs = test.normalise(images.float() / 255)
    path = folder / "run" / f"model{FORMATS[name].suffix}"
    artifact = isolated.write(name, network, inputs[:1], path, "fp32", ExportPart(), inputs)
    return write.write(
        Contents(
            about={"run": "r", "target": "t", "budget": "50%"}, artifact=artifact, network=network, images=images,
            inputs=inputs, mean=tuple(test.mean.tolist()), std=tuple(test.std.tolist()), labels=data.target_names,
            are_names=True, parity={}, latency={"in_words": "1 ms"}, provenance={}, fit=test.frame.fit, meaning=meaning,
        ),
        folder / "bundle",
    )  # fmt: skip


def detector_bundle(folder: Path, name: str) -> Bundle:
    """In this format."""
    data = load_boxes(BoxesPart(image_size=SIZE, fit="letterbox"), 0)
    torch.manual_seed(0)
    network = GridDetector(10, width=8)
    form = raw_form(network, (torch.zeros(1, 3, *SIZE),))
    network = trained(network, data.target_train, form.loss)
    settings = {**form.decode.settings, "least_score": 0.002}  # after so few steps
    meaning = Meaning(kind="boxes", decode=Decode(program="decode_grid", settings=settings))
    return delivered(folder, network, data, meaning, name)


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> Bundle:
    """Not to be changed."""
    return detector_bundle(tmp_path_factory.mktemp("boxes"), "onnx")


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory) -> Bundle:
    """Not to be changed."""
    data = load_masks(MasksPart(image_size=SIZE, fit="letterbox"), 0)
    torch.manual_seed(0)
    network = trained(UNet(11, width=4), data.target_train, pixel_loss)
    meaning = Meaning(kind="pixels", decode=Decode(program="decode_pixels", settings={"size": SIZE}))
    return delivered(tmp_path_factory.mktemp("pixels"), network, data, meaning)


def test_boxes_are_checked_beside_tensors(detector):
    told = json.loads((detector.folder / "preprocessing.json").read_text())
    assert (told["fit"], told["pad"], told["height"], told["width"]) == ("letterbox", picture.PAD, *SIZE)
    assert json.loads((detector.folder / "labels.json").read_text())["labels"] == list("0123456789")
    expected = json.loads((detector.folder / "sample" / "expected_boxes.json").read_text())
    assert sum(len(one["boxes"]) for one in expected) > 0
    assert [line.split(":")[0] for line in verify(detector.packed)] == ["files", "preprocessing", "parity", "boxes"]
    assert script(detector.folder, "verify").stdout.splitlines()[-1].startswith("boxes: sample/expected_boxes.json is")


def swapped(folder: Path) -> None:
    path = folder / "python" / "decode_grid.py"
    path.write_text(path.read_text().replace("[place % width, place // width]", "[place // width, place % width]"))


def stride(folder: Path) -> None:
    path = folder / "postprocessing.json"
    edit(path, settings=json.loads(path.read_text())["settings"] | {"stride": 8})


@pytest.mark.parametrize("fault", [swapped, stride])
def test_a_wrong_decoding_is_caught(detector, fault, tmp_path):
    copy = Path(shutil.copytree(detector.folder, tmp_path / "copy"))
    fault(copy)
    rehash(copy)
    done = script(copy, "verify")
    assert done.returncode == ParityError.exit_code, done.stdout
    assert "boxes that are made of the network's outputs are not those" in done.stderr


def test_boxes_are_in_pixels_of_the_picture(detector, tmp_path):
    """The scaling and the bars of the letterbox are undone."""
    copy = Path(shutil.copytree(detector.folder, tmp_path / "copy"))
    path = copy / "python" / "answers.py"
    path.write_text(path.read_text().replace("SURE = 0.3", "SURE = 0.0"))
    data = load_boxes(BoxesPart(image_size=SIZE, fit="letterbox"), 0).target_test
    number = int(spread(data.strata, 4)[0])
    pixels = data.items[number].picture.pixels(3)
    Image.fromarray(pixels).save(tmp_path / "scene.png")
    done = script(copy, "run", tmp_path / "scene.png")
    first, *lines = done.stdout.splitlines()
    (wanted, *_) = json.loads((copy / "sample" / "expected_boxes.json").read_text())
    assert first == f"{tmp_path / 'scene.png'}: {len(wanted['boxes'])} boxes", done.stderr
    high, wide = pixels.shape[:2]
    scale = min(SIZE[0] / high, SIZE[1] / wide)
    inner = numpy.array([round(wide * scale), round(high * scale)] * 2)
    top = (SIZE[0] - inner[1]) // 2
    assert top > 0, "nothing to undo"
    for line, box, label in zip(lines, wanted["boxes"], wanted["labels"], strict=True):
        name, _, *edges = line.split()
        assert name == str(label)
        undone = (numpy.array(box) - [0, top, 0, top]) / inner * [wide, high, wide, high]
        assert numpy.abs(numpy.array(edges, float) - undone.clip(0, [wide, high, wide, high])).max() < 0.1


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("kind", ["boxes", "pixels"])
def test_the_bundles_headers_do_what_its_python_does(kind, request, tmp_path):
    """From a picture of another size to the network's input, and from the artifact's outputs back to the picture."""
    folder = request.getfixturevalue({"boxes": "detector", "pixels": "segmenter"}[kind]).folder
    told, post = (json.loads((folder / f"{name}processing.json").read_text()) for name in ("pre", "post"))
    scene = load_boxes(BoxesPart(image_size=SIZE, fit="letterbox"), 0).target_test.items[0].picture.pixels(3)
    Image.fromarray(scene).save(tmp_path / "scene.png")
    outputs, size = run.run(folder, tmp_path / "scene.png")
    command = native.cpp_of_bundle(folder, kind, tmp_path)
    _, x, raw = native.answered(command, tmp_path, scene, SIZE, [y[0] for y in outputs])
    bytes_, _ = run.picture(tmp_path / "scene.png", told)
    numpy.testing.assert_allclose(x, run.preprocess(bytes_[None], told).reshape(-1), atol=1e-6)
    wanted = run.in_picture(answers.decode(post, outputs, SIZE)[0], size, told)
    if kind == "boxes":
        found = native.boxes_of(raw)
        assert found["labels"].tolist() == wanted["labels"].tolist()
        assert len(wanted["labels"]) > 0
        numpy.testing.assert_allclose(found["boxes"], wanted["boxes"], atol=1e-2)
        numpy.testing.assert_allclose(found["scores"], wanted["scores"], atol=1e-5)
    else:
        found = numpy.frombuffer(raw, "uint8").reshape(wanted["classes"].shape)
        assert len(numpy.unique(found)) > 1
        assert (found != wanted["classes"]).mean() < 1e-3


@pytest.mark.openvino
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_a_program_finds_the_boxes_that_the_bundles_python_finds(tmp_path):
    """The bundle's whole program in C++, with the one runtime that brings its headers and library."""
    openvino = pytest.importorskip("openvino")
    folder = detector_bundle(tmp_path, "openvino").folder
    for path, before, after in (
        ("python/answers.py", "SURE = 0.3", "SURE = 0.0"),
        ("cpp/decode.hpp", "kSure = 0.3", "kSure = 0.0"),
    ):
        text = (folder / path).read_text()
        assert before in text
        (folder / path).write_text(text.replace(before, after))
    scene = load_boxes(BoxesPart(image_size=SIZE, fit="letterbox"), 0).target_test.items[0].picture.pixels(3)
    Image.fromarray(scene).save(tmp_path / "scene.png")
    numpy.save(tmp_path / "scene.npy", scene)
    place = Path(openvino.__file__).parent
    (library,) = (place / "libs").glob("libopenvino.so*")
    command = ["g++", "-std=c++17", str(folder / "cpp" / "main.cpp"), "-I", str(place / "include")]
    command += ["-o", str(tmp_path / "a.out"), str(library), f"-Wl,-rpath,{library.parent}"]
    subprocess.run(command, check=True, timeout=600)
    given = [str(tmp_path / "a.out"), str(folder / "model.openvino" / "model.xml"), str(tmp_path / "scene.npy")]
    first, *lines = subprocess.run(given, capture_output=True, check=True, text=True, timeout=60).stdout.splitlines()
    wanted_first, *wanted = script(folder, "run", tmp_path / "scene.png").stdout.splitlines()
    assert wanted_first.endswith(f": {first}")
    assert len(lines) > 3
    for line, other in zip(lines, wanted, strict=True):
        assert line.split()[0] == other.split()[0], "digits are called by their numbers"
        numpy.testing.assert_allclose([float(x) for x in line.split()], [float(x) for x in other.split()], atol=0.06)


def test_pixels_are_checked_and_written_in_the_pictures_size(segmenter, tmp_path):
    assert [line.split(":")[0] for line in verify(segmenter.folder)] == ["files", "preprocessing", "parity", "pixels"]
    Image.fromarray(numpy.full((40, 90, 3), 120, "uint8")).save(tmp_path / "a.png")
    done = script(segmenter.folder, "run", tmp_path / "a.png")
    assert done.returncode == 0, done.stderr
    found = numpy.asarray(Image.open(tmp_path / "a-classes.png"))
    assert found.shape == (40, 90)
    assert found.max() < 11
    assert len(script(segmenter.folder, "run").stdout.splitlines()) == 4
    assert "exists already" in script(segmenter.folder, "run", tmp_path / "a.png").stderr


def test_other_pixels_are_caught(segmenter, tmp_path):
    copy = Path(shutil.copytree(segmenter.folder, tmp_path / "copy"))
    path = copy / "sample" / "expected_classes.npy"
    numpy.save(path, numpy.load(path)[:, ::-1])
    rehash(copy)
    with pytest.raises(ParityError, match="pixels that are made of the network's outputs are not those"):
        verify(copy)


def test_a_classifier_has_nothing_to_decode(tmp_path):
    bundle = made(tmp_path)
    assert json.loads((bundle.folder / "postprocessing.json").read_text())["kind"] == "classes"
    assert len(verify(bundle.folder)) == 3


def test_every_program_may_be_named():
    assert answers.PROGRAMS == DECODERS
    with pytest.raises(ValueError, match="names the program"):
        answers.decode({"program": "os", "settings": {"size": [1, 1]}}, [], [1, 1])


@pytest.mark.parametrize("fit", picture.FITS)
def test_a_mask_goes_back_to_where_it_was(fit):
    mask = numpy.repeat(numpy.repeat(numpy.arange(1, 25, dtype="uint8").reshape(4, 6), 20, 0), 20, 1)
    there = picture.fitted_mask(mask, 64, 64, fit, 0)
    back = picture.mask_to_picture(there, (120, 80), fit, 255)
    seen = back != 255
    assert (back[seen] == mask[seen]).mean() > 0.9
    assert seen.all() == (fit != "cut")


def boxes(*rows: tuple[int, float, list[float]]) -> list[answers.Answer]:
    """One picture's, of (label, score, box)."""
    told = {key: [row[place] for row in rows] for place, key in enumerate(("labels", "scores", "boxes"))}
    return answers.from_json([told])


ONE, TWO = (3, 0.9, [10.0, 20, 30, 60]), (5, 0.8, [40.0, 10, 60, 30])


@pytest.mark.parametrize(
    ("found", "share"),
    [
        ([TWO, ONE], 0.0),
        ([ONE, TWO, (1, 0.2, [0.0, 0, 9, 9])], 0.0),  # one that isn't sure enough
        ([ONE, (5, 0.8, [40.0, 11, 60, 30])], 0.0),
        ([ONE], 1 / 3),
        ([ONE, TWO, TWO], 1 / 5),
        ([ONE, (4, *TWO[1:])], 1 / 2),
        ([ONE, (5, 0.7, TWO[2])], 1 / 2),
        ([ONE, (5, 0.8, [10.0, 40, 30, 60])], 1 / 2),
        ([], 1.0),
    ],
)
def test_boxes_need_a_partner_each(found, share):
    allowed = answers.ALLOWED["fp32"]
    assert answers.lost("boxes", boxes(ONE, TWO), boxes(*found), allowed) == pytest.approx(share)
    assert answers.compared("boxes", boxes(ONE, TWO), boxes(*found), allowed)[1] == (share == 0)


def test_no_boxes_are_said_to_be_none():
    words, agrees = answers.compared("boxes", boxes(), boxes((1, 0.1, [0.0, 0, 9, 9])), answers.ALLOWED["fp32"])
    assert (words, agrees) == ("the network finds no boxes in the sample", True)
    assert not answers.compared("boxes", boxes(), boxes(ONE), answers.ALLOWED["fp32"])[1]


@pytest.mark.parametrize("kind", ["detector", "segmenter"])
def test_the_readme_says_that_programs_decode(kind, request):
    text = (request.getfixturevalue(kind).folder / "README.md").read_text()
    assert "The programs in other languages do the same." in text
    assert "`cpp/main.cpp`" in text
    assert "key points" not in text


def test_masks_and_key_points_are_said_to_be_decoded_in_python_alone():
    for settings, said in (({"parts": "masks"}, True), ({"parts": None}, False), ({"keypoints": [17, 3]}, True)):
        meaning = Meaning(kind="boxes", decode=Decode(program="decode_rcnn", settings=settings))
        text = words(meaning, [], ["a"], True)["output_words"]
        assert ("Masks and key points are decoded in Python alone." in text) == said
