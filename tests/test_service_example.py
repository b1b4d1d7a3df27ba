"""The example of a service on a board: its unit's own commands are run on a real bundle, in a Python without torch."""

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy
import pytest
from bundles import CLASSES, LABELS, made

FOLDER = Path(__file__).parents[1] / "examples" / "jetson"
UNIT = (FOLDER / "bundle.service").read_text(encoding="utf-8")
README = (FOLDER / "README.md").read_text(encoding="utf-8")
NOT_THERE = ("torch", "torchvision", "deploy_prune", "onnx", "scipy")
"""What a board doesn't have: importing one of these fails."""
ALONE = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({NOT_THERE}))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """Not to be changed."""
    return made(tmp_path_factory.mktemp("bundle")).folder


@pytest.fixture(scope="module")
def pictures(bundle, tmp_path_factory) -> list[Path]:
    """The sample's images, one by one."""
    folder = tmp_path_factory.mktemp("pictures")
    images = numpy.load(bundle / "sample" / "images.npy")
    for number, image in enumerate(images):
        numpy.save(folder / f"{number}.npy", image)
    return [folder / f"{number}.npy" for number in range(len(images))]


def setting(key: str) -> str:
    (found,) = re.findall(rf"^{key}=(.+)$", UNIT, flags=re.MULTILINE)
    return found


def command(key: str, bundle: Path, runtime: Path) -> list[str]:
    """A command of the unit, with this machine's places."""
    python, *words = shlex.split(setting(key))
    assert python == "/usr/bin/python3"
    places = {"/opt/bundle-service": FOLDER, "/opt/bundle": bundle, f"/run/{setting('RuntimeDirectory')}": runtime}
    found = [sys.executable, "-I", "-c", ALONE]
    for word in words:
        place = next((p for p in places if word == p or word.startswith(f"{p}/")), None)
        found.append(word.replace(place, str(places[place]), 1) if place else word)
    return found


@contextmanager
def service(bundle: Path, runtime: Path) -> Iterator[Path]:
    """The unit's ExecStart, until its socket answers; the socket."""
    with subprocess.Popen(command("ExecStart", bundle, runtime), stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            first = process.stderr.readline()
            assert first.startswith("ready: "), first + process.stderr.read()
            yield runtime / "bundle.sock"
        finally:
            process.terminate()


def ask(path: Path, *given: object) -> list[dict]:
    """The answers on one connection."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(str(path))
        client.sendall("".join(f"{one}\n" for one in given).encode())
        client.shutdown(socket.SHUT_WR)
        with client.makefile() as lines:
            return [json.loads(line) for line in lines]


def check(answers: list[dict], bundle: Path) -> None:
    """Scores are those that the network in torch gave for the sample."""
    wanted = numpy.load(bundle / "sample" / "expected_0.npy")
    assert len(answers) == len(wanted)
    for told, row in zip(answers, wanted, strict=True):
        assert list(told["scores"]) == [LABELS[i] for i in row.argsort()[::-1]]
        found = [told["scores"][label] for label in LABELS]
        numpy.testing.assert_allclose(found, row, atol=1e-5)
        assert 0 < told["ms"] < 10_000
    assert wanted.shape[1] == CLASSES


def test_the_units_command_answers_as_the_network_does(bundle, pictures, tmp_path):
    with service(bundle, tmp_path) as path:
        check(ask(path, *pictures), bundle)
        check(ask(path, *pictures), bundle)
        with socket.socket(socket.AF_UNIX) as idle:  # one that says nothing keeps no other waiting
            idle.connect(str(path))
            check(ask(path, *pictures), bundle)
    with service(bundle, tmp_path) as path:  # the socket of the last one is still there
        check(ask(path, *pictures), bundle)


def test_a_bad_picture_is_told_and_the_next_is_answered(bundle, pictures, tmp_path):
    numpy.save(tmp_path / "small.npy", numpy.zeros((2, 2, 3), "uint8"))
    lost = tmp_path / "none.png"
    with service(bundle, tmp_path) as path:
        small, missing, good = ask(path, tmp_path / "small.npy", lost, pictures[0])
    assert "the network takes uint8" in small["error"]
    assert (missing["picture"], "none.png" in missing["error"]) == (str(lost), True)
    assert "scores" in good


def test_pictures_are_answered_on_standard_input(bundle, pictures):
    words = [sys.executable, "-I", "-c", ALONE, str(FOLDER / "serve.py"), str(bundle)]
    given = "\n".join(map(str, pictures))
    done = subprocess.run(words, input=given, capture_output=True, text=True, check=True, timeout=60)
    check([json.loads(line) for line in done.stdout.splitlines()], bundle)


def test_no_file_is_replaced_by_the_socket(bundle, tmp_path):
    (tmp_path / "bundle.sock").write_text("mine")
    done = subprocess.run(command("ExecStart", bundle, tmp_path), capture_output=True, timeout=60, check=False)
    assert done.returncode != 0
    assert (tmp_path / "bundle.sock").read_text() == "mine"


def test_the_service_leaves_the_bundle_whole_and_a_changed_one_does_not_start(bundle, pictures, tmp_path):
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    with service(copy, tmp_path) as path:
        ask(path, pictures[0])
    before = command("ExecStartPre", copy, tmp_path)
    done = subprocess.run(before, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    (copy / "labels.json").write_text((copy / "labels.json").read_text().replace("ant", "cow"))
    done = subprocess.run(before, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert "labels.json was changed" in done.stderr


def test_a_folder_that_is_no_bundle_is_named(tmp_path):
    words = [sys.executable, str(FOLDER / "serve.py"), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "run.py is missing: is its folder a bundle?" in done.stderr


def test_the_readme_puts_files_where_the_unit_looks_for_them():
    assert "sudo cp -r mobilenet-jetson-nano-50pct /opt/bundle\n" in README
    assert "sudo cp serve.py /opt/bundle-service/\n" in README
    words = shlex.split(setting("ExecStart"))
    assert words[1:] == ["/opt/bundle-service/serve.py", "/opt/bundle", "--socket", "/run/bundle/bundle.sock"]
    assert words[-1] in README


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("fault", [None, ("Restart=on-failure", "Restart=sometimes"), ("DynamicUser", "DynamicUsr")])
def test_systemd_understands_the_unit(fault, tmp_path):
    text = UNIT.replace("/usr/bin/python3", sys.executable)
    text = text.replace(*fault) if fault else text
    (tmp_path / "bundle.service").write_text(text)
    words = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "bundle.service")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert ("bundle.service" in done.stderr) == bool(fault), done.stderr
