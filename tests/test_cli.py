"""The commands: what they pass on, what they print, and how they fail."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import click
import pytest
from click.testing import CliRunner

import deploy_prune
from deploy_prune import api, commands, errors, run
from deploy_prune.cli import main
from deploy_prune.commands import doctor
from deploy_prune.commands.examples import EXAMPLES
from deploy_prune.errors import BudgetError, DeployPruneError, MissingDependencyError, RunFolderError
from deploy_prune.recipe.file import load_recipe
from deploy_prune.report.doctor import Finding
from deploy_prune.report.results import Bench, BudgetReach, CheckReport, TargetReach
from deploy_prune.report.row import Row
from deploy_prune.types import Artifact, ChannelGroup, Structure, silent

ERROR_CLASSES = [DeployPruneError, *DeployPruneError.__subclasses__()]


def untold(sentence: str) -> None:
    """The fake pipeline's way to say nothing."""


def row(budget: str = "50%", **changes) -> Row:
    values = dict.fromkeys(Row.__dataclass_fields__) | {
        "target": "host", "runtime": "onnxruntime", "precision": "fp32", "budget": budget, "metric": "latency",
        "asked": 2.0, "predicted": 2.0, "macs": 10, "params": 10, "status": "ok",
    }  # fmt: skip
    return Row(**(values | changes))


def benches(*rows: Row) -> tuple[Bench, ...]:
    return tuple(Bench(row=one, macs_share=1.0) for one in rows)


def check_report(*, met: bool = True, groups: tuple[ChannelGroup, ...] = ()) -> CheckReport:
    budget = BudgetReach(
        target="host", budget="1%", metric="latency", asked=0.1, met=met, reason="the smallest is 2 ms"
    )
    reach = TargetReach(
        target="host", granularity=8, granularity_source="measured", metric="latency", smallest=2.0, dense=10.0,
        predicted_by="table",
    )  # fmt: skip
    return CheckReport(
        recipe_name="quickstart", network="resnet20", dense={"macs": 1e6, "params": 1e5},
        structure=Structure(groups=groups, layers=(), whole=()),
        targets=(reach,), budgets=(budget,), seconds=1.0, summary=("Input: 3 x 32 x 32 pixels.",),
    )  # fmt: skip


@pytest.fixture
def pipeline(monkeypatch):
    """A pipeline that notes what it was called with."""
    fake = ModuleType("deploy_prune.run.pipeline")
    fake.calls = []

    def note(name, result):
        def call(*args, **named):
            fake.calls.append((name, *args, *([named] if named else ())))
            if isinstance(result, BaseException):
                raise result
            return result

        setattr(fake, name, call)

    fake.answer = note
    fake.untold = untold
    told = ("Input: 3 x 32 x 32 pixels.",)
    note("run", SimpleNamespace(folder=Path("runs/quickstart"), rows=(row("dense"), row()), summary=told))
    note("check", check_report())
    note("bench", benches(row("dense"), row()))
    for package, name in ((run, "pipeline"), (commands, "check"), (commands, "bench"), (api, "export")):
        monkeypatch.setitem(sys.modules, f"{package.__name__}.{name}", fake)
        monkeypatch.setattr(package, name, fake, raising=False)
    return fake


def call(*args: str):
    return CliRunner().invoke(main, args)


def test_help_answers_at_once():
    command = [sys.executable, "-m", "deploy_prune.cli", "--help"]
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.6


def test_the_command_line_is_imported_without_torch():
    code = "import sys, deploy_prune.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_version():
    assert call("--version").output == f"deploy-prune, version {deploy_prune.__version__}\n"


@pytest.mark.parametrize("name", main.commands)
def test_every_command_has_a_help_text(name):
    result = call(name, "--help")
    assert result.exit_code == 0
    assert main.commands[name].help
    assert f"\n    {EXAMPLES[name][0]}\n" in result.output


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_an_example_parses(line):
    program, *words = shlex.split(line)
    assert program == "deploy-prune"
    name, command, args = main.resolve_command(click.Context(main), words)
    if args and args[0] in getattr(command, "commands", ()):
        name, command, args = command.resolve_command(click.Context(command), args)
    command.make_context(name, args)


@pytest.mark.parametrize("error", ERROR_CLASSES)
def test_each_error_is_one_line_and_its_own_exit_code(error, pipeline):
    pipeline.answer("check", error("First part,\n  second part."))
    result = call("check", "quickstart", "--quiet")
    assert result.exit_code == error.exit_code
    assert result.stderr == "deploy-prune: error: First part, second part.\n"
    assert result.stdout == ""


def test_exit_codes_are_the_classes_own():
    codes = [error.exit_code for error in ERROR_CLASSES]
    assert len(set(codes)) == len(codes)
    assert not {0, 2, 130} & set(codes)
    assert {e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)} == set(ERROR_CLASSES)


def test_debug_shows_the_traceback_too(pipeline):
    pipeline.answer("check", BudgetError("Too small."))
    result = call("--debug", "check", "quickstart", "--quiet")
    assert result.exit_code == BudgetError.exit_code
    assert result.stderr.startswith("Traceback")
    assert result.stderr.endswith("\ndeploy-prune: error: Too small.\n")


def test_an_unexpected_exception_is_named_without_a_traceback(pipeline):
    pipeline.answer("check", KeyError("features"))
    result = call("check", "quickstart", "--quiet")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "unexpected KeyError: 'features'" in result.stderr
    assert "--debug" in result.stderr


def test_an_interrupted_run_says_that_it_can_go_on(pipeline):
    pipeline.answer("run", KeyboardInterrupt())
    result = call("recipe", "quickstart", "--quiet")
    assert result.exit_code == 130
    assert result.stderr == "deploy-prune: interrupted; run the same command again to resume\n"


def test_a_wrong_command_is_a_usage_error():
    assert call("chekc").exit_code == 2
    assert call("check").exit_code == 2


def test_recipe_passes_everything_on_and_shows_the_results(pipeline):
    result = call(
        "recipe", "quickstart", "--set", "seed=3", "--set", "budgets=[30%]", "--out", "o", "--fresh", "--quiet"
    )
    assert result.exit_code == 0
    parsed = load_recipe("quickstart", ["seed=3", "budgets=[30%]"])
    assert pipeline.calls == [("run", parsed, Path("o"), silent, True, untold, {"tell_threads": untold, "jobs": 1})]
    assert result.stderr == ""
    assert "dense" in result.stdout
    assert "Input: 3 x 32 x 32 pixels." in result.stdout
    assert result.stdout.endswith("runs/quickstart\n")


def test_recipe_shows_progress_unless_told_not_to(pipeline):
    call("recipe", "quickstart")
    (_, _, out, progress, fresh, tell, named), *_ = pipeline.calls
    assert (out, fresh) == (Path("runs"), False)
    assert tell is named["tell_threads"] is not untold
    assert progress is not silent


@pytest.mark.parametrize(("command", "doing"), [("check", "Check"), ("recipe", "Run")])
@pytest.mark.parametrize(
    ("name", "what"),
    [("quickstart", "quickstart: torchvision:resnet18 on digits"), ("own.yaml", "own: my:network on my:task")],
)
def test_it_says_what_it_does_before_torch_is_imported(command, doing, name, what, tmp_path):
    (tmp_path / "torch.py").write_text("import sys; sys.exit('now torch is imported')")
    (tmp_path / "own.yaml").write_text("{name: own, task: 'my:task', model: {source: 'my:network'}}")
    name = str(tmp_path / name) if name.endswith(".yaml") else name
    arguments = [command, name, *(["--out", str(tmp_path)] if command == "recipe" else [])]
    done = subprocess.run(
        [sys.executable, "-m", "deploy_prune.cli", *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    first = f"{doing} {what}, 50% on host. Loading PyTorch ..."
    assert done.stderr.splitlines()[:2] == [first, "now torch is imported"]


@pytest.mark.parametrize("command", [("recipe", "quickstart"), ("bench", "runs/quickstart")])
def test_failed_rows_fail_the_command_after_the_table(command, pipeline):
    rows = (row("dense"), row("50%", status="failed", error="Off by 9%."), row("35%", status="failed", error="No."))
    pipeline.answer("run", SimpleNamespace(folder=Path("f"), rows=rows, summary=()))
    pipeline.answer("bench", benches(*rows))
    result = call(*command)
    assert result.exit_code == 22
    assert "host 50%: Off by 9%." in result.stdout
    assert "host 35%: No." in result.stdout
    assert result.stderr.endswith("error: 2 of 3 results failed, the first of them host 50%: Off by 9%.\n")


def test_a_wrong_recipe_stops_before_the_pipeline_is_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "deploy_prune.run.pipeline", None)  # importing it would raise
    result = call("check", "quickstart", "--set", "sed=1")
    assert result.exit_code == 10
    assert "Perhaps you meant 'seed'?" in result.stderr


def test_check_shows_its_tables(pipeline):
    result = call("check", "quickstart")
    assert result.exit_code == 0
    assert "Budgets" in result.stdout
    assert "Input: 3 x 32 x 32 pixels." in result.stdout


def test_check_fails_where_a_run_would(pipeline):
    pipeline.answer("check", check_report(met=False))
    result = call("check", "quickstart")
    assert result.exit_code == BudgetError.exit_code
    assert "'1%' can't be met on host: the smallest is 2 ms" in result.stderr
    assert "Budgets" in result.stdout


def test_check_takes_several_recipes_and_sweeps(pipeline, tmp_path):
    found = tmp_path / "found.json"
    swept = call("check", "quickstart", "mobilenet", "--set", "seed=[0,1]", "--json", str(found))
    assert swept.exit_code == 0
    assert [recipe.seed for _, recipe, _ in pipeline.calls] == [0, 1, 0, 1]
    assert [recipe.name for _, recipe, _ in pipeline.calls][:2] == ["quickstart-0", "quickstart-1"]
    assert len(json.loads(found.read_text())) == swept.stdout.count("Reachable cost") == 4


def test_bench_writes_its_rows_as_json(pipeline, tmp_path):
    result = call("bench", "runs/quickstart", "--runs", "50", "--json", str(tmp_path / "again.json"))
    assert result.exit_code == 0
    assert pipeline.calls == [("bench", Path("runs/quickstart"), 50, None, False)]
    assert [r["budget"] for r in json.loads((tmp_path / "again.json").read_text())] == ["dense", "50%"]


def test_recipe_without_a_name_lists_what_is_shipped(pipeline):
    result = call("recipe")
    assert result.exit_code == 0
    assert "quickstart       A complete run" in result.stdout
    assert pipeline.calls == []
    assert max(map(len, result.stdout.splitlines())) <= 140


def test_recipe_writes_its_rows_as_json(pipeline, tmp_path):
    assert call("recipe", "quickstart", "--quiet", "--json", str(tmp_path / "rows.json")).exit_code == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["recipe"], row["budget"]) for row in rows] == [("quickstart", "dense"), ("quickstart", "50%")]


def test_check_writes_what_it_found_as_json(pipeline, tmp_path):
    a, b = (SimpleNamespace(tensor=f"{name}.weight") for name in "ab")
    group = ChannelGroup(name="a", channels=8, period=1, members=(a, b), consumers=(b,))
    pipeline.answer("check", check_report(groups=(group,)))
    assert call("check", "quickstart", "--quiet", "--json", str(tmp_path / "found.json")).exit_code == 0
    (found,) = json.loads((tmp_path / "found.json").read_text())
    assert found["groups"] == [
        {"name": "a", "channels": 8, "period": 1, "tensors": ["a.weight", "b.weight"], "read_by": ["b.weight"]}
    ]
    assert found["budgets"][0]["met"] is True


def test_targets_are_printed_as_json():
    found = json.loads(call("targets", "--json").stdout)
    assert {"host", "pixel-8"} <= {target["name"] for target in found}


def test_compare_writes_its_page_beside_the_runs(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text("name: x\nmodel: {source: resnet20}\n")
    result = call("compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json", str(tmp_path / "c.json"))
    assert result.exit_code == 0
    assert "a has no results yet." in result.stdout
    assert result.stdout.endswith(f"{tmp_path / 'compare.html'}\n")
    assert json.loads((tmp_path / "c.json").read_text())["runs"] == ["a", "b"]
    (tmp_path / "a" / ".stages").mkdir()
    inside = call("compare", str(tmp_path / "a"), "--out", str(tmp_path / "a" / "compare.html"))
    assert inside.exit_code == RunFolderError.exit_code


def test_export_names_the_artifact(pipeline, tmp_path):
    path = tmp_path / "slim.onnx"
    path.write_bytes(b"12345")
    made = Artifact(path=path, format="onnx", precision="fp32", sha256="abc", input_shape=(1, 3, 8, 8), versions={})
    pipeline.answer("export_saved", made)
    result = call("export", "runs/a/host/50%", "--target", "pixel-8", "--out", str(path))
    assert pipeline.calls == [("export_saved", Path("runs/a/host/50%"), "pixel-8", path, False, ())]
    assert result.stdout == f"{path} onnx fp32 5 bytes abc\n"


def test_report_prints_the_page(monkeypatch):
    from deploy_prune.report import page

    monkeypatch.setattr(page, "write_page", lambda run: run / "report.html")
    assert call("report", "runs/a").stdout == "runs/a/report.html\n"


def test_report_of_a_missing_run_is_an_error_of_the_run_folder(tmp_path):
    assert call("report", str(tmp_path / "none")).exit_code == 24


def test_targets_lists_the_host():
    result = call("targets")
    assert result.exit_code == 0
    assert "host" in result.stdout


def test_schema_is_json_on_standard_output_or_in_a_file(tmp_path):
    printed = call("schema").stdout
    assert call("schema", "--out", str(tmp_path / "s.json")).stdout == ""
    assert json.loads(printed) == json.loads((tmp_path / "s.json").read_text())


def test_doctor_fails_if_something_is_wrong(monkeypatch):
    told = [
        Finding(area="Formats", name="onnx", state="ok", told="there"),
        Finding(area="Formats", name="ncnn", state="wrong", told="pnnx is missing", remedy="pip install 'x'"),
    ]
    asked = []
    monkeypatch.setattr(doctor, "findings", lambda progress, *, attempt: asked.append(attempt) or told)
    result = call("doctor", "--try")
    assert asked == [True]
    assert "pnnx is missing" in result.stdout
    assert result.exit_code == MissingDependencyError.exit_code
    assert result.stderr == "deploy-prune: error: 1 of 2 are wrong: ncnn.\n"
    assert [one["state"] for one in json.loads(call("doctor", "--json").stdout)] == ["ok", "wrong"]
    told.pop()
    assert call("doctor").exit_code == 0
