"""The programs in C++ and Kotlin do what the bundle's own Python does: they are compiled, run and compared with it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache

import native
import numpy
import pytest
from native import Network
from raw_outputs import BATCHES, SIZE, cases

from deploy_prune.bundle.decoding import PLANS, Plan, plan
from deploy_prune.bundle.languages import PLACES, TEMPLATES
from deploy_prune.bundle.meaning import NO_DECODING, Meaning
from deploy_prune.device import DECODERS
from deploy_prune.device.payload import answers, picture, run
from deploy_prune.families import Decode

CASES = cases()
PICTURES = ((20, 30), (211, 160), (31, 333), (48, 31), (48, 64))
"""Heights and widths: smaller, larger, wider than the network's size, of its height, of its size."""
PIXELS = {"small_map": (5, 12, 16), "odd_map": (3, 7, 50), "whole_map": (4, 48, 64)}
KOTLIN = ("cut", "grey", "ssd", "fcos", "detr", "rcnn", "mask_rcnn", "yolo", "grid", "small_map")
"""Networks whose files are compiled in Kotlin, too, which takes a few seconds for each: together they use all of it."""
needs_gxx = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
needs_kotlinc = pytest.mark.skipif(shutil.which("kotlinc") is None, reason="needs kotlinc")


def programs(*names: str) -> pytest.MarkDecorator:
    """These networks in C++, and some of them in Kotlin."""
    slow = pytest.mark.slow
    cpp = [pytest.param("cpp", name, marks=[slow, needs_gxx], id=f"cpp-{name}") for name in names]
    kotlin = [pytest.param("kotlin", n, marks=[slow, needs_kotlinc], id=f"kotlin-{n}") for n in names if n in KOTLIN]
    return pytest.mark.parametrize(("language", "name"), cpp + kotlin)


def networks() -> dict[str, Network]:
    """One for each way to fit a picture, each kind of detector, each size of map."""
    fits = picture.FITS
    made = {fit: Network(meaning=NO_DECODING, shapes=[(5,)], size=SIZE, fit=fit) for fit in fits}
    made["grey"] = Network(meaning=NO_DECODING, shapes=[(5,)], size=SIZE, fit="letterbox", channels=1)
    for number, (name, (program, settings, outputs)) in enumerate(CASES.items()):
        meaning, shapes = (
            Meaning(kind="boxes", decode=Decode(program=program, settings=settings)),
            [y.shape[1:] for y in outputs],
        )
        made[name] = Network(meaning=meaning, shapes=shapes, size=SIZE, fit=fits[number % 3])
    meaning = Meaning(kind="pixels", decode=Decode(program="decode_pixels", settings={"size": SIZE}))
    for number, (name, shape) in enumerate(PIXELS.items()):
        made[name] = Network(meaning=meaning, shapes=[shape], size=SIZE, fit=fits[number % 3])
    return made


NETWORKS = networks()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Callable[[str], list[str]]:
    """Language -> what runs the program of all networks that there are in it; compiled once."""

    @cache
    def command(language: str) -> list[str]:
        chosen = NETWORKS if language == "cpp" else {name: NETWORKS[name] for name in KOTLIN}
        found: list[str] = getattr(native, language)(tmp_path_factory.mktemp(language), chosen)
        return found

    return command


def pixels(size: tuple[int, int], channels: int = 3) -> numpy.ndarray:
    """Uint8 [h, w, C], with edges and noise."""
    random = numpy.random.default_rng(size[1]).integers(0, 256, (*size, channels))
    y, x = numpy.mgrid[: size[0], : size[1]]
    return numpy.where(((x // 9 + y // 7) % 2 == 0)[..., None], random, 255).astype("uint8")


def expected(network: Network, outputs: list[numpy.ndarray], size: tuple[int, int]) -> answers.Answer:
    """What the bundle's Python makes of outputs [...] for a picture [h, w]."""
    decode = network.meaning.decode
    (made,) = answers.decode({"program": decode.program, "settings": decode.settings}, [y[None] for y in outputs], SIZE)
    return run.in_picture(made, size[::-1], {"height": SIZE[0], "width": SIZE[1], "fit": network.fit})


@programs(*picture.FITS, "grey", "ssd", "yolo")
def test_pictures_are_fitted_to_the_last_bit(compiled, language, name, tmp_path):
    fit, channels = NETWORKS[name].fit, NETWORKS[name].channels
    told = {"mean": native.MEAN[:channels], "std": native.STD[:channels], "divide_by": 255}
    for size in PICTURES:
        given = pixels(size, channels)
        fitted, x, _ = native.answered([*compiled(language), name], tmp_path, given, SIZE, [])
        wanted = picture.fitted(given, SIZE[1], SIZE[0], fit, 114)
        numpy.testing.assert_array_equal(fitted, wanted)
        numpy.testing.assert_allclose(x, run.preprocess(wanted[None], told).reshape(-1), atol=1e-6)


@programs(*CASES)
def test_boxes_are_those_of_the_python_program(compiled, language, name, tmp_path):
    for number, size in zip(range(BATCHES), PICTURES, strict=False):
        outputs = [y[number] for y in CASES[name][2]]
        _, _, raw = native.answered([*compiled(language), name], tmp_path, pixels(size), SIZE, outputs)
        found, wanted = native.boxes_of(raw), expected(NETWORKS[name], outputs, size)
        assert len(wanted["scores"]) > 3
        assert found["labels"].tolist() == wanted["labels"].tolist()
        numpy.testing.assert_allclose(found["scores"], wanted["scores"], atol=1e-5)
        numpy.testing.assert_allclose(found["boxes"], wanted["boxes"], atol=1e-2)


@programs(*PIXELS)
def test_classes_of_pixels_are_those_of_the_python_program(compiled, language, name, tmp_path):
    logits = numpy.random.default_rng(0).normal(size=PIXELS[name]).astype("float32")
    for size in PICTURES:
        _, _, raw = native.answered([*compiled(language), name], tmp_path, pixels(size), SIZE, [logits])
        wanted = expected(NETWORKS[name], [logits], size)["classes"]
        found = numpy.frombuffer(raw, "uint8").reshape(wanted.shape)
        assert (found != wanted).mean() < 1e-3
        assert (wanted == answers.VOID).any() == (NETWORKS[name].fit == "cut" and size != tuple(SIZE))


@needs_gxx
def test_a_file_without_such_pictures_is_refused(tmp_path):
    command, good = [*native.cpp(tmp_path, {"cut": NETWORKS["cut"]}), "cut"], pixels((20, 30))
    numpy.save(tmp_path / "float.npy", good.astype("float32"))
    numpy.save(tmp_path / "grey.npy", good[..., :1])
    numpy.save(tmp_path / "short.npy", good)
    (tmp_path / "short.npy").write_bytes((tmp_path / "short.npy").read_bytes()[:-1])
    for name in ("float", "grey", "short", "none"):
        given = [*command, str(tmp_path / f"{name}.npy")]
        done = subprocess.run(given, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode != 0
        assert f"{name}.npy" in done.stderr


def test_kotlin_is_compiled_for_every_way_to_decode():
    """Each choice that a plan can make, and each way to fit a picture."""
    every, some = ([plan_of(name) for name in names if name in CASES] for names in (NETWORKS, KOTLIN))
    for choice in ("softmax", "more", "one_each", "group", "codes", "clip", "shift", "codes_per_logit"):
        assert {getattr(one, choice) for one in some} == {getattr(one, choice) for one in every}, choice
    assert {NETWORKS[name].fit for name in KOTLIN} == set(picture.FITS)


def plan_of(name: str) -> Plan:
    program, settings, outputs = CASES[name]
    return plan(program, settings, [y.shape[1:] for y in outputs])


def test_every_program_that_makes_boxes_has_a_plan_and_a_case():
    assert {*PLANS, "decode_pixels"} == set(DECODERS)
    assert {program for program, _, _ in CASES.values()} == set(PLANS)


def test_swift_has_every_function_that_kotlin_has():
    """No compiler for Swift is at hand: this reads the text, no more."""
    for name in ("preprocess", "classes", "boxes", "pixels"):
        kotlin, swift = ((TEMPLATES / f"{name}.{suffix}").read_text() for suffix in ("kt", "swift"))
        functions = [line.split("fun ")[1].split("(")[0] for line in kotlin.splitlines() if line.startswith("fun ")]
        assert functions
        missing = [function for function in functions if f"func {function}(" not in swift]
        assert missing in ([], ["addBest"]), "Swift's is bestOf"
    assert set(PLACES) == {".cpp", ".kt", ".swift"}


@pytest.mark.parametrize("name", NETWORKS)
def test_numbers_are_the_same_in_every_language(name):
    """Of levels and anchors, of thresholds, means and deviations."""
    network = NETWORKS[name]
    for file in ("preprocess", network.meaning.kind):
        found = {suffix: network.text(f"{file}.{suffix}") for suffix in ("hpp", "kt", "swift")}
        assert "$" not in "".join(found.values())
        assert max(len(line) for text in found.values() for line in text.splitlines()) <= 120
    if network.meaning.kind == "boxes":
        tables = {suffix: numbers_of(text) for suffix, text in found.items()}
        assert tables["hpp"] == tables["kt"] == tables["swift"]
        assert len(tables["hpp"]) >= 22 * len(plan_of(name).levels)


def numbers_of(text: str) -> list[str]:
    """Those of levels and anchors."""
    lines, found = text.splitlines(), ""
    for name in (
        "const std::vector<Level> kL",
        "const std::vector<std::array<double, 4>> kA",
        "val LEV",
        "val ANC",
        "let ",
    ):
        starts = [n for n, line in enumerate(lines) if line.startswith(name) and line[-1] in "{(["]
        for start in starts:
            end = next(n for n in range(start, len(lines)) if lines[n] in ("};", ")", "]"))
            found += "\n".join(lines[start + 1 : end])
    return re.findall(r"-?\d+(?:\.\d+)?", found)
