"""Many recipes: so many at once, each on its device, and one that fails stops nobody."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import MISSING, asdict, fields
from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy_prune.cli import main
from deploy_prune.commands import many
from deploy_prune.commands.many import Job, run_many
from deploy_prune.errors import BudgetError, RecipeError
from deploy_prune.report.row import Row

PROGRAM = """#!{python} -IS
import os, signal, sys, time
arguments = sys.argv[sys.argv.index("recipe") + 1 :]
name = arguments[0]
def tell(event):
    with open({log!r}, "a") as log:
        log.write(f"{{time.time()}} {{event}} {{name}} {{' '.join(arguments[1:])}}\\n")
tell("begin")
if name == "stubborn":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
try:
    print("search: 1/2", file=sys.stderr, flush=True)
    time.sleep(60 if name in ("forever", "stubborn") else 0.5)
except KeyboardInterrupt:
    tell("interrupted")
    raise SystemExit(130)
tell("end")
if name == "bad":
    print("deploy-prune: error: It can't be met.", file=sys.stderr)
    raise SystemExit(15)
if name == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""
"""Stands in for Python that runs one recipe."""


@pytest.fixture
def log(tmp_path, monkeypatch):
    program = tmp_path / "program"
    program.write_text(PROGRAM.format(python=sys.executable, log=str(tmp_path / "log")))
    program.chmod(0o755)
    monkeypatch.setattr(many, "RECIPE", (str(program), "recipe"))
    return tmp_path / "log"


def jobs(*names):
    return [Job(name=name, arguments=(name,)) for name in names]


def events(log):
    """(time, what, name, the other arguments) of every line."""
    return [
        (float(t), what, name, rest) for t, what, name, rest in (x.split(" ", 3) for x in log.read_text().splitlines())
    ]


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_so_many_run_at_once_each_on_a_device_of_its_own(log, tmp_path, at_once):
    devices = ["cuda:0", "cuda:1", "cuda:2"][:at_once]
    done = run_many(jobs("a", "b", "c", "d"), tmp_path, at_once, devices, lambda name, line: None)
    assert [(one.name, one.code, one.error) for one in done] == [(name, 0, None) for name in "abcd"]
    running, most = {}, 0
    for _, what, name, rest in sorted(events(log)):
        if what == "begin":
            running[name] = rest.strip()
            assert len(set(running.values())) == len(running), "no device has two"
        else:
            del running[name]
        most = max(most, len(running))
    assert most == at_once
    assert {one.device for one in done} == set(devices)
    assert {rest for _, _, _, rest in events(log)} == {f"--set device={device}" for device in devices}


def test_one_that_fails_or_is_killed_does_not_stop_the_others(log, tmp_path):
    shown = []
    done = run_many(jobs("bad", "killed", "good"), tmp_path, 1, [], lambda *told: shown.append(told))
    assert [(one.name, one.code, one.error, one.device) for one in done] == [
        ("bad", 15, "It can't be met.", None), ("killed", 137, "search: 1/2", None), ("good", 0, None, None),
    ]  # fmt: skip
    assert ("good", "search: 1/2") in shown
    assert all(one.seconds >= 0.4 for one in done)


def test_two_of_one_name_are_refused(log, tmp_path):
    with pytest.raises(RecipeError, match="'a'.*same run folder"):
        run_many(jobs("a", "b", "a"), tmp_path, 1, [], lambda *told: None)
    assert not log.exists()


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_all_of_them(log, tmp_path, monkeypatch):
    monkeypatch.setattr(many, "END_S", 4.0)

    def interrupt():
        while not log.exists() or len(events(log)) < 2:
            time.sleep(0.05)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_many(jobs("forever", "stubborn", "never"), tmp_path, 2, [], lambda *told: None)
    assert time.monotonic() - started < 30
    assert [(what, name) for _, what, name, _ in sorted(events(log))][2:] == [("interrupted", "forever")]
    assert not subprocess.run(["pgrep", "-f", str(tmp_path / "program")], capture_output=True, check=False).stdout


def row(budget, **changes):
    values = {field.name: None for field in fields(Row) if field.default is MISSING} | {
        "target": "host", "runtime": "onnxruntime", "precision": "fp32", "budget": budget, "metric": "latency",
        "status": "ok", "score": 0.5, "measured_on": "host", "measured_p50_ms": 1.0, "dense_p50_ms": 2.0,
    }  # fmt: skip
    return Row(**(values | changes))


@pytest.fixture
def recipes(tmp_path, log):
    """Recipes ``bad`` and ``good`` in files of these names."""
    for name in ("bad", "good"):
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\nmodel: {{source: resnet20}}\n")
        (tmp_path / "runs" / name).mkdir(parents=True)
    return tmp_path


def call(*arguments):
    return CliRunner().invoke(main, ["recipe", *map(str, arguments)])


def test_the_command_shows_a_line_a_step_and_a_table_and_fails_as_the_worst(recipes, monkeypatch, log):
    monkeypatch.chdir(recipes)
    (recipes / "runs/bad/results.json").write_text(json.dumps([asdict(row("old"))]))
    os.utime(recipes / "runs/bad/results.json", (0, 0))
    rows = [row("dense"), row("50%", speedup=2.0, speedup_low=1.9, speedup_high=2.1)]
    (recipes / "runs/good/results.json").write_text(json.dumps([asdict(one) for one in rows]))
    os.utime(recipes / "runs/good/results.json", (time.time() + 60,) * 2)
    (recipes / "bad").symlink_to("bad.yaml")
    (recipes / "good").symlink_to("good.yaml")
    result = call("bad", "good", "--jobs", "2", "--set", "seed=3", "--fresh")
    assert result.exit_code == BudgetError.exit_code == 15
    assert "bad: search: 1/2\n" in result.stderr
    assert "good: search: 1/2\n" in result.stderr
    assert "1 of 2 recipes failed" in result.stderr
    told = result.stdout.splitlines()
    assert any(re.match(r" *good +host +50% .*ok", line) for line in told), told
    assert any(re.match(r" *bad .*failed", line) for line in told), told
    assert "bad: It can't be met." in result.stdout
    assert "old" not in result.stdout
    assert {rest for _, _, _, rest in events(log)} == {"--set seed=3 --out runs --fresh"}


def test_a_sweep_is_many_recipes(recipes, monkeypatch, log):
    monkeypatch.chdir(recipes)
    result = call(
        "good.yaml", "--set", "search.method=[dap, gate]", "--set", "seed=[0,1]", "--devices", "cpu", "--quiet"
    )
    assert (result.exit_code, result.stderr) == (0, "")
    begun = [rest for _, what, _, rest in sorted(events(log)) if what == "begin"]
    assert len(begun) == 4
    assert begun[1].endswith(
        '--set search.method="dap" --set seed=1 --set name="good-dap-1" --out runs --set device=cpu'
    )


@pytest.mark.parametrize("devices", ["gpu:0", "cuda:0,", "cuda:0 cuda:1"])
def test_what_is_no_device_is_named(recipes, devices, log):
    result = call(recipes / "good.yaml", "--devices", devices)
    assert result.exit_code == RecipeError.exit_code
    assert "--devices: device: there is no device" in result.stderr
    assert not log.exists()


@pytest.mark.slow
def test_real_recipes_of_a_sweep_share_what_is_the_same(tmp_path):
    """Two search methods, of one dense network: the second takes it."""
    from tiny_run import tiny_recipe

    from deploy_prune.recipe.file import dump

    (tmp_path / "tiny.yaml").write_text(dump(tiny_recipe()))
    arguments = [tmp_path / "tiny.yaml", "--set", "search.method=[magnitude,random]", "--jobs", "2"]
    support = str(Path(__file__).parents[1] / "support")
    environment = {**os.environ, "PYTHONPATH": support, "DEPLOY_PRUNE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "deploy_prune.cli", "recipe", *map(str, arguments), "--out", str(tmp_path / "runs")],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = [
        json.loads((tmp_path / f"runs/tiny-{name}/provenance.json").read_text()) for name in ("magnitude", "random")
    ]
    assert sorted(len(one["taken_from"].keys() & {"dense", "adapt"}) for one in told) == [0, 2]
    assert "tiny-random" in done.stdout
