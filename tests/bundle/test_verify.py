"""Checking a bundle: each fault is one sentence and an exit code, however the check is started."""

from __future__ import annotations

import bz2
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from bundles import artifact, edit, made, network, rehash, replace_artifact, script
from click.testing import CliRunner
from onnx import TensorProto, helper

from deploy_prune import errors
from deploy_prune.bundle import verify as verify_module
from deploy_prune.bundle.verify import VERIFY, verify
from deploy_prune.bundle.write import Bundle, pack
from deploy_prune.cli import main
from deploy_prune.device import RUNTIMES
from deploy_prune.device.payload import verify as payload
from deploy_prune.errors import BundleError, DeployPruneError, MeasurementError, MissingDependencyError, ParityError

FORMATS = (("onnx", "fp32"), ("ort", "fp32"))


@pytest.fixture(scope="module", params=FORMATS, ids=lambda kind: kind[0])
def delivered(request, tmp_path_factory) -> Bundle:
    """Not to be changed."""
    return made(tmp_path_factory.mktemp("delivered"), request.param)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Bundle:
    """Not to be changed."""
    return made(tmp_path_factory.mktemp("small"))


@pytest.fixture
def copy(delivered, tmp_path) -> Path:
    return Path(shutil.copytree(delivered.folder, tmp_path / "copy"))


def call(*args: object):
    return CliRunner().invoke(main, ["verify", *map(str, args)])


def refused(bundle: Path, error: type[DeployPruneError], words: str, *, own: bool = True) -> None:
    """By the command and by the stand-alone script (``own``: the bundle's), in one sentence and with one exit code."""
    result = call(bundle)
    assert result.exit_code == error.exit_code, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert words in result.stderr
    alone = [sys.executable, "-I", str(VERIFY), str(bundle)]
    done = subprocess.run(alone, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == error.exit_code
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    if own:
        assert script(bundle, "verify").returncode == error.exit_code


# --- edited files -----------------------------------------------------------------------------------------------------


def wrong_mean(folder: Path) -> None:
    edit(folder / "preprocessing.json", mean=[0.41, 0.5, 0.6])


def wrong_std(folder: Path) -> None:
    edit(folder / "preprocessing.json", std=[0.2, 0.25, 0.31])


def other_layout(folder: Path) -> None:
    edit(folder / "preprocessing.json", layout="NHWC")


def swapped_labels(folder: Path) -> None:
    edit(folder / "labels.json", labels=["bee", "ant", "cat", "dog", "emu"])


def other_artifact(folder: Path) -> None:
    (path,) = folder.glob("model.*")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def truncated(folder: Path) -> None:
    (path,) = folder.glob("model.*")
    path.write_bytes(path.read_bytes()[:100])


def looser_parity(folder: Path) -> None:
    edit(folder / "parity.json", allowed={"tolerance": 1e9, "least_db": None})


def other_expectation(folder: Path) -> None:
    path = folder / "sample" / "expected_0.npy"
    numpy.save(path, numpy.load(path)[::-1])


def missing_sample(folder: Path) -> None:
    (folder / "sample" / "input.npy").unlink()


def missing_artifact(folder: Path) -> None:
    (path,) = folder.glob("model.*")
    path.unlink()


def added_file(folder: Path) -> None:
    (folder / "python" / "numpy.py").write_text("raise SystemExit(0)")


def linked_file(folder: Path) -> None:
    path = folder / "labels.json"
    path.rename(folder.parent / "labels.json")
    path.symlink_to(folder.parent / "labels.json")


def linked_folder(folder: Path) -> None:
    path = folder / "sample"
    path.rename(folder.parent / "sample")
    path.symlink_to(folder.parent / "sample")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def no_manifest(folder: Path) -> None:
    (folder / "provenance.json").unlink()


def damaged_manifest(folder: Path) -> None:
    (folder / "provenance.json").write_text("{")


def manifest_of_another_kind(folder: Path) -> None:
    (folder / "provenance.json").write_text('{"files": [["a"]]}')


def deep_manifest(folder: Path) -> None:
    (folder / "provenance.json").write_text("[" * 100_000)


FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (wrong_mean, "preprocessing.json was changed"),
    (wrong_std, "preprocessing.json was changed"),
    (other_layout, "preprocessing.json was changed"),
    (swapped_labels, "labels.json was changed"),
    (other_artifact, "was changed"),
    (truncated, "was changed"),
    (looser_parity, "parity.json was changed"),
    (other_expectation, "expected_0.npy was changed"),
    (missing_sample, "input.npy is missing"),
    (missing_artifact, "is missing"),
    (added_file, "numpy.py is not listed in provenance.json: it was added later"),
    (linked_file, "labels.json is a link"),
    (linked_folder, "sample is a link"),
    (pipe, "pipe is a link or a device"),
    (no_manifest, "is no bundle"),
    (damaged_manifest, "is not what deploy-prune writes"),
    (manifest_of_another_kind, "is not what deploy-prune writes"),
    (deep_manifest, "is not what deploy-prune writes"),
]


@pytest.mark.parametrize(("fault", "words"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_an_edited_bundle_is_refused(fault, words, copy):
    fault(copy)
    refused(copy, BundleError, words)


def test_an_edited_zip_is_refused(copy, tmp_path):
    wrong_mean(copy)
    pack(copy, tmp_path / "b.zip")
    refused(tmp_path / "b.zip", BundleError, "preprocessing.json was changed", own=False)


# --- edited, and the sums made right again ----------------------------------------------------------------------------


def test_another_artifact_with_the_right_sums_is_refused(copy, tmp_path, delivered):
    (path,) = delivered.folder.glob("model.*")
    (tmp_path / "wrong").mkdir()
    kind = next(kind for kind in FORMATS if kind[0] == path.suffix[1:])
    replace_artifact(copy, artifact(tmp_path / "wrong", kind, network(seed=9)).path)
    refused(copy, ParityError, "differs from the network")


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (wrong_mean, ParityError, "preprocessing.json does not turn"),
        (wrong_std, ParityError, "preprocessing.json does not turn"),
        (other_layout, MeasurementError, "can't be run in onnxruntime"),
        (truncated, MeasurementError, "can't be run in onnxruntime"),
        (other_expectation, ParityError, "differs from the network"),
        (missing_sample, BundleError, "is not what deploy-prune writes"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)  # fmt: skip
def test_a_fault_with_the_right_sums_is_refused(fault, error, words, copy):
    fault(copy)
    rehash(copy)
    refused(copy, error, words)


@pytest.mark.parametrize(
    "changes",
    [
        {"artifact": "../run/model.onnx"},
        {"artifact": "/etc/passwd"},
        {"runtime": "../../evil"},
        {"runtime": "device"},
        {"expected": ["../x.npy"]},
        {"expected": 3},
        {"images": None},
    ],
    ids=str,
)
def test_a_hostile_bundle_json_leads_nowhere(changes, small, tmp_path):
    copy = Path(shutil.copytree(small.folder, tmp_path / "copy"))
    edit(copy / "bundle.json", **changes)
    rehash(copy)
    result = call(copy)
    assert result.exit_code in (BundleError.exit_code, MeasurementError.exit_code)
    assert result.stderr.count("\n") == 1


def test_an_array_that_claims_to_be_huge_is_refused(small, tmp_path):
    copy = Path(shutil.copytree(small.folder, tmp_path / "copy"))
    header = {"descr": "<f4", "fortran_order": False, "shape": (2**40, 3)}
    with (copy / "sample" / "expected_0.npy").open("wb") as file:
        numpy.lib.format.write_array_header_1_0(file, header)
    rehash(copy)
    refused(copy, BundleError, "is not what deploy-prune writes")


def test_the_bundles_own_code_is_not_run(small, tmp_path):
    copy = Path(shutil.copytree(small.folder, tmp_path / "copy"))
    for name in ("verify", "run", "device", "onnxruntime"):
        (copy / "python" / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    rehash(copy)
    assert len(verify(copy)) == 3
    assert not (tmp_path / "ran").exists()


# --- zips from elsewhere ----------------------------------------------------------------------------------------------


def zipped(small: Bundle, path: Path, *extra: tuple[zipfile.ZipInfo, bytes]) -> Path:
    shutil.copyfile(small.packed, path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as packed:
        for entry, content in extra:
            packed.writestr(entry, content)
    return path


def entry(name: str, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    made.external_attr, made.compress_type = mode << 16, zipfile.ZIP_DEFLATED
    return made


@pytest.mark.parametrize("name", ["../evil", "small/../../evil", "/tmp/evil", "small\\..\\evil", "C:/evil", "a\0b"])
def test_a_path_that_leads_out_is_not_unpacked(name, small, tmp_path):
    path = zipped(small, tmp_path / "b.zip", (entry("small/abc"), b"x"))
    swap = name.encode()
    data = path.read_bytes()
    if len(swap) != 9:  # the name's length stands before it, so write it properly where that is possible
        path = zipped(small, tmp_path / "b.zip", (entry(name.replace("\0", "?")), b"x"))
        data = path.read_bytes().replace(b"a?b", b"a\0b")
    path.write_bytes(data if len(swap) != 9 else data.replace(b"small/abc", swap))
    refused(path, BundleError, "could lead out of its folder", own=False)
    assert not (tmp_path / "evil").exists()


def test_a_link_is_not_unpacked(small, tmp_path):
    path = zipped(small, tmp_path / "b.zip", (entry("small/link", stat.S_IFLNK | 0o777), b"/etc/passwd"))
    refused(path, BundleError, "is a link or a device", own=False)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_refused(small, tmp_path):
    path = zipped(small, tmp_path / "b.zip", (entry("small/labels.json"), b"{}"))
    refused(path, BundleError, "'small/labels.json' twice", own=False)


def test_a_zip_bomb_is_not_unpacked(small, tmp_path):
    path = zipped(small, tmp_path / "b.zip", (entry("small/zeros"), bytes(50_000_000)))
    assert path.stat().st_size < 500_000
    refused(path, BundleError, "which is no honest bundle", own=False)


def test_too_many_files_are_not_unpacked(small, tmp_path):
    extra = [(entry(f"small/{number}"), b"") for number in range(payload.MAX_FILES)]
    refused(zipped(small, tmp_path / "b.zip", *extra), BundleError, "which is no honest bundle", own=False)


@pytest.mark.parametrize("name", ["small/extra.txt", "extra.txt", "other/extra.txt"])
def test_a_file_that_is_not_listed_is_refused(name, small, tmp_path):
    path = zipped(small, tmp_path / "b.zip", (entry(name), b"x"))
    refused(path, BundleError, "not list", own=False)


def test_two_bundles_in_one_zip_are_refused(small, tmp_path):
    path = zipped(small, tmp_path / "b.zip", (entry("other/provenance.json"), b"{}"))
    refused(path, BundleError, "holds 2 files provenance.json", own=False)


def test_a_bundle_that_was_zipped_again_passes(small, tmp_path):
    """With another program, compressed, with or without the folder's name, with entries for folders."""
    for root, base in ((small.folder.parent, small.folder.name), (small.folder, ".")):
        path = Path(shutil.make_archive(str(tmp_path / f"again{base}"), "zip", root, base))
        assert len(verify(path)) == 3


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip at all"])
def test_what_is_no_zip_is_refused(content, tmp_path):
    path = tmp_path / "b.zip"
    path.write_bytes(content)
    refused(path, BundleError, "can't be unpacked", own=False)


@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
def test_a_damaged_or_truncated_zip_is_refused(at, small, tmp_path):
    data = bytearray(small.packed.read_bytes())
    (tmp_path / "cut.zip").write_bytes(data[: int(len(data) * at)])
    data[int(len(data) * at)] ^= 0xFF
    (tmp_path / "flipped.zip").write_bytes(data)
    for name in ("cut.zip", "flipped.zip"):
        refused(tmp_path / name, BundleError, "", own=False)


def test_there_is_nothing_to_check(tmp_path):
    refused(tmp_path / "none.zip", BundleError, "There is no bundle at", own=False)
    refused(tmp_path, BundleError, "is no bundle", own=False)


# --- where the runtime isn't ------------------------------------------------------------------------------------------

WITHOUT = "import runpy, sys; sys.modules[sys.argv[1]] = None; sys.argv = sys.argv[2:]; "
WITHOUT += "runpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.mark.parametrize("missing", ["onnxruntime", "numpy"])
def test_without_the_runtime_the_files_are_checked_and_the_rest_is_said_not_to_be(missing, small):
    command = [sys.executable, "-I", "-c", WITHOUT, missing, str(small.folder / "python" / "verify.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == MissingDependencyError.exit_code
    assert done.stdout.startswith("files: ")
    assert "parity: " not in done.stdout
    assert done.stderr.count("\n") == 1
    assert f"parity was not checked: {missing} is not installed: pip install numpy" in done.stderr
    alone = subprocess.run([*command, "--hashes-only"], capture_output=True, text=True, check=False, timeout=60)
    assert (alone.returncode, alone.stderr) == (0, "")


def test_the_command_says_it_too(small, monkeypatch):
    def without(args, timeout_s, env):
        command = [sys.executable, "-I", "-c", WITHOUT, "onnxruntime", *args[2:]]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    monkeypatch.setattr(verify_module, "run_command", without)
    result = call(small.folder)
    assert result.exit_code == MissingDependencyError.exit_code
    assert result.stderr == (
        "deploy-prune: error: The files are right, but parity was not checked: onnxruntime is not installed: pip "
        "install numpy onnxruntime (or check with --hashes-only).\n"
    )
    assert call(small.folder, "--hashes-only").exit_code == 0


def test_a_check_that_crashes_is_an_error(small, monkeypatch, tmp_path):
    (tmp_path / "verify.py").write_text("import os; os.abort()")
    monkeypatch.setattr(verify_module, "VERIFY", tmp_path / "verify.py")
    with pytest.raises(MeasurementError, match="did not finish"):
        verify(small.folder)


# --- the two ways to start it -----------------------------------------------------------------------------------------


def test_the_command_tells_what_the_script_tells(delivered):
    assert call(delivered.folder).stdout == script(delivered.folder, "verify").stdout
    result = call(delivered.packed)
    assert result.exit_code == 0
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["files", "preprocessing", "parity"]


def test_a_bundle_may_begin_with_a_dash(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small.folder, tmp_path / "-b")
    assert len(verify(Path("-b"))) == 3


def test_exit_codes_are_the_packages():
    for name, code in payload.CODES.items():
        assert getattr(errors, name).exit_code == code


def test_scripts_are_no_runtimes():
    assert not {"run", "verify", "device", "build_engine"} & set(RUNTIMES)


def test_an_engine_that_was_built_on_the_device_is_no_stranger(tmp_path):
    delivered = made(tmp_path, ("tensorrt", "fp32"))
    assert "parity: model.tensorrt/model.onnx in onnxruntime" in verify(delivered.folder)[-1]
    (delivered.folder / "model.tensorrt" / "engine.plan").write_bytes(b"an engine")
    assert len(verify(delivered.folder, hashes_only=True)) == 1
    (delivered.folder / "engine.plan").write_bytes(b"an engine")
    with pytest.raises(BundleError, match=r"engine.plan is not listed"):
        verify(delivered.folder, hashes_only=True)


def test_an_engine_from_elsewhere_is_not_loaded(tmp_path):
    delivered = made(tmp_path, ("tensorrt", "fp32"))
    (delivered.folder / "model.tensorrt" / "engine.plan").write_bytes(b"an engine")
    told = verify(delivered.folder)
    assert "engine.plan was built later and is not checked" in told[0]
    assert "parity: model.tensorrt/model.onnx in onnxruntime" in told[-1]
    own = script(delivered.folder, "verify", "--engine")
    assert own.returncode in (MissingDependencyError.exit_code, MeasurementError.exit_code)  # no runtime, or no GPU
    assert "tensorrt" in own.stderr.lower()
    pack(delivered.folder, tmp_path / "b.zip")
    with pytest.raises(BundleError, match=r"engine.plan is not listed"):
        verify(tmp_path / "b.zip", hashes_only=True)


def test_int8_is_held_to_its_ratio(tmp_path):
    delivered = made(tmp_path, ("onnx", "int8"))
    assert "signal over noise is" in verify(delivered.folder)[-1]
    told = json.loads((delivered.folder / "parity.json").read_text())["allowed"]
    assert told["tolerance"] is None
    assert told["least_db"][0] > 6
    edit(delivered.folder / "parity.json", allowed={"tolerance": None, "least_db": [99.0]})
    rehash(delivered.folder)
    refused(delivered.folder, ParityError, "signal over noise")


# --- counted before it is allocated -----------------------------------------------------------------------------------

MOST_KB = 400_000
"""What a check may take before anything of a bundle is run; Python and numpy take 40,000."""


def peak_kb(bundle: Path) -> tuple[int, str]:
    """The most memory that the check takes, in kB, and what it says."""
    code = "import pathlib, runpy, sys; sys.argv = ['verify.py', sys.argv[2]]\n"
    code += f"try: runpy.run_path({str(VERIFY)!r}, run_name='__main__')\n"
    code += (
        "finally: print(pathlib.Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "-", str(bundle)], capture_output=True, text=True, check=False, timeout=60
    )
    return int(done.stderr.split()[-1]), done.stderr


def test_a_zip_that_says_too_little_takes_no_memory(tmp_path):
    compressor, block = bz2.BZ2Compressor(9), bytes(2**20)
    data = b"".join(compressor.compress(block) for _ in range(1024)) + compressor.flush()
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w") as packed:
        packed.writestr("b/provenance.json", data)
    raw = bytearray((tmp_path / "bomb.zip").read_bytes())
    here, there = raw.find(b"PK\3\4"), raw.rfind(b"PK\1\2")
    for method, size in ((here + 8, here + 22), (there + 10, there + 24)):
        struct.pack_into("<H", raw, method, zipfile.ZIP_BZIP2)
        struct.pack_into("<I", raw, size, 1)
    (tmp_path / "bomb.zip").write_bytes(raw)
    peak, told = peak_kb(tmp_path / "bomb.zip")
    assert "neither stored nor deflated" in told
    assert peak < MOST_KB


def test_a_zip_with_a_giant_list_is_not_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as packed:
        for number in range(60_000):
            packed.writestr(f"b/{number:040}", b"")
    peak, told = peak_kb(tmp_path / "many.zip")
    assert "its list of files is larger" in told
    assert peak < MOST_KB


NAMES = ("b/a\x1b[31m", "b/\u202egnp", "b/con.txt", "b/dot.", "b/" + "n" * 300, "/".join("x" * 40))


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_that_is_none_everywhere_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as packed:
        packed.writestr(name, b"x")
    with pytest.raises(BundleError, match="can't be a file's name") as caught:
        verify(tmp_path / "b.zip")
    assert str(caught.value).isprintable()


def test_names_that_differ_in_case_alone_are_one(tmp_path):
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as packed:
        packed.writestr("b/x", b"")
        packed.writestr("b/X", b"")
    with pytest.raises(BundleError, match="twice"):
        verify(tmp_path / "b.zip")


def test_means_do_not_multiply_memory(small, tmp_path):
    folder = Path(shutil.copytree(small.folder, tmp_path / "b"))
    edit(folder / "preprocessing.json", mean=[0.0] * 200_000, std=[1.0] * 200_000)
    rehash(folder)
    peak, told = peak_kb(folder)
    assert "200000 means" in told
    assert peak < MOST_KB


def test_an_artifact_that_asks_for_too_much_memory_is_stopped(small, tmp_path):
    folder = Path(shutil.copytree(small.folder, tmp_path / "b"))
    size = helper.make_tensor("size", TensorProto.INT64, [1], [2**33])
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["many"]),
        helper.make_node("ReduceSum", ["many"], ["y"], keepdims=0),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 12, 12])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], [size]), opset_imports=[helper.make_opsetid("", 18)]
    )
    (folder / json.loads((folder / "bundle.json").read_text())["artifact"]).write_bytes(model.SerializeToString())
    rehash(folder)
    with pytest.raises(MeasurementError, match="can't be run"):
        verify(folder)


def test_the_script_has_a_limit_of_time(small):
    done = subprocess.run(
        [sys.executable, "-I", str(VERIFY), "--timeout-s", "0.001", str(small.folder)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == MeasurementError.exit_code
    assert "was stopped after 0.001 s" in done.stderr
