"""The script that builds a TensorRT engine on a device, with stand-ins for trtexec of several versions."""

import ast
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

import deploy_prune

SCRIPT = Path(deploy_prune.__file__).parent / "device" / "payload" / "build_engine.py"
HELP = {
    "8.2": """&&&& RUNNING TensorRT.trtexec [TensorRT v8201] # trtexec --help
=== Model Options ===
  --onnx=<file>               ONNX model
=== Build Options ===
  --minShapes=spec            Profile with the smallest shapes
  --optShapes=spec            Profile with the usual shapes
  --maxShapes=spec            Profile with the largest shapes
  --workspace=N               Workspace in megabytes (default = 16)
  --noTF32                    No tf32 (default is to use it besides fp32)
  --fp16                      Allow fp16 besides fp32
  --int8                      Allow int8 besides fp32
  --best                      Allow all precisions
  --saveEngine=<file>         Save the engine
  --loadEngine=<file>         Load an engine
  --timingCacheFile=<file>    Load and save the timing cache
=== Inference Options ===
  --shapes=spec               Shapes of inputs
  --iterations=N              Iterations at least
  --warmUp=N                  Milliseconds of warm-up
  --duration=N                Seconds at least
  --buildOnly                 No inference after the build
=== Reporting Options ===
  --exportTimes=<file>        Write the times as json
  --help, -h                  Print this
""",
    "8.5": """&&&& RUNNING TensorRT.trtexec [TensorRT v8502] # trtexec --help
  --onnx=<file>               ONNX model
  --minShapes=spec            Profile with the smallest shapes
  --optShapes=spec            Profile with the usual shapes
  --maxShapes=spec            Profile with the largest shapes
  --workspace=N               Workspace in MiB
  --memPoolSize=poolspec      Limits of memory pools in MiB
                              poolspec ::= pool:sizeInMiB, and pool ::= "workspace"|"dlaSRAM"
  --noTF32                    No tf32
  --fp16                      Allow fp16 besides fp32
  --int8                      Allow int8 besides fp32
  --best                      Allow all precisions
  --saveEngine=<file>         Save the engine
  --loadEngine=<file>         Load an engine
  --timingCacheFile=<file>    Load and save the timing cache
  --shapes=spec               Shapes of inputs
  --iterations=N              Iterations at least
  --warmUp=N                  Milliseconds of warm-up
  --duration=N                Seconds at least
  --buildOnly                 No inference after the build
  --exportTimes=<file>        Write the times as json
""",
    "10.3": """&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec --help
  --onnx=<file>               ONNX model
  --minShapes=spec            Profile with the smallest shapes
  --optShapes=spec            Profile with the usual shapes
  --maxShapes=spec            Profile with the largest shapes
  --memPoolSize=poolspec      Limits of memory pools, in place of --workspace
                              --workspace is no longer taken
  --noTF32                    No tf32
  --fp16                      Allow fp16 besides fp32
  --int8                      Allow int8 besides fp32
  --best                      Allow all precisions
  --stronglyTyped             Take all types from the network
  --saveEngine=<file>         Save the engine
  --loadEngine=<file>         Load an engine
  --timingCacheFile=<file>    Load and save the timing cache
  --shapes=spec               Shapes of inputs
  --iterations=N              Iterations at least
  --warmUp=N                  Milliseconds of warm-up
  --duration=N                Seconds at least
  --skipInference             No inference after the build, formerly --buildOnly
  --exportTimes=<file>        Write the times as json
""",
    "11": """&&&& RUNNING TensorRT.trtexec [TensorRT v110400] # trtexec --help
  --onnx=<file>               ONNX model
  --minShapes=spec            Profile with the smallest shapes
  --optShapes=spec            Profile with the usual shapes
  --maxShapes=spec            Profile with the largest shapes
  --memPoolSize=poolspec      Limits of memory pools
  --noTF32                    No tf32; there is no --fp16, no --int8 and no --best any more
  --saveEngine=<file>         Save the engine
  --loadEngine=<file>         Load an engine
  --timingCacheFile=<file>    Load and save the timing cache
  --shapes=spec               Shapes of inputs
  --iterations=N              Iterations at least
  --warmUp=N                  Milliseconds of warm-up
  --duration=N                Seconds at least
  --skipInference             No inference after the build
  --exportTimes=<file>        Write the times as json
""",
}
VERSION = {"8.2": "8.2.1", "8.5": "8.5.2", "10.3": "10.3.0", "11": "11.4.0"}
TRTEXEC = """#!{python}
import json, pathlib, re, subprocess, sys, time
here = pathlib.Path(__file__).resolve().parent
text = (here / "help.txt").read_text()
if sys.argv[1:] == ["--help"]:
    print(text)
    sys.exit(0)
known = dict(re.findall(r"^  --(\\w+)(=?)", text, re.MULTILINE))
given = dict(argument[2:].partition("=")[::2] for argument in sys.argv[1:])
with (here / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
for argument in sys.argv[1:]:
    name, equals, _ = argument[2:].partition("=")
    if known.get(name) != equals:
        print("Unknown option:", argument)
        sys.exit(1)
way = (here / "way.txt").read_text()
if way == "fail":
    for number in range(50):
        print("line", number)
    print("Error[10]: no implementation for node Conv_0 \\u2717".encode("utf-8"), flush=True)
    sys.exit(3)
if way == "hang":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    (here / "child.txt").write_text(str(child.pid))
    time.sleep(300)
if "saveEngine" in given and way != "nothing":
    source = pathlib.Path(given["onnx"]).read_bytes()
    pathlib.Path(given["saveEngine"]).write_bytes(b"engine of " + source)
if "exportTimes" in given:
    assert pathlib.Path(given["loadEngine"]).read_bytes().startswith(b"engine of ")
    count = int(given["iterations"]) + (5 if way != "few" else -1)
    rows = [{{"startEnqMs": n, "h2dMs": 0.1, "computeMs": 1 + n, "latencyMs": 1.5 + n}} for n in range(count)]
    rows = [{{"timeMs": 1}}] * count if way == "other" else rows
    pathlib.Path(given["exportTimes"]).write_text(json.dumps(rows))
"""
NASTY = """it's "here" ; touch $(echo gone) `id` & é"""
MODEL = {"precision": "fp16", "input": "x", "shape": [2, 3, 8, 8], "max_batch": None, "outputs": ["y"]}


class Device:
    """A folder with an artifact, another one with trtexec; names that a shell would not survive."""

    def __init__(self, base: Path, version: str) -> None:
        self.tools, self.folder = base / f"bin {NASTY}", base / NASTY
        self.tools.mkdir()
        self.folder.mkdir()
        (self.folder / "model.onnx").write_bytes(b"onnx")
        (self.folder / "build_engine.py").write_bytes(SCRIPT.read_bytes())
        self.model()
        (self.tools / "help.txt").write_text(HELP[version])
        trtexec = self.tools / "trtexec"
        trtexec.write_text(TRTEXEC.format(python=sys.executable))
        trtexec.chmod(trtexec.stat().st_mode | stat.S_IXUSR)
        self.goes()

    def model(self, **changes: object) -> None:
        (self.folder / "model.json").write_text(json.dumps({**MODEL, **changes}))

    def goes(self, way: str = "well") -> None:
        (self.tools / "way.txt").write_text(way)

    def start(self, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PATH": str(self.tools) if path is None else path}
        return subprocess.run(
            [sys.executable, "-I", str(self.folder / "build_engine.py"), *arguments],
            capture_output=True,
            text=True,
            env=env,
            timeout=120,
            check=False,
        )

    def answer(self, *arguments: str) -> dict:
        done = self.start(*arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def refusal(self, *arguments: str, path: str | None = None) -> str:
        done = self.start(*arguments, path=path)
        assert (done.returncode, done.stdout) == (1, "")
        assert "Traceback" not in done.stderr
        assert not list(self.folder.glob(".*"))
        return done.stderr

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.tools / "calls.jsonl").read_text().splitlines()]

    def flags(self) -> list[str]:
        """Those of the first call, without the paths."""
        source, target, *rest = self.calls()[0]
        assert source == f"--onnx={self.folder}/model.onnx"
        assert target.startswith(f"--saveEngine={self.folder}/.building-")
        return rest

    @property
    def plan(self) -> Path:
        return self.folder / "engine.plan"


@pytest.fixture
def device(tmp_path):
    return Device(tmp_path, "10.3")


@pytest.mark.parametrize(
    ("version", "precision", "expected"),
    [
        ("8.2", "fp32", ["--noTF32", "--buildOnly", "--workspace=1024"]),
        ("8.2", "fp16", ["--fp16", "--buildOnly", "--workspace=1024"]),
        ("8.2", "int8", ["--int8", "--fp16", "--buildOnly", "--workspace=1024"]),
        ("8.5", "fp16", ["--fp16", "--buildOnly"]),
        ("8.5", "int8", ["--int8", "--fp16", "--buildOnly"]),
        ("10.3", "fp32", ["--noTF32", "--skipInference"]),
        ("10.3", "int8", ["--int8", "--fp16", "--skipInference"]),
        ("11", "fp32", ["--noTF32", "--skipInference"]),
        ("11", "fp16", ["--skipInference"]),
        ("11", "int8", ["--skipInference"]),
    ],
)
def test_flags_are_those_that_the_help_lists(tmp_path, version, precision, expected):
    device = Device(tmp_path, version)
    device.model(precision=precision)
    answer = device.answer()
    assert device.flags() == expected
    assert answer["tensorrt"] == VERSION[version]
    assert (answer["engine"], answer["trtexec"]) == (str(device.plan), str(device.tools / "trtexec"))
    assert answer["arguments"] == device.calls()[0]
    assert device.plan.read_bytes() == b"engine of onnx"
    assert sorted(entry.name for entry in device.folder.iterdir()) == [
        "build_engine.py",
        "engine.plan",
        "model.json",
        "model.onnx",
    ]
    assert not [entry for entry in tmp_path.rglob("*") if entry.name == "gone"]


@pytest.mark.parametrize(
    ("version", "expected"),
    [("8.2", "--workspace=64"), ("8.5", "--memPoolSize=workspace:64"), ("11", "--memPoolSize=workspace:64")],
)
def test_workspace_limit(tmp_path, version, expected):
    device = Device(tmp_path, version)
    device.answer("--workspace-mib", "64")
    assert [flag for flag in device.flags() if "ork" in flag or "Pool" in flag] == [expected]


def test_workspace_limit_that_cannot_be_kept(device):
    text = (device.tools / "help.txt").read_text()
    (device.tools / "help.txt").write_text(text.replace("  --memPoolSize", "      (--memPoolSize)"))
    assert "no flag that limits the workspace" in device.refusal("--workspace-mib", "64")


def test_timing_cache_only_where_there_is_one(device):
    cache = device.folder.parent / "a b.cache"
    device.answer("--timing-cache", str(cache))
    assert f"--timingCacheFile={cache}" in device.flags()
    text = (device.tools / "help.txt").read_text()
    (device.tools / "help.txt").write_text(text.replace("--timingCacheFile", "--other"))
    device.answer("--timing-cache", str(cache))
    assert not [flag for flag in device.calls()[1] if flag.startswith("--timing")]


def test_an_open_batch_has_a_profile(device):
    device.model(max_batch=16)
    device.answer("--runs", "10")
    build, timing = device.calls()
    assert [flag for flag in build if "Shapes" in flag] == [
        "--minShapes=x:1x3x8x8",
        "--optShapes=x:2x3x8x8",
        "--maxShapes=x:16x3x8x8",
    ]
    assert "--shapes=x:2x3x8x8" in timing


def test_times_are_read_back(device):
    answer = device.answer("--runs", "300")
    assert (answer["compute_ms"][:2], answer["latency_ms"][:2]) == ([1, 2], [1.5, 2.5])
    assert len(answer["compute_ms"]) == len(answer["latency_ms"]) == 305
    timing = device.calls()[1]
    assert f"--loadEngine={device.plan}" in timing
    assert "--iterations=300" in timing
    assert not list(device.folder.glob(".*"))


def test_keep_times_the_engine_that_is_there(device):
    device.answer()
    assert device.answer("--keep", "--runs", "5")["latency_ms"]
    assert len(device.calls()) == 2
    device.plan.unlink()
    device.answer("--keep")
    assert device.plan.is_file()


@pytest.mark.parametrize(("way", "text"), [("few", "timed 9 inferences"), ("other", "no computeMs")])
def test_times_that_are_not_what_was_asked_for(device, way, text):
    device.goes(way)
    assert text in device.refusal("--runs", "10")


def test_a_failed_build_shows_the_end_of_the_output(device):
    device.plan.write_bytes(b"old")
    device.goes("fail")
    errors = device.refusal()
    assert "trtexec failed with exit code 3" in errors
    assert "no implementation for node Conv_0" in errors
    assert "line 49" in errors
    assert "line 20" not in errors
    assert device.plan.read_bytes() == b"old"


def test_success_without_an_engine_is_a_failure(device):
    device.goes("nothing")
    assert "wrote no engine" in device.refusal()


def test_a_build_without_an_end_is_stopped_with_all_it_started(device):
    device.goes("hang")
    assert "was stopped after 3 s" in device.refusal("--timeout-s", "3")
    child = int((device.tools / "child.txt").read_text())
    until = time.monotonic() + 20
    while is_running(child):
        assert time.monotonic() < until, "what trtexec started still runs"
        time.sleep(0.1)


def is_running(process: int) -> bool:
    """Whether a process runs; one that has ended and waits to be noticed does not."""
    stat_file = Path(f"/proc/{process}/stat")
    try:
        return stat_file.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_no_trtexec(device, tmp_path):
    errors = device.refusal(path=str(tmp_path))
    assert "trtexec was not found on PATH or in /usr/src/tensorrt/bin" in errors
    assert "no program nowhere/trtexec" in device.refusal("--trtexec", "nowhere/trtexec")


def test_a_given_trtexec_is_used(device, tmp_path):
    done = device.start("--trtexec", str(device.tools / "trtexec"), path=str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_the_place_where_packages_put_it(device, tmp_path, monkeypatch):
    import importlib.util

    spec = importlib.util.spec_from_file_location("build_engine_here", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PLACES", (str(device.tools),))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert module.find_trtexec(None) == str(device.tools / "trtexec")


def test_something_else_that_is_called_trtexec(device):
    (device.tools / "help.txt").write_text("usage: trtexec FILE")
    assert "does not list --onnx and --saveEngine" in device.refusal()


@pytest.mark.parametrize("name", ["model.onnx", "model.json"])
def test_an_incomplete_folder(device, name):
    (device.folder / name).unlink()
    assert name in device.refusal()


def test_it_runs_on_python_3_6():
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 6))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert {alias.name.split(".")[0] for node in found if isinstance(node, ast.Import) for alias in node.names} <= {
        *("argparse", "json", "os", "re", "shutil", "signal", "subprocess", "sys", "tempfile", "time")
    }
    assert {node.module for node in found if isinstance(node, ast.ImportFrom)} == {"pathlib", "typing"}
