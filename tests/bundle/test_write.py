"""Bundles of every format: what is in them, that they check themselves, and that their code runs on its own."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import bundles
import numpy
import pytest
import torch
from bundles import CLASSES, LABELS, SIZE, artifact, contents, edit, made, network, replace_artifact, script

from deploy_prune.bundle import write
from deploy_prune.bundle.languages import DECODING, PLACES, SNIPPETS, TEMPLATES, places
from deploy_prune.bundle.verify import verify
from deploy_prune.bundle.write import Bundle
from deploy_prune.device import PAYLOAD
from deploy_prune.device.payload.run import PACKAGES
from deploy_prune.errors import ExportError, MeasurementError, ParityError
from deploy_prune.export import FORMATS

ALWAYS = {
    "README.md", "bundle.json", "preprocessing.json", "labels.json", "parity.json", "latency.json", "provenance.json",
    "sample/images.npy", "sample/input.npy", "sample/expected_0.npy", "python/run.py", "python/verify.py",
    "python/about.py", "python/device.py", "python/picture.py",
}  # fmt: skip


def kinds() -> Iterator[object]:
    """(format, precision) of all, each with the marker of what it needs."""
    for name, kind in sorted(FORMATS.items()):
        marks = [getattr(pytest.mark, kind.extra.name)] if kind.extra else []
        for precision in kind.precisions:
            yield pytest.param((name, precision), id=f"{name}-{precision}", marks=marks)


@pytest.fixture(scope="module", params=kinds())
def kind(request) -> tuple[str, str]:
    extra = FORMATS[request.param[0]].extra
    for module in extra.modules if extra else ():
        pytest.importorskip(module)
    return request.param


@pytest.fixture(scope="module")
def delivered(kind, tmp_path_factory) -> Bundle:
    """Not to be changed."""
    return made(tmp_path_factory.mktemp("delivered"), kind)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Bundle:
    """An ONNX bundle. Not to be changed."""
    return made(tmp_path_factory.mktemp("small"))


@pytest.fixture
def copy(kind, delivered, tmp_path) -> Path:
    return Path(shutil.copytree(delivered.folder, tmp_path / "copy"))


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def runs_here(kind: tuple[str, str]) -> bool:
    return FORMATS[kind[0]].runtime is not None


# --- every format -----------------------------------------------------------------------------------------------------


def test_it_has_these_files_each_with_its_sum(kind, delivered):
    told = json.loads((delivered.folder / "provenance.json").read_text())
    found = files(delivered.folder)
    assert found >= ALWAYS
    assert found - {"provenance.json"} == set(told["files"])
    for name, wanted in told["files"].items():
        assert hashlib.sha256((delivered.folder / name).read_bytes()).hexdigest() == wanted
    assert told["artifact_versions"]["torch"] == torch.__version__
    assert told["seed"] == 3
    assert not list(delivered.folder.parent.glob(".writing-*"))


def test_the_folder_and_the_zip_pass(kind, delivered):
    for place in (delivered.folder, delivered.packed):
        found = verify(place, hashes_only=not runs_here(kind))
        assert [line.split(":")[0] for line in found] == ["files", "preprocessing", "parity"][: len(found)]
        assert len(found) == (3 if runs_here(kind) else 1)


def test_its_own_scripts_run_alone_and_leave_nothing(kind, copy):
    before = files(copy)
    checked, ran = script(copy, "verify"), script(copy, "run")
    assert files(copy) == before
    if not runs_here(kind):
        assert (checked.returncode, ran.returncode) == (23, 1)
        assert "Core ML runs on Apple's systems only" in checked.stderr
        return
    assert checked.returncode == 0, checked.stderr
    assert "parity: model" in checked.stdout
    expected = numpy.load(copy / "sample" / "expected_0.npy")
    lines = ran.stdout.splitlines()
    assert len(lines) == len(expected) == 16
    answers = [LABELS[i] for i in expected.argmax(1)]
    same = [line.split(": ")[1].startswith(answer) for line, answer in zip(lines, answers, strict=True)]
    assert sum(same) >= (16 if kind[1] == "fp32" else 12)


def test_another_network_with_the_right_sums_is_caught(kind, copy, tmp_path):
    if not runs_here(kind):
        pytest.skip("it can't be run here")
    wrong = network()
    wrong.head.weight.data[[0, 1]] = wrong.head.weight.data[[1, 0]]
    (tmp_path / "wrong").mkdir()
    replace_artifact(copy, artifact(tmp_path / "wrong", kind, wrong).path)
    assert len(verify(copy, hashes_only=True)) == 1
    with pytest.raises(ParityError, match="differs from the network"):
        verify(copy)
    assert script(copy, "verify").returncode == ParityError.exit_code


def test_what_goes_in_and_comes_out_is_told(kind, delivered):
    told = json.loads((delivered.folder / "preprocessing.json").read_text())
    assert told["mean"] == list(bundles.MEAN)
    assert told["std"] == list(bundles.STD)
    assert (told["colour"], told["divide_by"], told["height"], told["width"]) == ("RGB", 255, SIZE, SIZE)
    assert told["input_shape"] == [1, 3, SIZE, SIZE]
    assert told["layout"] == ("NHWC" if kind[0] == "litert" else "NCHW")
    assert json.loads((delivered.folder / "labels.json").read_text())["labels"] == list(LABELS)
    readme = (delivered.folder / "README.md").read_text()
    assert len(readme.splitlines()) <= 20
    assert "EXIF" in readme
    assert "EXIF" in told["decode"]
    axes = "[batch, height, width, channels]" if kind[0] == "litert" else "[batch, channels, height, width]"
    for words in (axes, f"model{FORMATS[kind[0]].suffix}", kind[0], kind[1], "python/verify.py", "small", "a-device"):
        assert words in readme
    assert "$" not in readme


def test_programs_in_other_languages_name_its_files_and_shapes(kind, delivered):
    """The headers and libraries of most runtimes aren't at hand: this reads the text, no more."""
    texts = {place: (delivered.folder / place).read_text() for place in places(kind[0], "classes").values()}
    for text in texts.values():
        assert f"model{FORMATS[kind[0]].suffix}" in text
        assert "$" not in text
        assert max(map(len, text.splitlines())) <= 120
    for main, preprocess, decode in (PLACES[Path(template).suffix] for template in SNIPPETS[kind[0]]):
        assert "EXIF" in texts[preprocess]
        assert all(str(number) in texts[preprocess] for number in (*bundles.MEAN, *bundles.STD, 3, SIZE))
        assert '#include "decode.hpp"' in texts[main] or "preprocess(picture)" in texts[main]
        assert "best(" in texts[decode]


# --- what does not depend on the format -------------------------------------------------------------------------------


def test_every_format_has_its_templates_and_runtime():
    assert set(SNIPPETS) == set(FORMATS)
    used = {template for form in FORMATS for said in DECODING for template in places(form, said)} | {"README.md"}
    assert used == {path.name for path in TEMPLATES.iterdir()}
    runtimes = {form.runtime or name for name, form in FORMATS.items()}
    assert runtimes == set(PACKAGES)
    assert all((PAYLOAD / f"{runtime}.py").is_file() for runtime in runtimes)


def test_the_same_input_gives_the_same_bytes(small, tmp_path):
    (tmp_path / "run").mkdir()
    again = write.write(contents(tmp_path / "run"), tmp_path / "small")
    assert again.packed.read_bytes() == small.packed.read_bytes()
    with zipfile.ZipFile(again.packed) as packed:
        names = packed.namelist()
        assert names == sorted(names)
        assert {name.split("/")[0] for name in names} == {"small"}


def test_the_zip_unpacks_to_the_folder(small, tmp_path):
    shutil.unpack_archive(small.packed, tmp_path)
    for name in files(small.folder):
        assert (tmp_path / "small" / name).read_bytes() == (small.folder / name).read_bytes()
    assert files(tmp_path / "small") == files(small.folder)


def test_a_bundle_is_replaced_and_nothing_else_is(small, tmp_path):
    (tmp_path / "run").mkdir()
    given = contents(tmp_path / "run")
    first = write.write(given, tmp_path / "out")
    (first.folder / "left.txt").write_text("over")
    assert not (write.write(given, tmp_path / "out").folder / "left.txt").exists()
    for out in (tmp_path / "run", tmp_path / "some.zip"):
        with pytest.raises(ExportError):
            write.write(given, out)
    (tmp_path / "run" / "provenance.json").write_text("{}")  # as a run's folder has one
    (tmp_path / "text.zip").write_text("something else")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as photos:
        photos.writestr("photos/1.png", b"x")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for name in ("run", "text", "photos"):
        with pytest.raises(ExportError, match="exists already and is not a bundle"):
            write.write(given, tmp_path / name)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("fault", ["other network", "changed artifact", "constant", "wrong preprocessing"])
def test_a_bundle_that_would_not_pass_is_not_written(fault, tmp_path):
    (tmp_path / "run").mkdir()
    given = contents(tmp_path / "run")
    error: type[Exception] = ParityError
    if fault == "other network":
        given = replace(given, network=network(seed=5))
    elif fault == "changed artifact":
        given.artifact.path.write_bytes(given.artifact.path.read_bytes() + b" ")
        error = MeasurementError
    elif fault == "constant":
        given = replace(
            given, inputs=given.inputs[:1].expand(4, -1, -1, -1), images=given.images[:1].expand(4, 3, -1, -1)
        )
    else:
        given = replace(given, mean=(0.6, 0.5, 0.4))
    with pytest.raises(error):
        write.write(given, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_numbers_in_the_place_of_names_are_said_to_be(tmp_path):
    (tmp_path / "run").mkdir()
    labels = tuple(map(str, range(CLASSES)))
    made = write.write(contents(tmp_path / "run", labels=labels, are_names=False), tmp_path / "out")
    told = json.loads((made.folder / "labels.json").read_text())
    assert told == {"labels": list(labels), "about": "the data set has no names: these are its class numbers"}
    assert "only numbers" in (made.folder / "README.md").read_text()


# --- the runner -------------------------------------------------------------------------------------------------------


def test_the_runner_takes_images_of_any_size_and_bytes(small, tmp_path):
    from PIL import Image

    pixels = numpy.load(small.folder / "sample" / "images.npy")[3]
    numpy.save(tmp_path / "image.npy", pixels)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    Image.fromarray(pixels).resize((80, 40)).save(tmp_path / "wide.png")
    sample = script(small.folder, "run").stdout.splitlines()[3].split(": ")[1]
    for name in ("image.npy", "image.png"):
        assert script(small.folder, "run", tmp_path / name).stdout == f"{tmp_path / name}: {sample}\n"
    assert script(small.folder, "run", tmp_path / "wide.png").returncode == 0
    numpy.save(tmp_path / "image.npy", pixels[:5])
    refused = script(small.folder, "run", tmp_path / "image.npy")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert f"the network takes uint8 [{SIZE}, {SIZE}, 3]" in refused.stderr


def test_the_runner_reads_preprocessing_when_it_runs(small, tmp_path):
    copy = Path(shutil.copytree(small.folder, tmp_path / "copy"))
    numpy.save(tmp_path / "image.npy", numpy.load(copy / "sample" / "images.npy")[0])
    before = script(copy, "run", tmp_path / "image.npy").stdout
    edit(copy / "preprocessing.json", mean=[0.1, 0.1, 0.1])
    assert script(copy, "run", tmp_path / "image.npy").stdout != before


def test_scripts_do_not_hide_the_package_of_the_same_name(small):
    for name in ("run", "verify"):
        assert script(small.folder, name, options=()).returncode == 0


# --- C++ --------------------------------------------------------------------------------------------------------------

MAIN = """
#include <cstdio>
#include "decode.hpp"
int main(int, char** arguments) {
  for (const Picture& picture : pictures(arguments[1])) {
    const auto x = preprocess(picture);
    std::fwrite(x.data(), sizeof(float), x.size(), stdout);
  }
}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_headers_make_the_sample_input_of_the_sample_images(small, tmp_path):
    """The part that all C++ programs share is compiled and run."""
    (tmp_path / "main.cpp").write_text(MAIN)
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-I", str(small.folder / "cpp")]
    subprocess.run(["g++", *flags, str(tmp_path / "main.cpp"), "-o", str(tmp_path / "a.out")], check=True, timeout=120)
    command = [str(tmp_path / "a.out"), str(small.folder / "sample" / "images.npy")]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    wanted = numpy.load(small.folder / "sample" / "input.npy")
    found = numpy.frombuffer(done.stdout, "float32").reshape(wanted.shape)
    numpy.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.openvino
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_openvino_program_gives_the_expected_answers(tmp_path):
    """OpenVINO is the one runtime whose Python package brings its C++ headers and library."""
    openvino = pytest.importorskip("openvino")
    delivered = made(tmp_path, ("openvino", "fp32"))
    place = Path(openvino.__file__).parent
    (library,) = (place / "libs").glob("libopenvino.so*")
    command = ["g++", "-std=c++17", str(delivered.folder / "cpp" / "main.cpp"), "-I", str(place / "include")]
    command += ["-o", str(tmp_path / "a.out"), str(library), f"-Wl,-rpath,{library.parent}"]
    subprocess.run(command, check=True, timeout=280)
    model, sample = delivered.folder / "model.openvino" / "model.xml", delivered.folder / "sample"
    done = subprocess.run(
        [str(tmp_path / "a.out"), str(model), str(sample / "images.npy")], capture_output=True, check=True, timeout=60
    )
    assert list(map(int, done.stdout.split())) == numpy.load(sample / "expected_0.npy").argmax(1).tolist()
