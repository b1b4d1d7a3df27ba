# ruff: noqa: UP006, UP035, UP045
"""Build engine.plan from the model.onnx beside this file, with the device's own trtexec.

Needs Python 3.6 (JetPack 4.6 has no newer one), hence the old type names, and nothing else.

    python3 build_engine.py                      build engine.plan
    python3 build_engine.py --runs 300           build it, then time 300 inferences or more
    python3 build_engine.py --keep --runs 300    time the engine that is there

One JSON object goes to standard output: {"engine", "trtexec", "tensorrt", "arguments", "seconds"}, and after timing
"compute_ms" (on the GPU alone) and "latency_ms" (with both copies between host and GPU), one number an inference.
If anything fails, the exit code is 1, the reason and the end of trtexec's output go to standard error, and an
engine.plan that was there before is left as it was.

Flags are taken from what `trtexec --help` lists, never from a version number.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Set, Tuple

PLACES = ("/usr/src/tensorrt/bin",)
"""Where NVIDIA's packages put trtexec without adding it to PATH."""
LAST_LINES = 15
HELP_TIMEOUT_S = 120.0
"""`trtexec --help` loads the CUDA libraries, which takes a small board many seconds."""
SMALL_WORKSPACE_MIB = 1024
"""Where there is only --workspace, its default is 16 MiB (trtexec 8.2 --help), too little for fast convolutions."""
WARMUP_MS, DURATION_S = 500, 1


class BuildError(Exception):
    """The engine can't be built or timed; the message says why."""


def main(arguments: Optional[List[str]] = None) -> None:
    """Do what the command line asks."""
    options = parse(arguments)
    try:
        answer = work(Path(options.folder).resolve(), options)
    except BuildError as error:
        sys.exit(f"build_engine.py: {error}")
    json.dump(answer, sys.stdout)
    sys.stdout.write("\n")


def parse(arguments: Optional[List[str]]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Build engine.plan from model.onnx with this device's trtexec.")
    here = str(Path(__file__).resolve().parent)
    parser.add_argument("--folder", default=here, help="with model.onnx and model.json (default: this file's)")
    parser.add_argument("--trtexec", help=f"its path (default: from PATH, then {', '.join(PLACES)})")
    parser.add_argument("--workspace-mib", type=int, help="limit of the memory for layers' scratch space, in MiB")
    parser.add_argument("--timing-cache", help="file that keeps kernels' timings between builds")
    parser.add_argument("--timeout-s", type=float, default=3600.0, help="for the build, and for the timing")
    parser.add_argument("--runs", type=int, default=0, help="time at least so many inferences afterwards")
    parser.add_argument("--keep", action="store_true", help="use the engine.plan that is there, if there is one")
    return parser.parse_args(arguments)


def work(folder: Path, options: argparse.Namespace) -> Dict[str, Any]:
    """Build, and time if asked to."""
    model, engine = read_json(folder / "model.json"), folder / "engine.plan"
    trtexec = find_trtexec(options.trtexec)
    flags, version = ask(trtexec)
    answer: Dict[str, Any] = {"engine": str(engine), "trtexec": trtexec, "tensorrt": version}
    if not (options.keep and engine.is_file()):
        answer.update(build(trtexec, flags, model, engine, options))
    if options.runs:
        answer.update(measure(trtexec, flags, model, engine, options))
    return answer


def find_trtexec(given: Optional[str]) -> str:
    """The path of trtexec: the one given, the first on PATH, or one in PLACES.

    Raises:
        BuildError: there is none.
    """
    places = [given] if given else ["trtexec"] + [f"{place}/trtexec" for place in PLACES]
    for place in places:
        found = shutil.which(place)
        if found:
            return str(Path(found).resolve())
    message = f"there is no program {given}"
    if not given:
        message = (
            f"trtexec was not found on PATH or in {', '.join(PLACES)}. It comes with TensorRT (on a Jetson:"
            " apt-get install libnvinfer-bin); say where it is with --trtexec."
        )
    raise BuildError(message)


def ask(trtexec: str) -> Tuple[Set[str], str]:
    """The flags that this trtexec knows, and TensorRT's version as far as the help shows it (else "")."""
    _, text = call([trtexec, "--help"], HELP_TIMEOUT_S)
    flags = set(re.findall(r"^ {0,6}(--[A-Za-z]\w*)", text, re.MULTILINE))
    if not {"--onnx", "--saveEngine"} <= flags:
        message = f"{trtexec} --help does not list --onnx and --saveEngine:\n{last_lines(text)}"
        raise BuildError(message)
    found = re.search(r"\[TensorRT v(\d{4,6})\]", text)
    return flags, dotted(found.group(1)) if found else ""


def dotted(number: str) -> str:
    """The version behind trtexec's number: 8201 is 8.2.1, 100300 is 10.3.0."""
    value, major = int(number), 1000 if len(number) == 4 else 10000
    minor = major // 10 if len(number) == 4 else 100
    return f"{value // major}.{value % major // minor}.{value % minor}"


def build(
    trtexec: str, flags: Set[str], model: Dict[str, Any], engine: Path, options: argparse.Namespace
) -> Dict[str, Any]:
    """Build under a temporary name; only a complete engine takes the place of engine.plan."""
    source = engine.with_name("model.onnx")
    if not source.is_file():
        message = f"there is no {source}"
        raise BuildError(message)
    start = time.time()
    with tempfile.TemporaryDirectory(prefix=".building-", dir=str(engine.parent)) as folder:
        written = Path(folder) / engine.name
        arguments = [f"--onnx={source}", f"--saveEngine={written}", *build_flags(flags, model)]
        arguments += resource_flags(flags, options.workspace_mib, options.timing_cache)
        run(trtexec, arguments, options.timeout_s)
        if not written.is_file() or not written.stat().st_size:
            message = "trtexec ended well but wrote no engine"
            raise BuildError(message)
        written.replace(engine)
    return {"arguments": arguments, "seconds": round(time.time() - start, 3)}


def build_flags(flags: Set[str], model: Dict[str, Any]) -> List[str]:
    """Precision, shapes, and to stop after the build; only flags that this trtexec knows.

    model.onnx has its precision written into it. A trtexec that has --fp16 and --int8 must also be allowed to use
    them; one without takes the types from the file. With int8, layers that are not quantised may run in fp16.
    TF32 is turned off for fp32, since it rounds factors to 10 bits.
    """
    wanted = {"fp32": ["--noTF32"], "fp16": ["--fp16"], "int8": ["--int8", "--fp16"]}[model["precision"]]
    chosen = [flag for flag in wanted if flag in flags]
    if model["max_batch"]:
        for flag, batch in (("min", 1), ("opt", model["shape"][0]), ("max", model["max_batch"])):
            chosen.append(f"--{flag}Shapes={shape_of(model, batch)}")
    return chosen + [flag for flag in ("--skipInference", "--buildOnly") if flag in flags][:1]


def resource_flags(flags: Set[str], workspace_mib: Optional[int], timing_cache: Optional[str]) -> List[str]:
    """The limit of the workspace and the timing cache.

    Raises:
        BuildError: a limit is asked for and this trtexec has no flag for it.
    """
    chosen = []
    if workspace_mib is None and "--workspace" in flags and "--memPoolSize" not in flags:
        workspace_mib = SMALL_WORKSPACE_MIB
    if workspace_mib is not None:
        if "--memPoolSize" in flags:
            chosen.append(f"--memPoolSize=workspace:{workspace_mib}")
        elif "--workspace" in flags:
            chosen.append(f"--workspace={workspace_mib}")
        else:
            message = "this trtexec has no flag that limits the workspace; leave out --workspace-mib"
            raise BuildError(message)
    if timing_cache is not None and "--timingCacheFile" in flags:
        chosen.append(f"--timingCacheFile={Path(timing_cache).resolve()}")
    return chosen


def measure(
    trtexec: str, flags: Set[str], model: Dict[str, Any], engine: Path, options: argparse.Namespace
) -> Dict[str, Any]:
    """Time the engine with one stream: ms of every inference, as trtexec's --exportTimes has them."""
    if "--exportTimes" not in flags:
        message = "this trtexec can't export times"
        raise BuildError(message)
    with tempfile.TemporaryDirectory(prefix=".timing-", dir=str(engine.parent)) as folder:
        times = Path(folder) / "times.json"
        arguments = [f"--loadEngine={engine}", f"--exportTimes={times}", f"--iterations={options.runs}"]
        arguments += [f"--warmUp={WARMUP_MS}", f"--duration={DURATION_S}"]
        if model["max_batch"]:
            arguments.append(f"--shapes={shape_of(model, model['shape'][0])}")
        run(trtexec, arguments, options.timeout_s)
        rows = read_json(times)
    try:
        answer = {"compute_ms": [row["computeMs"] for row in rows], "latency_ms": [row["latencyMs"] for row in rows]}
    except (KeyError, TypeError):
        message = "trtexec's exported times have no computeMs and latencyMs"
        raise BuildError(message) from None
    if len(rows) < options.runs:
        message = f"trtexec timed {len(rows)} inferences where {options.runs} were asked for"
        raise BuildError(message)
    return answer


def shape_of(model: Dict[str, Any], batch: int) -> str:
    """The input's shape as trtexec takes it: x:1x3x224x224."""
    return f"{model['input']}:{'x'.join(str(size) for size in [batch] + model['shape'][1:])}"


def run(trtexec: str, arguments: List[str], timeout_s: float) -> None:
    """Run trtexec; BuildError with the end of its output if it fails."""
    code, text = call([trtexec] + arguments, timeout_s)
    if code:
        message = f"trtexec failed with exit code {code}:\n{last_lines(text)}"
        raise BuildError(message)


def call(arguments: List[str], timeout_s: float) -> Tuple[int, str]:
    """Run a command without a shell; its exit code and all that it printed. What it started is stopped with it."""
    try:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        message = f"{arguments[0]} can't be started: {error}"
        raise BuildError(message) from None
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        message = f"{arguments[0]} was stopped after {timeout_s:g} s"
        raise BuildError(message) from None
    return process.returncode, output.decode("utf-8", "replace")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{path} can't be read: {error}"
        raise BuildError(message) from None


def last_lines(text: str) -> str:
    """The end of a command's output."""
    return "\n".join(text.strip().splitlines()[-LAST_LINES:])


if __name__ == "__main__":
    main()
