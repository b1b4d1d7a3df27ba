"""Runtimes' own benchmark programs on devices without Python: stand-ins that print what the real ones print."""

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from small_models import convolution as make

from deploy_prune.cli import main
from deploy_prune.device.programs import PROGRAMS, Asked, runtime_of
from deploy_prune.device.targets import load_target
from deploy_prune.errors import MeasurementError, TargetError
from deploy_prune.latency.granularity import machine
from deploy_prune.latency.measure import measure, profile

ASKED = Asked(path="/p/model", shapes=[[1, 3, 8, 6]], threads=2, runs=20, warmup=5)
PRINTED = {
    "litert": (
        "INFO: count=20 first=412 curr=398 min=390 max=431 avg=401.5 std=9\nINFO: Inference timings in us: "
        "Init: 1021, First inference: 812, Warmup (avg): 640.2, Inference (avg): 401.5\n",
        0.4015,
    ),
    "ncnn": ("loop_count = 20\n         model.param  min =    1.20  max =    1.44  avg =    1.31\n", 1.31),
    "executorch": (
        "I 00:00:00.1 executor_runner.cpp:5] Model executed successfully 20 time(s) in 12.500000 ms.\n",
        0.625,
    ),
    "onnxruntime": ("Average inference time cost: 1.9 ms\nP50 Latency: 0.00185674 s\nP90 Latency: 0.002 s\n", 1.85674),
}


@pytest.mark.parametrize("runtime", PROGRAMS)
def test_the_figure_is_found_in_what_is_printed(runtime, tmp_path):
    from deploy_prune.device import programs

    kind, (printed, ms) = PROGRAMS[runtime], PRINTED[runtime]

    class There:
        @staticmethod
        def run(command, stdin):
            return printed

    assert programs._start(There, "/p/program", kind, ASKED) == pytest.approx(ms)
    words = " ".join(kind.arguments(ASKED))
    assert "/p/model" in words
    assert "20" in words
    assert "2" in words
    assert runtime_of(Path(f"android_aarch64_{kind.name}")) == runtime


def test_benchncnn_has_the_shape_backwards():
    assert "shape=[6,8,3]" in PROGRAMS["ncnn"].arguments(ASKED)


def test_benchncnn_has_every_inputs_shape_of_any_rank():
    asked = replace(ASKED, shapes=[[1, 1, 400], [1, 16]])
    assert "shape=[400,1],[16]" in PROGRAMS["ncnn"].arguments(asked)


def test_an_unknown_program():
    with pytest.raises(TargetError, match="'bench_model' is none of .* Perhaps you meant 'benchmark_model'"):
        runtime_of(Path("bench_model"))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return make(tmp_path_factory.mktemp("models") / "it's $(touch canary).onnx")


@pytest.fixture
def phone(board, tmp_path):
    """A target without Python, whose program notes what it is asked."""
    program = tmp_path / "onnxruntime_perf_test"
    program.write_text(
        f'#!/bin/sh\nprintf "%s|" "$@" >>{tmp_path}/asked\necho >>{tmp_path}/asked\n'
        f"for last; do :; done\ntest -f \"$last\" || exit 3\nprintf '{PRINTED['onnxruntime'][0]}'\n"
    )
    (board.bin / "python3").unlink()
    return replace(load_target("host"), name="phone", runner=board.name, program=str(program), granularity=4)


def test_a_program_is_started_in_turns(phone, artifact, tmp_path):
    first, second = measure(phone, [artifact, artifact], runs=300, warmup=5)
    assert first.samples_ms == second.samples_ms == pytest.approx((1.85674,) * 10)
    assert (first.runs_per_sample, first.measured_on, len(first.conditions)) == (30, phone.runner, 1)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(asked) == 20
    assert asked[0].startswith("-I|-m|times|-r|30|-x|1|-y|1|-e|cpu|-s|/")
    assert asked[0].endswith("/it's $(touch canary).onnx|")


def test_a_program_tells_times_only(phone, artifact):
    with pytest.raises(MeasurementError, match="reports only times, no outputs and no layers"):
        profile(phone, [artifact])


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo nothing of use", "printed no time that can be read: 'nothing of use'"),
        ("echo 'P50 Latency: . s'", "printed no time that can be read"),
        ("echo 'bad model' >&2; exit 7", "failed with exit code 7"),
        ("echo 'P50 Latency: 0 s'", "timings that aren't positive numbers"),
        ("sleep 60", "was stopped after 3 s"),
    ],
)
def test_programs_that_fail(phone, artifact, script, words):
    Path(phone.program).write_text(f"#!/bin/sh\n{script}\n")
    with pytest.raises(MeasurementError, match=words) as caught:
        measure(phone, [artifact], runs=10, warmup=0, timeout_s=3 if "sleep" in script else 60)
    assert "\n" not in str(caught.value)


def test_no_program_and_no_device(phone, artifact):
    with pytest.raises(MeasurementError, match="There is no program /nowhere/onnxruntime_perf_test"):
        measure(replace(phone, program="/nowhere/onnxruntime_perf_test"), [artifact], runs=10, warmup=0)
    with pytest.raises(TargetError, match="is for devices without Python"):
        measure(replace(phone, runner="local"), [artifact], runs=10, warmup=0)


def test_figures_of_a_device_without_python_are_kept_for_it_alone(phone):
    told = machine(phone)
    assert told["device"] == phone.runner
    assert told["about"]["cores"] >= 1
    assert told["about"]["program"] == "onnxruntime_perf_test"


def test_a_target_file_for_a_phone(phone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scheme, _, rest = phone.runner.partition("://")
    done = CliRunner().invoke(main, ["targets", "new", "my-phone", f"--{scheme}", rest, "--program", phone.program])
    assert done.exit_code == 0, done.output
    target = load_target("./my-phone.yaml")
    assert (target.runtime, target.format, target.program) == ("onnxruntime", "onnx", phone.program)
